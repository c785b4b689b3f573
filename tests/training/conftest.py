"""A small data set and a small recipe, in float32 on the CPU."""

import json
import random
from pathlib import Path

import pytest

from milora.recipes.schema import Recipe


@pytest.fixture(scope="session")
def pairs(tmp_path_factory) -> Path:
    """A JSONL file of 24 prompts and completions of different lengths."""
    draw = random.Random(0)
    rows = [
        {"prompt": f"What is {a} plus {b}?\n", "completion": f"It is {a + b}" + "." * draw.randrange(1, 9)}
        for a, b in ((draw.randrange(10), draw.randrange(1000)) for _ in range(24))
    ]
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def settings(tiny_llama, pairs, tmp_path) -> dict:
    """Keys of a recipe that trains 6 steps in under a second."""
    return {
        "model_name_or_path": str(tiny_llama),
        "dataset": str(pairs),
        "output_dir": str(tmp_path / "run"),
        "method": "milora",
        "lora_r": 4,
        "lora_dropout": 0.1,
        "target_modules": ["q_proj", "v_proj", "down_proj"],
        "dtype": "float32",
        "device": "cpu",
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "warmup_steps": 0,
        "logging_steps": 1,
        "save_strategy": "no",
        "eval_strategy": "no",
        "val_set_size": 0,
        "load_best_model_at_end": False,
        "seed": 7,
    }


@pytest.fixture
def full() -> dict:
    """Keys that turn ``settings`` into full fine-tuning, which takes none of an adapter."""
    return {"method": "full", "lora_r": 32, "lora_dropout": 0.05, "target_modules": "all-linear"}


@pytest.fixture
def recipe(settings) -> Recipe:
    return Recipe(**settings)
