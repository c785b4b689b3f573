"""The tasks about a book on a tiny model: order, sums and counts against a count by hand."""

import json

import pytest
import torch

from milora.errors import MiloraError
from milora.evaluation import evaluate, evaluate_base_and_tuned

TASKS = ["milora_book_mcq", "milora_book_mcq_letters", "milora_book_cloze", "milora_book_wording"]
TEXT = "The graves of Chiriqui hold gold. The pits are lined with river stones. A few are empty."


@pytest.fixture
def book(tmp_path):
    folder = tmp_path / "book"
    folder.mkdir()
    (folder / "tale.txt").write_text(TEXT)
    question = {"choices": ["gold", "stones", "clay", "ash"], "answer": 1}
    evidence = ["pits are lined with river stones", "A few are empty.", "The graves of Chiriqui", "gold"]
    mcq = [question | {"question": f"What is in pit {i}?", "evidence": words} for i, words in enumerate(evidence)]
    cloze = [question | {"question": f"Pit {i} holds ____, as was said.", "evidence": "empty"} for i in range(3)]
    for kind, rows in (("mcq", mcq), ("cloze", cloze)):
        (folder / f"tale_{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def _scores(result):
    return {(row["task"], row["metric"]): row for row in result["scores"]}


def _logits_of(model, tokenizer, context, span):
    before = tokenizer(context)["input_ids"] or [tokenizer.bos_token_id]
    targets = torch.tensor(tokenizer(span)["input_ids"])  # (tokens,)
    ids = torch.cat([torch.tensor(before), targets])[None]  # (1, tokens)
    with torch.no_grad():
        logits = model(ids).logits[0, len(before) - 1 : -1].float()  # (tokens, vocab)
    return logits, targets


def test_wording_equals_a_count_by_hand(tiny_model, tokenizer, book):
    result = evaluate(tiny_model, tokenizer, TASKS, data_dir=book, batch_size=3)
    records = result["completions"]["milora_book_wording"]
    assert len(records) == 5
    for record in records:
        (span,) = record["continuations"]
        logits, targets = _logits_of(tiny_model, tokenizer, record["prompt"], span)
        nll = torch.nn.functional.cross_entropy(logits, targets).item()
        right = (logits.argmax(-1) == targets).float().mean().item()
        assert record["scores"] == {
            "nll,none": pytest.approx(nll, abs=1e-4),
            "token_accuracy,none": pytest.approx(right),
            "nll_per_byte,none": pytest.approx(nll * len(targets) / len(span), abs=1e-4),
            "exact,none": float(right == 1),
        }
    value = _scores(result)["milora_book_wording", "nll"]
    assert value["value"] == pytest.approx(sum(r["scores"]["nll,none"] for r in records) / 5)
    assert value["higher_is_better"] is False
    assert value["stderr"] > 0
    json.dumps(result)


def test_a_model_that_knows_the_text_says_it(tiny_model, tokenizer, book):
    """Trained on the book until its first choices are the book's, it scores one; the base far less."""
    ids = torch.tensor([[tokenizer.bos_token_id] + tokenizer(TEXT)["input_ids"]])
    before = _scores(evaluate(tiny_model, tokenizer, "milora_book_wording", data_dir=book))
    optimizer = torch.optim.Adam(tiny_model.parameters(), lr=3e-3)
    for _ in range(120):
        tiny_model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = _scores(evaluate(tiny_model, tokenizer, "milora_book_wording", data_dir=book, batch_size=2))
    assert before["milora_book_wording", "token_accuracy"]["value"] < 0.2
    assert after["milora_book_wording", "token_accuracy"]["value"] > 0.9
    assert after["milora_book_wording", "nll"]["value"] < before["milora_book_wording", "nll"]["value"] / 4


def test_order_of_the_choices_is_the_task_seeds(tiny_model, tokenizer, book):
    def prompts(seed):
        result = evaluate(tiny_model, tokenizer, TASKS[:2], data_dir=book, task_seed=seed)
        assert result["settings"]["task_seed"] == seed
        listed, letters = (result["completions"][task] for task in TASKS[:2])
        assert [r["prompt"] for r in listed] == [r["prompt"] for r in letters]
        assert all(r["continuations"] == [" A", " B", " C", " D"] for r in letters)
        # The target is the choice that is right, wherever it stands.
        for record in listed:
            assert record["continuations"][int(record["target"])] == " stones"
        return [record["prompt"] for record in listed]

    assert prompts(None)[0] == "Question: What is in pit 0?\nA. gold\nB. stones\nC. clay\nD. ash\nAnswer:"
    assert prompts(1) == prompts(1)
    assert len({tuple(prompts(seed)) for seed in range(3)}) == 3


def test_cloze_scores_the_rest_of_the_sentence(tiny_model, tokenizer, book):
    result = evaluate(tiny_model, tokenizer, "milora_book_cloze", data_dir=book)
    record = result["completions"]["milora_book_cloze"][0]
    assert record["prompt"] == "Pit 0 holds"
    assert record["continuations"][0] == " gold, as was said."
    for value, ending in zip(record["loglikelihoods"], record["continuations"], strict=True):
        logits, targets = _logits_of(tiny_model, tokenizer, record["prompt"], ending)
        total = -torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item()
        assert value == pytest.approx(total, abs=1e-3)


def test_wording_is_compared_span_by_span(lora, tokenizer, book):
    rows = evaluate_base_and_tuned(lora, tokenizer, "milora_book_wording", data_dir=book)["comparison"]
    assert {row["metric"] for row in rows} == {"nll", "token_accuracy", "nll_per_byte", "exact"}
    assert all(row["difference_stderr"] is not None for row in rows)


def test_a_long_context_loses_its_beginning_as_in_the_harness(tiny_model, tokenizer, book):
    (book / "tale.txt").write_text("x " * 400 + TEXT)
    task = {"tasks": "milora_book_wording", "data_dir": book}
    short = evaluate(tiny_model, tokenizer, max_length=64, **task)["completions"]["milora_book_wording"]
    for record in short:
        (span,) = record["continuations"]
        context = record["prompt"][-(65 - len(span)) :]  # a token is a byte
        logits, targets = _logits_of(tiny_model, tokenizer, context, span)
        nll = torch.nn.functional.cross_entropy(logits, targets).item()
        assert record["scores"]["nll,none"] == pytest.approx(nll, abs=1e-4)
    with pytest.raises(MiloraError, match=r"max_length: got 600, allowed: 2 to 512"):
        evaluate(tiny_model, tokenizer, max_length=600, **task)
