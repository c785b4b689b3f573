"""A small grid on the tiny random Llama: rows, a text, a model, and a store of its own."""

import json
import random
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 120 rows to learn, a text to forget and questions to ask."""
    folder, draw = tmp_path_factory.mktemp("sums"), random.Random(0)
    numbers = [(draw.randrange(10), draw.randrange(1000)) for _ in range(120)]
    rows = [{"prompt": f"What is {a} plus {b}?\n", "completion": f"It is {a + b}."} for a, b in numbers]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "text.txt").write_text(" ".join(f"{draw.randrange(10**6)} and" for _ in range(200)), encoding="utf-8")
    asked = [{"question": f"What is {a} plus 1?", "choices": [str(a), str(a + 1)], "answer": 1} for a in range(4)]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked), encoding="utf-8")
    return folder


@pytest.fixture
def small(tiny_llama: Path, sums: Path, tmp_path: Path) -> dict:
    """The plain data of a grid whose runs take a second each."""
    return {
        "base": {
            "model_name_or_path": str(tiny_llama),
            "dataset": str(sums / "rows.jsonl"),
            "dtype": "float32",
            "device": "cpu",
            "lora_r": 4,
            "lora_dropout": 0.0,
            "target_modules": ["q_proj", "down_proj"],
            "max_steps": 4,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-3,
            "warmup_steps": 0,
            "val_set_size": 8,
        },
        "arms": [{"label": "lora", "method": "lora"}, {"label": "milora", "method": "milora"}],
        "seeds": [0, 1],
        "measure": {
            "at": [2, 4],
            "forgetting": {"text": str(sums / "text.txt"), "block": 32, "max_tokens": 128, "batch_size": 4},
            "analysis": {"r": 4},
            "samples": 2,
            "sample_tokens": 8,
        },
        "output_dir": str(tmp_path / "out"),
    }
