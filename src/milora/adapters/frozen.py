"""Factors by adapter name, in dictionaries that notice what is put into them, whoever does it."""

from __future__ import annotations

from typing import Any

from torch import nn


class WatchedFactors(nn.ParameterDict):
    """Parameters by adapter name.

    Args:
        awaited: the adapters of a layer that a saved adapter is still to fill; one that is set is no longer awaited.
    """

    def __init__(self, awaited: set[str]) -> None:
        super().__init__()
        self.awaited = awaited

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, nn.Parameter):
            self.awaited.discard(name)
        super().__setattr__(name, value)


class FrozenFactors(WatchedFactors):
    """Parameters that are frozen from the moment they are set.

    PEFT freezes what it is told to; transformers' `load_adapter(..., is_trainable=True)` puts new parameters in the
    place of the old ones, all of them trainable.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, nn.Parameter):
            value.requires_grad_(False)
        super().__setattr__(name, value)
