"""What was written is loaded again, and its logits are compared with those of the adapter itself."""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import try_to_load_from_cache
from peft import LoraConfig, PeftModel
from safetensors.torch import save_file
from torch import Tensor, nn

from milora.adapters.attach import WEIGHTS, load_adapter
from milora.adapters.delta import AdapterFile
from milora.adapters.gguf_lora import read_gguf_lora
from milora.adapters.saved_config import CONFIG, read_config
from milora.errors import MiloraError
from milora.models.checkpoint import is_local
from milora.models.load import load_model

Form = Literal["lora", "merged", "gguf-lora"]
TOKENS = 32


@dataclass(frozen=True)
class Agreement:
    """Logits of what was written against those of the adapter on its base, in float32, over a few random tokens.

    Attributes:
        largest: largest absolute difference of a logit.
        mean: mean absolute difference.
        moved: by how much the adapter itself moves a logit at most, to judge the other two by.
    """

    largest: float
    mean: float
    moved: float

    def as_dict(self) -> dict[str, float]:
        """The numbers by name, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"reloaded: logits differ by at most {self.largest:.3g} (mean {self.mean:.3g}) from the adapter's own,"
            f" which moves the base's by up to {self.moved:.3g}"
        )


class Witness:
    """An adapter's own logits, taken before anything is written: a base that does not fit is refused in time.

    Args:
        adapter: the folder of the saved adapter.
        base: its base model in float32, left as it is.
        force: the base may have another fingerprint.

    Attributes:
        adapter, base, force: the same.

    Raises:
        MiloraError: see `load_adapter`.
    """

    def __init__(self, adapter: str | Path, base: nn.Module, *, force: bool = False) -> None:
        self.adapter, self.base, self.force = adapter, base, force
        self._ids = _tokens(base)
        self._plain = _logits(base, self._ids)
        self._own = _logits(self.model(), self._ids)

    def model(self) -> Any:
        """The adapter on its base."""
        folder = Path(self.adapter)
        # One that stands in for the base weights empties them.
        drops = (folder / CONFIG).is_file() and getattr(read_config(folder), "drop_base", False)
        base = copy.deepcopy(self.base) if drops else shared_copy(self.base)
        return load_adapter(base, folder, force=self.force)

    def compare(self, written: str | Path, form: Form) -> Agreement:
        """Load what was written again and compare its logits.

        Args:
            written: what an export wrote.
            form: see `reloaded`.

        Raises:
            MiloraError: it cannot be loaded again, or its logits are not finite.
        """
        again = _logits(reloaded(self.adapter, self.base, written, form), self._ids)
        if not bool(torch.isfinite(again).all()):
            raise MiloraError(f"{written}: written, but its logits are not finite")
        return _agreement(again, self._own, self._plain)


def reloaded(adapter: str | Path, base: nn.Module, written: str | Path, form: Form) -> Any:
    """The model that an export gives.

    Args:
        adapter: the folder of the adapter that was exported.
        base: its base model, left as it is; what is loaded shares its weights.
        written: what the export wrote.
        form: "lora" is loaded with PEFT's own classes, "merged" with transformers, "gguf-lora" is read back into
            a LoRA for PEFT.
    """
    if form == "merged":
        return load_model(written, dtype="float32", device=str(next(base.parameters()).device))
    with _as_lora(adapter, base, written, form) as folder:
        return PeftModel.from_pretrained(shared_copy(base), str(folder))  # pyright: ignore


def import_agreement(adapter: str | Path, base: nn.Module, written: str | Path) -> Agreement:
    """Compare an adapter that was brought in with the one of PEFT's that it came from.

    Args:
        adapter: PEFT's.
        base: the base model of both in float32, left as it is.
        written: what the import wrote.
    """
    ids = _tokens(base)
    plain = _logits(base, ids)
    # PiSSA rewrites base weights when PEFT loads it, so that these must be its own.
    theirs = _logits(PeftModel.from_pretrained(copy.deepcopy(base), str(adapter)), ids)  # pyright: ignore
    ours = _logits(load_adapter(shared_copy(base), written), ids)
    return _agreement(ours, theirs, plain)


def shared_copy(model: nn.Module) -> Any:
    """The modules of a model anew, on its own weights: an adapter on the copy leaves the model as it is."""
    weights: dict[int, Any] = {id(t): t for t in [*model.parameters(), *model.buffers()]}
    return copy.deepcopy(model, weights)


def fits_in_memory(base: str | Path, copies: int = 1) -> bool:
    """Whether so many float32 copies of a checkpoint are below three quarters of this machine's memory.

    Args:
        base: a local folder, or a hub name; one that is not here yet is taken to fit.
        copies: how many.
    """
    folder = Path(base).expanduser()
    if not is_local(base):
        cached = try_to_load_from_cache(str(base), "config.json")
        folder = Path(cached).parent if isinstance(cached, str) else folder
    size = sum(f.stat().st_size for f in folder.glob("*.safetensors"))  # two bytes a number, where it is large
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 2 * copies * size < 0.75 * memory


@contextmanager
def _as_lora(adapter: str | Path, base: nn.Module, written: str | Path, form: Form) -> Generator[Path]:
    """A folder that PEFT loads: what was written, or what a GGUF file says."""
    if form == "lora":
        yield Path(written)
        return
    file = AdapterFile(adapter, base=str(base.config._name_or_path))  # pyright: ignore
    tensors = read_gguf_lora(written, str(base.config._name_or_path), file.modules)  # pyright: ignore
    rank = next(t.shape[0] for n, t in tensors.items() if n.endswith(".lora_A.weight"))
    with tempfile.TemporaryDirectory() as folder:
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=file.modules, inference_mode=True)
        config.save_pretrained(folder)
        save_file({n: t.contiguous() for n, t in tensors.items()}, Path(folder) / WEIGHTS, metadata={"format": "pt"})
        yield Path(folder)


def _agreement(again: Tensor, own: Tensor, plain: Tensor) -> Agreement:  # each (1, tokens, vocabulary)
    difference = (again - own).abs()
    return Agreement(float(difference.max()), float(difference.mean()), float((own - plain).abs().max()))


def _tokens(model: Any) -> Tensor:  # (1, tokens)
    vocabulary = int(model.get_input_embeddings().weight.shape[0])
    return torch.randint(0, vocabulary, (1, TOKENS), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def _logits(model: Any, ids: Tensor) -> Tensor:  # (1, tokens, vocabulary)
    return model.eval()(input_ids=ids.to(next(model.parameters()).device)).logits.float().cpu()
