"""Tensors whose memory tells when it is given back, whatever views and copies of the tensor there were."""

import weakref

import pytest
import torch

from milora.models.weights import LinearWeight


class Memory(bytearray):
    """Bytes that can be referred to weakly, which a plain bytearray cannot."""


def tracked(tensor: torch.Tensor) -> tuple[torch.Tensor, weakref.ref]:
    """The same numbers, and a reference that is dead once their memory is."""
    numbers = tensor.detach().contiguous()
    memory = Memory(numbers.view(torch.uint8).numpy().tobytes())
    return torch.frombuffer(memory, dtype=numbers.dtype).view(numbers.shape), weakref.ref(memory)


class Loads:
    """Counts, whenever a weight is read, how many of those that were read before are still in memory."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.alive: list[int] = []
        self.read: list[weakref.ref] = []
        load = LinearWeight.load

        def watched(weight: LinearWeight) -> torch.Tensor:
            self.alive.append(sum(ref() is not None for ref in self.read))
            W, memory = tracked(load(weight))
            self.read.append(memory)
            return W

        monkeypatch.setattr(LinearWeight, "load", watched)
