"""Tables out of benchmarks/results: what was measured here, and nothing that was not.

A file with "arms" is a comparison, as `milora compare` writes it; it is shown as soon as it is there.
"""

import json
from pathlib import Path
from typing import Any

from markdown_tables import plain, table

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
LABELS = {"lora": "LoRA", "pissa": "PiSSA", "milora": "MiLoRA", "mica": "MiCA"}
# First of a comparison's columns, where they are there; tasks follow.
LEADING = ("validation_loss", "kl", "amplification", "phi_left_top", "phi_left_bottom")
NAMES = {"validation_loss": "validation loss", "kl": "KL from the base", "forgetting": "forgetting loss"}


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


def comparisons(prefix: str) -> str:
    """Every comparison whose file begins so; or that there is none yet."""
    found = {path: json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob(f"{prefix}*.json"))}
    shown = [_comparison(path, content) for path, content in found.items() if "arms" in content]
    missing = f"Not measured yet: there is no `benchmarks/results/{prefix}*.json`.\n"
    return "\n".join(shown) if shown else missing


def _comparison(path: Path, content: dict[str, Any]) -> str:
    arms = content["arms"]
    metrics = _columns(arms)
    rows = [
        [_label(arm), f"{arm['learning_rate']:g}", _seeds(arm), *(_metric(arm, m) for m in metrics)] for arm in arms
    ]
    header = ["arm", "learning rate", "seeds", *(plain(NAMES.get(m, m)) for m in metrics)]
    title = f"**{plain(path.stem.replace('_', ' '))}** (`benchmarks/results/{path.name}`)"
    parts = [f"{title}: means over seeds ± standard error.\n", table(header, rows, right=range(1, len(header)))]
    return "\n".join(
        [*parts, *_against_lora(arms, metrics), *_predictions(arms), *_checks(content.get("checks") or [])]
    )


def _label(arm: dict[str, Any]) -> str:
    return plain(f"{arm['label']}, r = {arm['r']}" if arm.get("r") else arm["label"])


def _seeds(arm: dict[str, Any]) -> str:
    failed = arm.get("failed") or []
    return f"{len(arm['seeds'])}" + (f" ({len(failed)} failed)" if failed else "")


def _columns(arms: list[dict[str, Any]]) -> list[str]:
    known = {m for arm in arms for m in arm.get("metrics") or {}}
    return [m for m in LEADING if m in known] + sorted(m for m in known if ":" in m)[:6]


def _metric(arm: dict[str, Any], metric: str) -> str:
    value = (arm.get("metrics") or {}).get(metric) or {}
    return pm(value.get("mean"), value.get("stderr"))


def _against_lora(arms: list[dict[str, Any]], metrics: list[str]) -> list[str]:
    def difference(arm: dict[str, Any], metric: str) -> str:
        value = ((arm.get("against") or {}).get("lora") or {}).get(metric)
        if not value or value.get("difference") is None:
            return ""
        low, high = value.get("interval") or (None, None)
        return f"{value['difference']:+.3g}" + ("" if low is None else f" [{low:+.3g}, {high:+.3g}]")

    rows = [[_label(arm), *(difference(arm, m) for m in metrics)] for arm in arms]
    rows = [row for row in rows if any(row[1:])]
    header = ["arm", *(plain(NAMES.get(m, m)) for m in metrics)]
    said = "Paired difference to LoRA, with its 95 % interval:\n"
    return [said, table(header, rows, right=range(1, len(header)))] if rows else []


def _predictions(arms: list[dict[str, Any]]) -> list[str]:
    def ratio(arm: dict[str, Any], which: str) -> str:
        return pm((arm.get(which) or {}).get("all"), None)

    rows = [[_label(a), ratio(a, "predicted"), ratio(a, "measured")] for a in arms if a.get("predicted")]
    said = "Size of the change beside LoRA's, predicted from the start and measured:\n"
    return [said, table(["arm", "predicted", "measured"], rows, right=(1, 2))] if rows else []


def _checks(checks: list[dict[str, Any]]) -> list[str]:
    verdict = {True: "yes", False: "no", None: "not measured"}
    signs = {">=": "≥", "<=": "≤"}
    rows = [
        [
            plain(c.get("what") or c["name"]),
            pm(c.get("value"), None),
            f"{signs.get(c['sense'], c['sense'])} {c['limit']:g}",
            verdict[c.get("passed")],
            "yes" if c.get("gate") else "reported only",
        ]
        for c in checks
    ]
    return ["Checks:\n", table(["what", "value", "asked for", "holds", "a gate"], rows, right=(1,))] if rows else []
