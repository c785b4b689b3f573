"""A tiny model with a trained-looking LoRA, its tokenizer, and local rows of three tasks."""

import json
from pathlib import Path

import pytest
import torch


@pytest.fixture
def tokenizer(tiny_llama):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_llama)


@pytest.fixture
def tiny_model(tiny_llama):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_llama)


@pytest.fixture
def lora(tiny_model):
    """A PEFT LoRA whose B is not zero, so that base and tuned differ."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny_model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return model


@pytest.fixture
def local_rows(tmp_path) -> Path:
    """Short rows, so that the prompts fit the tiny model's 512 bytes of context."""
    folder = tmp_path / "rows"
    folder.mkdir()

    def write(name, rows):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    write("boolq.jsonl", [{"instruction": f"Is {i} even?", "answer": str(i % 2 == 0).lower()} for i in range(6)])
    write("gsm8k.jsonl", [{"question": f"What is {i} + 1?", "answer": f"#### {i + 1}"} for i in range(4)])
    questions = [
        {"question": f"Which letter is number {i}?", "choices": ["a", "bb", "ccc"], "answer": i % 3} for i in range(8)
    ]
    write("questions.jsonl", questions)
    return folder


@pytest.fixture
def no_network(monkeypatch):
    """Any attempt to open a connection or to look up a name fails the test."""
    import socket

    def refuse(*args, **kwargs):
        raise AssertionError(f"network call: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
