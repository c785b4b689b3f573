"""Tables out of benchmarks/results: what was measured here, and nothing that was not."""

import json
from pathlib import Path
from typing import Any

from markdown_tables import table

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
LABELS = {"lora": "LoRA", "pissa": "PiSSA", "milora": "MiLoRA", "mica": "MiCA"}


def read(name: str) -> Any:
    """A result file."""
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def four_methods(name: str) -> str:
    """Learning and forgetting of four methods at one rate, one seed."""
    runs = read(f"{name}.json")["runs"]
    rows = [_run(run) for run in runs]
    scored = any(row[-1] for row in rows)
    header = ["method", "trained numbers", "lowest validation loss", "KL from the base", "score, flexible"]
    seeds = sorted({run["recipe"]["seed"] for run in runs})
    steps = sorted({run["recipe"]["max_steps"] for run in runs})
    rate = runs[0]["recipe"]["learning_rate"]
    said = f"{' and '.join(map(str, steps))} steps, seed {', '.join(map(str, seeds))}, learning rate {rate:g}."
    width = len(header) if scored else len(header) - 1
    return f"{said}\n\n" + table(header[:width], [row[:width] for row in rows], right=range(1, width))


def _run(run: dict[str, Any]) -> list[str]:
    losses = [loss for _, loss in run.get("eval_loss") or []]
    scores = [row for row in run.get("comparison") or [] if row["filter"] == "flexible"]
    whole = scores[-1] if scores else None
    return [
        LABELS.get(run["method"], run["method"]),
        f"{run['provenance']['trainable_parameters']:,}",
        f"{min(losses):.3f}" if losses else "",
        pm(run["forgetting"]["kl"], run["forgetting"]["kl_stderr"]),
        f"{pm(whole['tuned'], whole['tuned_stderr'])} (n = {whole['n']})" if whole else "",
    ]


def pm(mean: float | None, error: float | None) -> str:
    """A mean with its standard error."""
    return "" if mean is None else f"{mean:.4g}" if error is None else f"{mean:.4g} ± {error:.2g}"


def start_and_reload() -> str:
    """What becomes of a model's logits when an adapter is put on, switched off, and loaded again."""
    rows = [
        [name.replace("milora: ", "here: ").replace("peft: ", "PEFT: "), f"{v['start']:.3g}", f"{v['disabled']:.3g}",
         f"{v['reloaded']:.3g}", v["decompositions_at_reload"]]
        for name, v in read("start_and_reload.json")["largest_logit_difference"].items()
    ]  # fmt: skip
    header = ["adapter", "at the start", "disabled", "reloaded elsewhere", "decompositions at the reload"]
    return table(header, rows, right=range(1, 5))


def step_time() -> str:
    """Time and memory of a training step beside those of others."""
    rows = [[r["ours"], r["theirs"], f"{r['time']['median']:.2f}", f"{r['kept_for_backward']:.2f}"]
            for r in read("step_time.json")["ratios"]]  # fmt: skip
    return table(["here", "beside", "time", "kept for the backward"], rows, right=(2, 3))
