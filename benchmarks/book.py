"""The book experiment: recall of a book's wording and questions by epoch, beside forgetting, for six arms.

    python benchmarks/book.py --data_dir DATA --output_dir OUT [--seeds 0,1,2] [--arms lora,mica]
    python benchmarks/book.py --data_dir DATA --output_dir OUT --write benchmarks/results/book

DATA holds book/chiriqui.txt with its questions, and wikitext/. The grid is book-smollm2; runs lie in OUT/runs. A run
that is finished and measured is not done again, and one that another process is at is left to it: start the command
twice for two processes. Whole seeds go first: seed 0 of all arms at all rates, then seed 1. `--write` makes the tables
of what is there, and runs nothing.

The text is an excerpt, OUT/excerpt: the --paragraphs paragraphs with most questions a token, in the book's order. The
questions asked are those whose evidence stands in it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console

from milora.comparison import load_grid
from milora.comparison.grid import Grid
from milora.comparison.plan import Job, measured_jobs
from milora.comparison.retention import FILE, retention
from milora.data.files import read_rows
from milora.models.atomic import write_text
from milora.models.load import load_tokenizer
from milora.models.smollm2 import smollm2_folder
from milora.runs import RunFolder
from milora.runs.folder import read_json, write_json
from milora.tasks.book_rows import find_span
from milora.training.shared_base import SAME, SharedBase
from milora.training.train import train

TASKS = ("milora_book_cloze", "milora_questions")
LETTERS, LETTERS_RUNS = "milora_book_mcq_letters", 8
# The excerpt is trained on whole, for the recipe's epochs, and what is measured is asked for here.
OVER = {"base.dataset_split": "train", "base.max_steps": -1, "base.eval_dataset": None, "base.eval_split": "train",
        "measure.validation": False, "measure.tasks": []}  # fmt: skip


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--grid", default="book-smollm2")
    parser.add_argument("--seeds", help="with commas, in place of the grid's")
    parser.add_argument("--arms", help="labels with commas, in place of all")
    parser.add_argument("--paragraphs", type=int, default=16)
    parser.add_argument("--letters", action="store_true", help="8 runs of the questions by letter too: thrice the time")
    parser.add_argument("--write", type=Path, help="write this .json and .md, without ending, and run nothing")
    return parser.parse_args()


def excerpt(data_dir: Path, folder: Path, paragraphs: int, tokenizer: Any) -> dict[str, Any]:
    """Write the excerpt and its questions, in the form of a book's folder; returns what it is."""
    book = data_dir / "book"
    texts = [row["text"] for row in read_rows(book / "chiriqui.txt")]
    questions = {kind: read_rows(book / f"chiriqui_{kind}.jsonl") for kind in ("mcq", "cloze")}
    place = {
        (kind, i): next((p for p, text in enumerate(texts) if find_span(text, row["evidence"])), None)
        for kind, rows in questions.items()
        for i, row in enumerate(rows)
    }
    lengths = [len(tokenizer(text)["input_ids"]) for text in texts]
    held = [sum(2 if kind == "mcq" else 1 for (kind, _), at in place.items() if at == p) for p in range(len(texts))]
    chosen = sorted(sorted(range(len(texts)), key=lambda p: -held[p] / lengths[p])[:paragraphs])
    kept = {kind: [row for i, row in enumerate(rows) if place[kind, i] in chosen] for kind, rows in questions.items()}
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "excerpt.txt", "\n\n".join(texts[p] for p in chosen) + "\n")
    for kind, rows in kept.items():
        write_text(
            folder / f"excerpt_{kind}.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        )
    counts = {kind: len(rows) for kind, rows in kept.items()}
    return {"paragraphs": paragraphs, "tokens": sum(lengths[p] for p in chosen), **counts}


def jobs(grid: Grid, output: Path, model: str, seeds: list[int], arms: list[str]) -> list[Job]:
    """The runs, whole seeds first."""
    found = measured_jobs(grid, output, {"base": model}, {}, all_rates=True)
    found = [job for job in found if job.seed in seeds and (not arms or job.cell.arm.label in arms)]
    order = {arm.label: i for i, arm in enumerate(grid.arms)}
    found.sort(
        key=lambda job: (seeds.index(job.seed), job.cell.rates.index(job.learning_rate), order[job.cell.arm.label])
    )
    return [_adjusted(job) for job in found]


def _adjusted(job: Job) -> Job:
    recipe = job.recipe
    if recipe.method == "full" and recipe.save_steps:  # a whole model with its optimiser state at each checkpoint
        recipe = recipe.model_copy(update={"save_steps": 2 * recipe.save_steps})
    return replace(job, recipe=recipe)


class Bench:
    """One process at the runs."""

    def __init__(self, output: Path, grid: Grid, console: Console, letters: bool):
        self.output, self.grid, self.console, self.letters = output, grid, console, letters
        self.folder = output / "excerpt"
        self.base: SharedBase | None = None

    def take(self, job: Job, wait: bool) -> None:
        """Train and measure one run, unless it is done.

        Raises:
            Timeout: another process is at it, and this one does not wait.
        """
        with FileLock(self.output / "locks" / f"{job.name}.lock", timeout=-1 if wait else 0):
            run = RunFolder(job.recipe.output_dir)
            if (run.path / "done.json").is_file():
                return
            base, started = self._base(job), time.monotonic()
            if not (run.model.is_dir() or (run.path / "adapter_config.json").is_file()):
                train(job.recipe, resume=run.holds_run, base=base)
            trained = time.monotonic()
            measured = retention(run.path, base=base, base_row=self._base_row(job, base), **self._asked(job, run))
            seconds = {"training_s": round(trained - started, 1), "measuring_s": round(time.monotonic() - trained, 1)}
            write_json(run.path / "done.json", seconds)
            for checkpoint in [*run.checkpoints(), run.model]:
                shutil.rmtree(checkpoint, ignore_errors=True)
            last = measured["rows"][-1]
            self.console.print(
                f"{job.name}: {seconds}, wording {last['losses']['wording']:.3f} "
                f"({last['accuracies']['wording']:.2f}), KL {last['forgetting']['kl']:.3f}, "
                + ", ".join(f"{s['task']} {s['value']:.2f}" for s in last["scores"] if s["metric"] == "acc"),
                highlight=False,
                soft_wrap=True,
            )

    def _asked(self, job: Job, run: RunFolder) -> dict[str, Any]:
        text = self.grid.measure.forgetting
        assert text is not None
        return {
            "tasks": [*TASKS, LETTERS] if self.letters else TASKS, "runs": LETTERS_RUNS if self.letters else 1,
            "data_dir": str(self.folder), "batch_size": 4, "text": text.text, "block": text.block,
            "max_tokens": text.max_tokens, "losses": {"wording": str(self.folder / "excerpt.txt")},
        }  # fmt: skip

    def _base(self, job: Job) -> SharedBase:
        if self.base is None or not self._same(job):
            self.base = None
            self.base = SharedBase(job.recipe)
            self.keys = [getattr(job.recipe, name) for name in SAME]
        return self.base

    def _same(self, job: Job) -> bool:
        return [getattr(job.recipe, name) for name in SAME] == self.keys

    def _base_row(self, job: Job, base: SharedBase) -> dict[str, Any] | None:
        """The base's row out of another run on it, so that it is measured once."""
        for file in sorted((self.output / "runs").glob(f"*/{FILE}")):
            record = read_json(file)
            if record["settings"]["base_fingerprint"] == base.fingerprint:
                return record["rows"][0]
        return None


def run_all(given: argparse.Namespace, grid: Grid, found: list[Job], console: Console) -> None:
    """Every run that nobody has done, those of other processes last."""
    (given.output_dir / "locks").mkdir(parents=True, exist_ok=True)
    bench, held = Bench(given.output_dir, grid, console, given.letters), []
    for job in found:
        try:
            bench.take(job, wait=False)
        except Timeout:
            held.append(job)
    for job in held:
        bench.take(job, wait=True)


def main() -> None:
    """Run, or write the tables."""
    given, console = arguments(), Console()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    model = str(smollm2_folder())
    with FileLock(given.output_dir.with_suffix(".lock")):
        about = excerpt(given.data_dir, given.output_dir / "excerpt", given.paragraphs, load_tokenizer(model))
    text = given.output_dir / "excerpt" / "excerpt.txt"
    grid = load_grid(
        given.grid, OVER | {"base.dataset": str(text), "output_dir": str(given.output_dir)}, given.data_dir
    )
    seeds = [int(seed) for seed in given.seeds.split(",")] if given.seeds else grid.seeds
    found = jobs(grid, given.output_dir, model, seeds, given.arms.split(",") if given.arms else [])
    if given.write is None:
        run_all(given, grid, found, console)
        return
    from book_tables import write

    console.print(write(given.write, grid, found, about), highlight=False)


if __name__ == "__main__":
    main()
