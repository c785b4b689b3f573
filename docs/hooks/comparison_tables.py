"""Comparisons out of benchmarks/results, as `milora compare` writes them: shown as soon as their files are there.

What a file does not hold is an empty cell, never a number.
"""

import json
from pathlib import Path
from typing import Any

import measurements
from markdown_tables import plain, table
from measurements import pm

# The first columns, where they were measured; the scores of tasks follow.
LEADING = (
    "validation_loss",
    "wording_nll",
    "wording_accuracy",
    "kl",
    "amplification",
    "phi_left_top",
    "phi_left_bottom",
)
NAMES = {"validation_loss": "validation loss", "wording_nll": "NLL of the wording", "kl": "KL from the base"}
TASKS = 6  # columns of scores at most


def comparisons(stem: str) -> str:
    """Every comparison whose file's name begins so; or that there is none yet."""
    paths = [p for p in sorted(measurements.RESULTS.glob("*.json")) if p.stem.replace("-", "_").startswith(stem)]
    found = {path: json.loads(path.read_text(encoding="utf-8")) for path in paths}
    shown = [_comparison(path, content) for path, content in found.items() if "arms" in content]
    missing = f"Not measured yet: there is no file `{stem}*.json` in `benchmarks/results`.\n"
    return "\n".join(shown) if shown else missing


def _comparison(path: Path, content: dict[str, Any]) -> str:
    title = f"### {plain(str(content.get('name') or path.stem).replace('_', ' '))}\n"
    about = [plain(content["description"]) + "\n"] if content.get("description") else []
    variants = list(dict.fromkeys(arm.get("variant") for arm in content["arms"]))
    parts = [title, *about, f"File: `benchmarks/results/{path.name}`. Means over seeds ± standard error.\n"]
    for variant in variants:
        own = [arm for arm in content["arms"] if arm.get("variant") == variant and arm.get("chosen", True)]
        named = [f"**{plain(variant.replace('_', ' '))}**\n"] if variant and len(variants) > 1 else []
        metrics = _columns(own)
        parts += [*named, _arms(own, metrics), *_against_lora(own, metrics), *_predictions(own)]
        parts += _matched([pair for pair in content.get("matched") or [] if pair.get("variant") == variant])
    return "\n".join([*parts, *_checks(content.get("checks") or [])])


def _columns(arms: list[dict[str, Any]]) -> list[str]:
    known = {metric for arm in arms for metric in arm.get("metrics") or {}}
    # TASK:METRIC is a score; kl@16 is a step's, phi_left_top:q_proj a module type's.
    scores = [m for m in known if ":" in m and "@" not in m and m.partition(":")[0] not in known]
    return [m for m in LEADING if m in known] + sorted(scores)[:TASKS]


def _header(metrics: list[str]) -> list[str]:
    return [plain(NAMES.get(m, m.replace("_", " "))) for m in metrics]


def _arms(arms: list[dict[str, Any]], metrics: list[str]) -> str:
    rows = [[_label(arm), _rate(arm), _seeds(arm), *(_metric(arm, m) for m in metrics)] for arm in arms]
    return table(["arm", "learning rate", "seeds", *_header(metrics)], rows, right=range(1, 3 + len(metrics)))


def _label(arm: dict[str, Any]) -> str:
    return plain(f"{arm['label']}, r = {arm['r']}" if arm.get("r") else arm["label"])


def _rate(arm: dict[str, Any]) -> str:
    return "" if arm.get("learning_rate") is None else f"{arm['learning_rate']:g}"


def _seeds(arm: dict[str, Any]) -> str:
    failed = arm.get("failed") or []
    return f"{len(arm['seeds'])}" + (f" ({len(failed)} failed)" if failed else "")


def _metric(arm: dict[str, Any], metric: str) -> str:
    value = (arm.get("metrics") or {}).get(metric) or {}
    return pm(value.get("mean"), value.get("stderr"))


def _interval(value: dict[str, Any]) -> str:
    low, high = value.get("interval") or (None, None)
    return "" if low is None else f" [{low:.3g}, {high:.3g}]"


def _against_lora(arms: list[dict[str, Any]], metrics: list[str]) -> list[str]:
    def difference(arm: dict[str, Any], metric: str) -> str:
        value = ((arm.get("against") or {}).get("lora") or {}).get(metric) or {}
        return "" if value.get("difference") is None else f"{value['difference']:+.3g}{_interval(value)}"

    rows = [[_label(arm), *(difference(arm, m) for m in metrics)] for arm in arms]
    rows = [row for row in rows if any(row[1:])]
    said = "Paired difference to LoRA, with its interval:\n"
    return [said, table(["arm", *_header(metrics)], rows, right=range(1, 1 + len(metrics)))] if rows else []


def _predictions(arms: list[dict[str, Any]]) -> list[str]:
    def ratio(arm: dict[str, Any], which: str) -> str:
        return pm((arm.get(which) or {}).get("all"), None)

    rows = [[_label(a), ratio(a, "predicted"), ratio(a, "measured")] for a in arms if a.get("predicted")]
    said = "Size of the change beside LoRA's, predicted from the start and measured:\n"
    return [said, table(["arm", "predicted", "measured"], rows, right=(1, 2))] if rows else []


def _matched(pairs: list[dict[str, Any]]) -> list[str]:
    def ratio(pair: dict[str, Any]) -> str:
        if not pair.get("comparable"):
            return plain(pair.get("reason") or "")
        return f"{pm(pair.get('ratio'), None)}{_interval(pair)}"

    rows = [
        [plain(f"{pair['a']} over {pair['b']}"), pair.get("path"), pm(pair.get("validation_loss"), None), ratio(pair)]
        for pair in pairs
    ]
    loss = NAMES[pairs[0].get("loss", "validation_loss")] if pairs else ""
    said = f"Forgetting at equal learning: ratio of the KLs at the least {loss} that both reach:\n"
    return [said, table(["pair", "along its", loss, "ratio of KLs"], rows, right=(2,))] if rows else []


def _checks(checks: list[dict[str, Any]]) -> list[str]:
    verdict = {True: "yes", False: "no", None: "not measured"}
    signs = {">=": "≥", "<=": "≤"}
    rows = [
        [
            plain(c["name"]),
            pm(c.get("value"), None),
            f"{signs.get(c['sense'], c['sense'])} {c['limit']:g}",
            verdict[c.get("passed")],
            "yes" if c.get("gate") else "reported only",
        ]
        for c in checks
    ]
    return ["Checks:\n", table(["what", "value", "asked for", "holds", "a gate"], rows, right=(1,))] if rows else []
