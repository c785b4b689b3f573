"""A comparison folder as `milora compare` writes it, filled with invented numbers: only its form is real."""

import math
import random
from pathlib import Path
from typing import Any

from report.synthetic import METHODS, PROVENANCE, TYPES, run, score, write_json

CHECKS = [
    {
        "name": "forgetting PiSSA > LoRA",
        "what": "ratio of KL, mean over seeds",
        "value": 1.57,
        "limit": 1.25,
        "sense": ">=",
        "passed": True,
        "gate": True,
    },
    {
        "name": "forgetting LoRA > MiLoRA",
        "what": "ratio of KL, mean over seeds",
        "value": 1.01,
        "limit": 1.05,
        "sense": ">=",
        "passed": False,
        "gate": True,
    },
    {
        "name": "amplification",
        "what": "not measured here",
        "value": None,
        "limit": 1.5,
        "sense": ">=",
        "passed": None,
        "gate": True,
    },
    {
        "name": "minor against random",
        "what": "difference of validation loss",
        "value": -0.016,
        "limit": 0.0,
        "sense": "<=",
        "passed": True,
        "gate": False,
    },
]
MATCHED: list[dict[str, Any]] = [
    {
        "a": "lora",
        "b": "milora",
        "variant": "base",
        "r": [8, 8],
        "path": "steps",
        "comparable": True,
        "reason": None,
        "seeds": 3,
        "validation_loss": 0.944,
        "kl_a": 0.271,
        "kl_b": 0.244,
        "ratio": 1.11,
        "interval": [1.02, 1.2],
    },
    {
        "a": "lora",
        "b": "pissa",
        "variant": "base",
        "r": [8, 8],
        "path": "steps",
        "comparable": False,
        "reason": "the losses do not overlap",
        "seeds": 0,
    },
]


def make(
    folder: Path,
    labels: tuple[str, ...] = tuple(METHODS),
    seeds: tuple[int, ...] = (0, 1, 2),
    layers: int = 4,
    hostile: str = "",
    long: str = "",
) -> Path:
    """A comparison: MiLoRA at three ranks, one failed PiSSA run, a loss that is lost, measurements that are missing."""
    folder.mkdir(parents=True)
    (folder / "comparison.yaml").write_text("# A milora comparison.\nmethods: [lora, milora]\n", encoding="utf-8")
    arms: list[dict[str, Any]] = []
    for label in labels:
        for r in (4, 8, 16) if label == "milora" else (8,):
            arms.append(_arm(folder, label, r, seeds, layers, hostile, long))
    for arm in arms:
        arm["against"] = _against(arm, arms)
        arm["beside"] = _beside(arm)
    write_json(
        folder / "comparison.json",
        {
            "arms": arms,
            "pareto": _points(arms),
            "matched": MATCHED,
            "checks": CHECKS,
            "settings": {"seeds": list(seeds)},
            "provenance": PROVENANCE,
        },
    )
    write_json(folder / "selection.json", _selection(labels))
    write_json(
        folder / "base" / "eval" / "results.json", {"scores": [{**score("gsm8k", 0, 0), "value": 0.4, "stderr": 0.05}]}
    )
    write_json(
        folder / "runs" / "pissa-r8-lr0.0003-s3" / "failed.json",
        {"error": f"RuntimeError: out of memory {hostile}".strip(), "where": "training, step 12"},
    )
    return folder


def _points(arms: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Learning against forgetting at two steps."""
    points = [
        {
            "label": a["label"],
            "variant": "base",
            "r": a["r"],
            "learning_rate": a["learning_rate"],
            "seed": None,
            "score": a["metrics"]["validation_loss"]["mean"],
            "score_name": "validation_loss",
            "kl": a["metrics"]["kl"]["mean"],
            "on_front": a["method"] in ("lora", "milora", "mica"),
            "step": 48,
        }
        for a in arms
        if "kl" in a["metrics"] and a["r"] == 8
    ]
    return points + [
        p | {"score": p["score"] + 0.4, "kl": p["kl"] * 0.6, "on_front": False, "step": 16} for p in points
    ]


def _selection(labels: tuple[str, ...]) -> dict[str, Any]:
    """Four rates for each arm, the last of which failed."""
    return {
        label: {
            "criterion": "validation loss",
            "rates": [
                {
                    "learning_rate": lr,
                    "seeds": 1,
                    "validation_loss": None if lr == 3e-3 else METHODS[label][5] + add,
                    "stderr": 0.01 if add else None,
                    "chosen": lr == 3e-4,
                }
                for lr, add in ((1e-4, 0.08), (3e-4, 0.0), (1e-3, 0.05), (3e-3, 0.0))
            ],
        }
        for label in labels
    }


def _arm(
    folder: Path, label: str, r: int, seeds: tuple[int, ...], layers: int, hostile: str, long: str
) -> dict[str, Any]:
    method, top, bottom, size, kl, loss = METHODS[label]
    shown = f"{label}{long}"
    for seed in seeds:
        name = f"{shown}-r{r}-lr0.0003-s{seed}"
        run(
            folder / "runs" / name[-200:],
            label,
            r,
            3e-4,
            seed,
            layers,
            hostile=hostile,
            lost_at=32 if (label, seed) == ("pissa", 1) else None,
        )
    shift = 0.02 * math.log2(r / 8)
    values = {
        "validation_loss": loss - shift,
        "kl": kl * (1 + 2 * shift),
        "forgetting": 3.261 + kl * (1 + 2 * shift),
        "gsm8k:exact_match": 0.6 + shift,
        "amplification": 0.28 / size,
        "phi_left_top": top,
        "phi_left_bottom": bottom,
        "phi_left_random": 0.09,
    }
    if label == "random_components":
        del values["gsm8k:exact_match"]  # not measured
    found = {}
    for name, value in values.items():
        by_seed = {str(s): value * (1 + 0.03 * random.Random(f"{name} {s}").gauss(0, 1)) for s in seeds}
        mean = sum(by_seed.values()) / len(by_seed)
        spread = math.sqrt(sum((v - mean) ** 2 for v in by_seed.values()) / max(1, len(by_seed) - 1) / len(by_seed))
        found[name] = {"mean": mean, "stderr": spread if len(by_seed) > 1 else None, "by_seed": by_seed}
    ratios = {"by_type": {t: size * (1 + 0.05 * i) for i, t in enumerate(TYPES)}, "all": size}
    measured = {"by_type": {t: size * (0.9 + 0.04 * i) for i, t in enumerate(TYPES)}, "all": 0.94 * size}
    return {
        "label": shown,
        "method": method,
        "r": r,
        "learning_rate": 3e-4,
        "seeds": list(seeds),
        "failed": [3] if label == "pissa" else [],
        "trainable_parameters": 829440 * r,
        "metrics": found,
        "predicted": ratios if label != "lora" else None,
        "measured": measured if label != "lora" else None,
    }


def _beside(arm: dict[str, Any]) -> dict[str, Any]:
    """A quarter of LoRA's numbers, and a gain by the rank."""
    if arm["label"] == "lora":
        return {}
    return {"lora": {"footprint": 0.25, "gain_ratio": {"gsm8k:exact_match": arm["r"] / 4}}}


def _against(arm: dict[str, Any], arms: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {"lora": {}, "base": {}}
    for other in (a for a in arms if a["method"] == "lora" and a is not arm):
        for name in ("validation_loss", "kl"):
            mine, its = arm["metrics"][name]["by_seed"], other["metrics"][name]["by_seed"]
            d = [mine[s] - its[s] for s in mine]
            low, high = (min(d) - 0.01, max(d) + 0.01) if len(d) > 1 else (None, None)
            found["lora"][name] = {"difference": sum(d) / len(d), "interval": [low, high], "n": len(d), "level": 0.95}
    if "gsm8k:exact_match" in arm["metrics"]:
        found["base"]["gsm8k:exact_match"] = {"difference": 0.2, "interval": [0.1, 0.3], "n": 3, "level": 0.95}
    return {side: values for side, values in found.items() if values}
