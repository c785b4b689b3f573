"""Folders as runs and comparisons write them, filled with invented numbers: only their form is real."""

import json
import math
import random
from pathlib import Path
from typing import Any

import yaml

TYPES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# label: (method, phi top, phi bottom, ||dW|| to LoRA's, KL, validation loss)
METHODS = {
    "lora": ("lora", 0.10, 0.10, 1.0, 0.285, 0.937),
    "milora": ("milora", 0.04, 0.64, 0.68, 0.244, 0.944),
    "pissa": ("pissa", 0.65, 0.04, 1.7, 0.447, 0.998),
    "random_components": ("random_components", 0.12, 0.06, 1.1, 0.236, 0.960),
    "mica": ("mica", 0.0, 1.0, 0.9, 0.180, 0.985),
}
HOSTILE = '<script>alert("x")</script><img src=x onerror=alert(1)> & "quoted" ]]> {{ 7 * 7 }} $x^2$'


def write_json(path: Path, record: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1), encoding="utf-8")


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def recipe(method: str, r: int, lr: float, seed: int, **more: Any) -> str:
    keys = {
        "name": None,
        "model_name_or_path": "SmolLM2-135M-Instruct",
        "dtype": "float32",
        "method": method,
        "lora_r": r,
        "lora_alpha": float(r),
        "lora_dropout": 0.05,
        "target_modules": ["q_proj", "k_proj", "v_proj"],
        "method_settings": {},
        "dataset": "math/gsm8k_train.jsonl.gz",
        "num_train_epochs": 3.0,
        "learning_rate": lr,
        "lr_scheduler_type": "linear",
        "warmup_steps": 5,
        "seed": seed,
    }
    return "# The resolved recipe of a milora run.\n" + yaml.safe_dump(keys | more, sort_keys=False)


PROVENANCE = {
    "time": "2026-11-20T10:00:00+00:00",
    "command": ["milora", "compare", "grid.yaml"],
    "versions": {
        "python": "3.11.7",
        "milora": "0.1.0",
        "torch": "2.13.0+cpu",
        "transformers": "5.23.0",
        "peft": "0.21.2",
    },
    "commit": "37474695a9ad0795316be61ca941df92665b7a0d",
    "hardware": {"cpu": "AMD EPYC", "cores": 2, "memory": 25276502016, "gpus": []},
    "seeds": {"seed": 0},
    "data_hash": "7daa77542c54c446ca9cc04f24c2d362a0c15cc0d8d0574fcf1dbe354e06adac",
    "base_fingerprint": "6f4bd9280ccfc81a646d45118db929b7ea839fdb24f8bf72bdc4edcb1c20ef4e",
    "trainable_parameters": 6635520,
    "parameters": 147786048,
}


def metrics(rng: random.Random, final: float, steps: int, lost_at: int | None = None) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        if step % 4 and step != 1:
            continue
        loss: float | None = final + 1.2 * math.exp(-5 * step / steps) + rng.gauss(0, 0.03)
        if lost_at is not None and step >= lost_at:
            loss = None
        records.append(
            {"step": step, "epoch": 3 * step / steps, "time": 1.7e9 + step, "loss": loss, "learning_rate": 1e-4}
        )
        if step % (steps // 6) == 0:
            records.append(
                {
                    "step": step,
                    "epoch": 3 * step / steps,
                    "time": 1.7e9,
                    "eval_loss": final + 0.9 * math.exp(-4 * step / steps),
                }
            )
    return records


def phi(rng: random.Random, layers: int, layer: int, level: float) -> float:
    return min(1.0, max(0.0, level + 0.08 * math.sin(6 * layer / layers) * (0.02 < level < 0.98) + rng.gauss(0, 0.015)))


def analysis(rng: random.Random, label: str, layers: int, types: list[str], r: int = 8) -> dict[str, Any]:
    _, top, bottom, size, _, _ = METHODS[label]
    modules = []
    for layer in range(layers):
        for i, name in enumerate(types):
            sides = {
                side: {
                    "top": phi(rng, layers, layer, top * shrink + 0.01 * i),
                    "bottom": phi(rng, layers, layer, bottom * shrink - 0.01 * i),
                    "random": phi(rng, layers, layer, 0.09),
                }
                for side, shrink in (("left", 1.0), ("right", 0.7))
            }
            spectrum = [size * math.exp(-k / (r * (0.6 if label == "pissa" else 1.0))) / (1 + i) for k in range(2 * r)]
            modules.append(
                {
                    "module": f"model.layers.{layer}.self_attn.{name}",
                    "layer": layer,
                    "type": name,
                    "shape": [576, 576],
                    "norm_W": 97.4,
                    "norm_dW": size,
                    "relative": size / 97.4,
                    "phi": sides,
                    "projection": {k: {"W": 5.0, "dW": 1.0, "amplification": 0.2} for k in ("dW", "W", "random")},
                    "spectrum": spectrum,
                    "effective_rank": 0.7 * r,
                    "intruders": 3 if label == "pissa" else 0,
                }
            )
    mean = {
        side: {p: sum(m["phi"][side][p] for m in modules) / len(modules) for p in ("top", "bottom", "random")}
        for side in ("left", "right")
    }
    summary = {"norm_dW": size, "relative": size / 97.4, "amplification": 0.3 / size, "phi": mean, "intruders": 0}
    return {
        "r": r,
        "seed": 0,
        "against": "base",
        "modules": modules,
        "summary": summary | {"by_type": {}, "by_layer": {}},
    }


def forgetting(kl: float) -> dict[str, Any]:
    return {
        "text": "wikitext-103",
        "cross_entropy": 3.261 + kl,
        "cross_entropy_stderr": 0.05,
        "floor": 3.261,
        "kl": kl,
        "kl_stderr": 0.01,
        "base_loss": 3.3,
        "tuned_loss": 3.3 + kl,
        "loss_increase_stderr": 0.01,
        "base_perplexity": 27.1,
        "tuned_perplexity": 31.0,
        "tokens": 1524,
        "blocks": 12,
        "block": 128,
    }


def completions(task: str, right: list[bool], written: str) -> list[dict[str, Any]]:
    return [
        {
            "task": task,
            "doc_id": i,
            "prompt_hash": f"{i:064x}",
            "prompt": f"Question {i}: how many apples?\nAnswer:",
            "completion": f"{written} The answer is {12 if ok else 7}.",
            "target": "12",
            "extracted": {},
            "scores": {"exact_match,none": float(ok)},
        }
        for i, ok in enumerate(right)
    ]


def score(task: str, base: float, tuned: float) -> dict[str, Any]:
    return {
        "task": task,
        "metric": "exact_match",
        "filter": "none",
        "base": base,
        "base_stderr": 0.05,
        "tuned": tuned,
        "tuned_stderr": 0.05,
        "difference": tuned - base,
        "difference_stderr": 0.06,
        "n": 10,
        "version": "1.0",
        "higher_is_better": True,
    }


def run(
    path: Path,
    label: str,
    r: int = 8,
    lr: float = 3e-4,
    seed: int = 0,
    layers: int = 4,
    types: list[str] = TYPES,
    hostile: str = "",
    lost_at: int | None = None,
) -> Path:
    """A finished run with everything that a run can hold."""
    rng = random.Random(f"{label} {r} {lr} {seed}")
    method, _, _, _, kl, loss = METHODS[label]
    noise = random.Random(seed).gauss(0, 0.03)  # common to all methods of a seed
    path.mkdir(parents=True)
    (path / "recipe.yaml").write_text(recipe(method, r, lr, seed, description=hostile or None), encoding="utf-8")
    write_json(path / "provenance.json", PROVENANCE | {"seeds": {"seed": seed}})
    write_lines(path / "metrics.jsonl", metrics(rng, loss + noise / 4, 48, lost_at))
    write_json(path / "forgetting.json", forgetting(kl * (1 + noise)))
    write_json(path / "analysis.json", analysis(rng, label, layers, types, r))
    rows = [
        {
            "step": step,
            "epoch": step / 16,
            "forgetting": None if step == 32 else forgetting(kl * (step / 48) ** 0.5),
            "scores": [
                {
                    "task": "gsm8k",
                    "metric": "exact_match",
                    "filter": "none",
                    "value": 0.1 + step / 160,
                    "stderr": 0.05,
                    "runs": 1,
                }
            ],
            "losses": {"own wording": 3 - step / 24, "other wording": 3.0 - step / 90},
        }
        for step in (0, 16, 32, 48)
    ]
    write_json(path / "retention.json", {"rows": rows, "settings": {}})
    base, tuned = [i % 3 == 0 for i in range(10)], [i % 3 != 1 and i not in (3, 9) for i in range(10)]
    rows = [score("gsm8k", sum(base) / 10, sum(tuned) / 10)]
    write_json(
        path / "eval" / "results.json",
        {"comparison": rows, "base": {"scores": [{**rows[0], "value": 0.4}]}, "tuned": {}},
    )
    write_lines(path / "eval" / "gsm8k.base.jsonl", completions("gsm8k", base, hostile or "I guess."))
    write_lines(
        path / "eval" / "gsm8k.tuned.jsonl", completions("gsm8k", tuned, hostile or f"{label} counts: 15 - 3 = 12.")
    )
    return path
