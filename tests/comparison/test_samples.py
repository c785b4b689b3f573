"""The answers that a comparison keeps of each run: of which rows, and the same in a batch as alone."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from milora.comparison.samples import answers, sample_rows, write_samples
from milora.training.masking import IGNORED


def row(prompt: int, answer: int, rest: int = 0) -> dict[str, list[int]]:
    ids = list(range(prompt + answer + rest))
    return {"input_ids": ids, "labels": [IGNORED] * prompt + ids[prompt : prompt + answer] + [IGNORED] * rest}


def test_the_first_rows_with_a_prompt_are_taken_up_to_the_first_answers_end():
    rows = [row(0, 4), row(2, 0), row(3, 2, rest=2), row(1, 1), row(2, 2)]
    assert sample_rows(rows, 2) == [{"prompt": [0, 1, 2], "target": [3, 4]}, {"prompt": [0], "target": [1]}]
    assert sample_rows(None, 2) == [] and sample_rows(rows, 0) == []


@pytest.fixture(scope="module")
def tokenizer(tiny_llama):
    return AutoTokenizer.from_pretrained(tiny_llama)


def test_an_answer_is_the_same_beside_a_longer_prompt(tiny_llama, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float64).train()
    prompts = [[5, 6, 7], [9] * 11]
    together = answers(model, tokenizer, prompts, 6)
    assert model.training
    assert together == [answers(model, tokenizer, [p], 6)[0] for p in prompts] and together[0] != together[1]


def test_base_and_tuned_answer_the_same_prompts(tiny_llama, tokenizer, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    tuned = AutoModelForCausalLM.from_pretrained(tiny_llama)
    with torch.no_grad():
        tuned.model.layers[0].self_attn.v_proj.weight.neg_()
    write_samples(tmp_path, tuned, base, tokenizer, [row(6, 3), row(4, 3)], 2, 6)
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [line["base"] for line in lines] == answers(base, tokenizer, [list(range(6)), list(range(4))], 6)
    assert [line["tuned"] for line in lines] == answers(tuned, tokenizer, [list(range(6)), list(range(4))], 6)
    assert lines[0]["base"] != lines[0]["tuned"]
    write_samples(tmp_path / "none", tuned, base, tokenizer, [row(0, 3)], 2, 6)
    assert not (tmp_path / "none").exists()
