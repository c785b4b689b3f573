"""What measuring needs besides a run, read once for all of them: tokenizers, validation rows, texts."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from milora.analysis import read_text
from milora.comparison.grid import Grid
from milora.comparison.tuned import asked_on, other_base
from milora.models.load import load_processor, load_tokenizer
from milora.models.pictures import Pictures
from milora.recipes.schema import Recipe
from milora.training.data import load_data
from milora.training.shared_base import SAME, SharedBase

# What decides the validation rows of a recipe.
OF_ROWS = (
    "model_name_or_path", "dataset", "dataset_split", "dataset_limit", "dataset_format", "prompt_template",
    "image_folder", "eval_dataset", "eval_split", "eval_dataset_limit", "min_length", "max_length", "overlong",
    "loss_on", "val_set_size", "empty_rows",
)  # fmt: skip


@dataclass
class Bench:
    """What measuring needs besides a run.

    Attributes:
        grid: what is measured.
        base_folder: variant to the folder of the base model's measurements.
    """

    grid: Grid
    base_folder: dict[str, Path]
    _texts: dict[str, str] = field(default_factory=dict)
    _rows: dict[str, Any] = field(default_factory=dict)
    _tokenizers: dict[str, Any] = field(default_factory=dict)
    _pictures: dict[str, Pictures | None] = field(default_factory=dict)
    _onto: tuple[list[object], SharedBase] | None = None

    def tokenizer(self, recipe: Recipe) -> Any:
        """The tokenizer of a recipe's model."""
        name = recipe.model_name_or_path
        if name not in self._tokenizers:
            self._tokenizers[name] = load_tokenizer(
                name, trust_remote_code=recipe.trust_remote_code, gguf_file=recipe.gguf_file
            )
        return self._tokenizers[name]

    def pictures(self, recipe: Recipe) -> Pictures | None:
        """How a recipe's model takes pictures; None where it takes none."""
        name = recipe.model_name_or_path
        if name not in self._pictures:
            processor = load_processor(name, trust_remote_code=recipe.trust_remote_code)
            self._pictures[name] = Pictures(processor) if processor else None
        return self._pictures[name]

    def reader(self, recipe: Recipe) -> Any:
        """What tasks are read with: the processor of a model that takes pictures, else the tokenizer."""
        pictures = self.pictures(recipe)
        return pictures.processor if pictures else self.tokenizer(recipe)

    def asked(self, recipe: Recipe) -> Recipe:
        """The recipe with the name of the model that is asked: the base, or what `measure.onto` names."""
        return asked_on(recipe, self.grid.measure.onto)

    def onto(self, recipe: Recipe) -> SharedBase | None:
        """The model onto which the changes of a recipe's runs are carried; None where they are asked on their base."""
        name = self.grid.measure.onto
        if name is None:
            return None
        keys: list[object] = [getattr(self.asked(recipe), key) for key in SAME]
        if self._onto is None or self._onto[0] != keys:
            self._onto = None
            self._onto = (keys, other_base(recipe, name))
        return self._onto[1]

    def release(self) -> None:
        """Let go of the other model: while a run trains, or where it may have been spoilt."""
        self._onto = None

    def __getstate__(self) -> dict[str, Any]:
        """What goes to another process: no model."""
        return self.__dict__ | {"_onto": None}

    def rows(self, recipe: Recipe) -> Any:
        """The validation rows of a recipe, tokenised; None where it has none."""
        # A split of the training rows is drawn with the seed; an own data set is the same for every run.
        seed = None if recipe.eval_dataset else recipe.seed
        name = json.dumps([*(getattr(recipe, key) for key in OF_ROWS), seed])
        if name not in self._rows:
            quiet, pictures = Console(quiet=True), self.pictures(recipe)
            self._rows[name] = load_data(recipe, self.tokenizer(recipe), quiet, pictures).validation
        return self._rows[name]

    def text(self, source: str) -> str:
        """The text on which forgetting is measured."""
        if source not in self._texts:
            self._texts[source] = read_text(source)
        return self._texts[source]
