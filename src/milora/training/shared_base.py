"""A base model that several runs adapt in turn: read once, given back as it was after each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from milora.adapters import strip
from milora.errors import MiloraError
from milora.models.digest import Digest, weight_digest
from milora.models.fingerprint import fingerprint
from milora.models.load import load_model
from milora.models.quantised import dense_parameters
from milora.recipes.schema import Recipe

# What decides which numbers the base model holds, and where.
SAME = ("model_name_or_path", "gguf_file", "base_dtype", "trust_remote_code", "base_quantization", "device")
# Settings by which PEFT or a method writes into the base weights.
WRITING = ("init_lora_weights", "loftq_config", "eva_config", "corda_config", "drop_base")


class SharedBase:
    """A loaded base model that runs borrow.

    A run adapts the model itself, without a copy. When it is given back its adapters are taken out, its flags are put
    back, and its weights are named by their values again: a run that has changed one is an error, and not the base
    of all later runs.

    Attributes:
        model: the base model.
        fingerprint: of its weights, as in provenance.json.
    """

    def __init__(self, recipe: Recipe):
        self.model: Any = load_model(
            recipe.model_name_or_path,
            dtype=recipe.base_dtype,
            device=recipe.device,
            trust_remote_code=recipe.trust_remote_code,
            gguf_file=recipe.gguf_file,
            quantization=recipe.base_quantization,
        )
        self._same = [getattr(recipe, name) for name in SAME]
        self._trains = {name: p.requires_grad for name, p in self.model.named_parameters()}
        self._digests = self._named()
        self.fingerprint = fingerprint(sorted(self._digests.items()))
        self._attributes = set(vars(self.model))
        self._settings = [(config, dict(vars(config))) for config in (self.model.config, self.model.generation_config)]

    def serves(self, recipe: Recipe) -> bool:
        """Whether a run of this recipe may borrow the model: it asks for the same base and writes nothing into it."""
        writes = recipe.method == "full" or recipe.bias != "none" or bool(set(WRITING) & set(recipe.method_settings))
        return not writes and [getattr(recipe, name) for name in SAME] == self._same

    @contextmanager
    def lent(self) -> Iterator[Any]:
        """Yield the base model, to be adapted in place; afterwards it is the base again.

        Raises:
            MiloraError: a weight is not what it was.
        """
        try:
            yield self.model
        finally:
            self._restore()

    def _restore(self) -> None:
        model = self.model
        strip(model)
        model.disable_input_require_grads()
        if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
            model.gradient_checkpointing_disable()
        for name in set(vars(model)) - self._attributes:
            delattr(model, name)  # what a trainer hangs onto a model
        for config, values in self._settings:
            vars(config).clear()
            vars(config).update(values)
        model.zero_grad(set_to_none=True)
        model.eval()
        now = self._named()
        changed = [name for name, digest in self._digests.items() if now.get(name) != digest]
        if changed or len(now) != len(self._digests):
            name = changed[0] if changed else sorted(set(now) - set(self._digests))[0]
            raise MiloraError(f"shared base: a run has changed {name}; allowed runs that leave the base as it is")
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(self._trains[name])

    def _named(self) -> dict[str, Digest]:
        return {name: weight_digest(W) for name, W in dense_parameters(self.model)}
