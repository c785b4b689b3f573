"""The run folder.

    recipe.yaml                 the resolved recipe; its first line marks the folder as a run
    provenance.json             versions, commit, hardware, seeds, hashes of the data and the base model
    metrics.jsonl               one JSON object per measurement, as training goes
    README.md                   the model card
    adapter_config.json         an adapter that plain PEFT loads (exact LoRA form where the method has one)
    adapter_model.safetensors
    adapter/                    a spectral adapter in its own form, with L0 and R0
    model/                      the whole model instead, after full fine-tuning
    checkpoint-N/               a checkpoint in the Trainer's layout after N optimiser steps
    runs/                       what ``report_to: tensorboard`` writes
    eval/results.json           results by task, base and tuned, with standard errors
    eval/TASK.base.jsonl        every completion, of the base and of the tuned model
    eval/TASK.tuned.jsonl
    forgetting.json             cross-entropy against the base model's own distribution, floor and KL
    analysis.json               where in the weights the changes lie, and how large they are
    measured.json               what a comparison measured of it, step by step
    failed.json                 the error of a run of a comparison that failed
    retention.json              what it knew and had forgotten at each checkpoint
    report.html, .md, .json, .csv   what ``milora report`` writes of the run

Overwriting deletes these and nothing else that lies in the folder.
"""

import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from milora.decompositions.workers import Rank
from milora.errors import MiloraError
from milora.models.atomic import write_text
from milora.recipes import Recipe, dump, load_recipe
from milora.runs.metrics import append_metric, finite

MARK = "# The resolved recipe of a milora run.\n"

WRITTEN = (
    "provenance.json", "metrics.jsonl", "README.md", "adapter_config.json", "adapter_model.safetensors",
    "adapter", "model", "checkpoint-*", "runs", "eval", "forgetting.json", "analysis.json", "retention.json",
    "measured.json", "samples.jsonl", "failed.json", "report.html", "report.md", "report.json", "report.csv",
    "recipe.yaml",
)  # fmt: skip

# Keys that decide what is shown, measured afterwards or kept, and not one bit of the weights.
OUTPUT_ONLY = {
    "name", "description", "sources", "output_dir", "report_to", "logging_steps", "save_total_limit",
    "eval_tasks", "eval_limit", "eval_batch_size", "eval_data_dir",
    "forgetting_text", "forgetting_max_tokens", "forgetting_block",
}  # fmt: skip


# Keys whose product with the number of processes is the rows of an optimiser step, and which may change together.
BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps")


class RunFolder:
    """A folder that holds one run. The object knows paths; nothing is read or written before it is asked."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path).expanduser()
        self.recipe_file = self.path / "recipe.yaml"
        self.provenance_file = self.path / "provenance.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.card_file = self.path / "README.md"
        self.adapter = self.path / "adapter"
        self.model = self.path / "model"
        self.eval = self.path / "eval"
        self.eval_results_file = self.eval / "results.json"
        self.forgetting_file = self.path / "forgetting.json"
        self.analysis_file = self.path / "analysis.json"

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    @property
    def holds_run(self) -> bool:
        """Whether a run was started here."""
        if not self.recipe_file.is_file():
            return False
        with self.recipe_file.open(encoding="utf-8", errors="replace") as file:
            return file.readline() == MARK

    def check(self, recipe: Recipe, *, overwrite: bool = False, resume: bool = False) -> None:
        """Find out, without touching anything, whether ``create`` would refuse.

        Raises:
            MiloraError: the folder holds a run and neither flag is given; it holds other files and no
                run; the recipe reads what ``overwrite`` would delete; there is nothing to resume; the recipe to
                resume differs in a key that shapes the run, or the rows of an optimiser step do.
        """
        if overwrite and resume:
            raise MiloraError("--overwrite and --resume: got both, allowed one of them")
        if self.path.exists() and not self.path.is_dir():
            raise MiloraError(f"output_dir: {self.path} is a file, must be a folder")
        if resume:
            self._check_resume(recipe)
        elif self.holds_run and not overwrite:
            raise MiloraError(f"output_dir: {self.path} holds a run; --overwrite replaces it, --resume goes on with it")
        elif self.holds_run:
            self._check_deletion(recipe)
        elif not self.holds_run and self.path.is_dir() and any(self.path.iterdir()):
            raise MiloraError(f"output_dir: {self.path} is not empty and holds no run; give a new or an empty folder")

    def _check_deletion(self, recipe: Recipe) -> None:
        """What a run reads must not be what it replaces."""
        going = {found.resolve() for pattern in WRITTEN for found in self.path.glob(pattern)}
        for key in ("model_name_or_path", "dataset", "eval_dataset", "image_folder"):
            value = getattr(recipe, key)
            place = Path(value).expanduser().resolve() if value else None
            if place is not None and place.exists() and going & {place, *place.parents}:
                raise MiloraError(f"--overwrite: {key} {value} lies in {self.path} and would be deleted with its run")

    def create(self, recipe: Recipe, *, overwrite: bool = False, resume: bool = False) -> "RunFolder":
        """Make the folder and write the recipe into it; with ``overwrite`` the old run's files go first.

        Returns:
            This folder.

        Raises:
            MiloraError: as ``check`` says.
        """
        self.check(recipe, overwrite=overwrite, resume=resume)
        if not resume and self.holds_run:
            self._delete_run()
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.recipe_file, MARK + dump(recipe))
        return self

    def recipe(self) -> Recipe:
        """Read the resolved recipe.

        Raises:
            MiloraError: the folder holds no run.
        """
        if not self.holds_run:
            raise MiloraError(f"{self.path}: holds no run (no recipe.yaml of one)")
        return load_recipe(self.recipe_file)

    def provenance(self) -> dict[str, Any]:
        """Read provenance.json; empty when it is absent."""
        return read_json(self.provenance_file)

    def results(self) -> dict[str, Any]:
        """Read what was measured: ``eval``, ``forgetting`` and ``analysis``, each only if its file is there."""
        files = {"eval": self.eval_results_file, "forgetting": self.forgetting_file, "analysis": self.analysis_file}
        return {name: read_json(file) for name, file in files.items() if file.is_file()}

    def own_adapter(self) -> Path:
        """The adapter in the form in which it was trained: a spectral one in ``adapter``, another at the root.

        Raises:
            MiloraError: the run has saved no adapter, or trained the whole model.
        """
        for folder in (self.adapter, self.path):
            if (folder / "adapter_config.json").is_file():
                return folder
        if self.model.is_dir():
            raise MiloraError(f"{self.path}: got a run of method full, whose model is whole already: {self.model}")
        raise MiloraError(f"{self.path}: the run has saved no adapter, for it stopped early")

    def write_provenance(self, record: Mapping[str, Any]) -> None:
        """Write provenance.json."""
        write_json(self.provenance_file, record)

    def write_card(self, text: str) -> None:
        """Write the model card."""
        write_text(self.card_file, text)

    def append_metric(self, record: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        append_metric(self.metrics_file, record)

    def checkpoints(self) -> list[Path]:
        """The checkpoints in the order of their steps."""
        numbered = [p for p in self.path.glob("checkpoint-*") if p.name.removeprefix("checkpoint-").isdigit()]
        return sorted(numbered, key=lambda p: int(p.name.removeprefix("checkpoint-")))

    def check_inputs(self, record: Mapping[str, Any]) -> None:
        """Find out whether the run in this folder read the same data and base model.

        Args:
            record: what would go into provenance.json now.

        Raises:
            MiloraError: it read others; each that changed is named. What was not noted then is not compared.
        """
        before = self.provenance()
        names = {"data_hash": "the rows of dataset", "base_fingerprint": "the weights of model_name_or_path"}
        changed = [
            f"{name} ({key} was {before[key]}, got {record.get(key)})"
            for key, name in names.items()
            if before.get(key) is not None and before[key] != record.get(key)
        ]
        if changed:
            raise MiloraError(f"--resume: {self.path} was started with other inputs: " + "; ".join(changed))

    def _check_resume(self, recipe: Recipe) -> None:
        if not self.holds_run:
            raise MiloraError(f"--resume: {self.path} holds no run")
        before, now = self.recipe().model_dump(), recipe.model_dump()
        changed = [
            f"{key} was {before[key]!r}, got {now[key]!r}"
            for key in sorted(now.keys() - OUTPUT_ONLY - set(BATCH))
            if before[key] != now[key]
        ]
        processes = int(self.provenance().get("processes") or 1), Rank.of_environment().world_size
        factors = [[n, *(keys[key] for key in BATCH)] for n, keys in zip(processes, (before, now), strict=True)]
        if math.prod(factors[0]) != math.prod(factors[1]):
            was, got = (" x ".join(map(str, numbers)) for numbers in factors)
            changed.append(f"processes x {' x '.join(BATCH)} was {was}, got {got}, allowed the same product")
        if changed:
            raise MiloraError(f"--resume: {self.path} was started with another recipe: " + "; ".join(changed))

    def _delete_run(self) -> None:
        # recipe.yaml is last in the list: an interrupted deletion still leaves a folder known as a run.
        for pattern in WRITTEN:
            for found in self.path.glob(pattern):
                if found.is_dir() and not found.is_symlink():
                    shutil.rmtree(found)
                else:
                    found.unlink()


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write a JSON file for people to read, atomically."""
    write_text(path, json.dumps(finite(record), indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file; empty when it is absent."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
