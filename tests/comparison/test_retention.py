"""Retention by epoch: every number against the function that measures it alone, and rows that are kept."""

import json
import math
import re
from itertools import chain

import pytest
import torch

from milora.analysis import forgetting, read_text
from milora.comparison.retention import FILE, retention
from milora.comparison.wording import paragraphs, wording
from milora.errors import MiloraError
from milora.evaluation import evaluate
from milora.models.load import load_tokenizer
from milora.recipes import load_recipe
from milora.runs.folder import read_json, write_json
from milora.runs.tuned import load_tuned
from milora.training.train import train

PARAGRAPHS = [f"Town {name} lies {7**n} miles inland, where {name} men grow maize." for n, name in enumerate("abcdef")]


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """A book of six paragraphs, five questions about it and five sentences with a blank."""
    folder = tmp_path_factory.mktemp("book")
    (folder / "towns.txt").write_text("\n\n".join(PARAGRAPHS) + "\n")
    choices = ["maize", "cotton", "salt", "gold"]
    mcq = [
        {"question": f"What grows at {name}?", "choices": choices, "answer": 0, "evidence": f"{name} men grow maize"}
        for name in "abcde"
    ]
    cloze = [row | {"question": f"where {name} men grow ____."} for row, name in zip(mcq, "abcde", strict=True)]
    for kind, rows in (("mcq", mcq), ("cloze", cloze)):
        (folder / f"towns_{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def keys(tiny_llama, book, output):
    return {
        "model_name_or_path": str(tiny_llama), "dataset": str(book / "towns.txt"), "output_dir": str(output),
        "method": "mica", "lora_r": 4, "lora_dropout": 0.0, "target_modules": ["q_proj", "v_proj"], "dtype": "float32",
        "device": "cpu", "num_train_epochs": 2, "per_device_train_batch_size": 2, "learning_rate": 0.05,
        "warmup_steps": 0, "eval_strategy": "no", "save_strategy": "epoch", "save_total_limit": None, "seed": 3,
    }  # fmt: skip


@pytest.fixture(scope="module")
def trained(tiny_llama, book, tmp_path_factory):
    return train(load_recipe(None, keys(tiny_llama, book, tmp_path_factory.mktemp("runs") / "run")))


@pytest.fixture
def run(trained, tmp_path):
    """A copy, so that each test finds nothing measured."""
    import shutil

    from milora.runs import RunFolder

    return RunFolder(shutil.copytree(trained.path, tmp_path / "run"))


def asked(book):
    return {
        "tasks": ["milora_book_mcq_letters", "milora_book_cloze"], "runs": 3, "tasks_at": [0, 6], "data_dir": str(book),
        "text": str(book / "towns.txt"), "block": 64, "losses": {"wording": str(book / "towns.txt")},
    }  # fmt: skip


def own_loss(model, tokenizer):
    """-log p and the share of first choices, paragraph by paragraph, without batches."""
    loss, right, count = 0.0, 0, 0
    for text in PARAGRAPHS:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            log_p = torch.log_softmax(model(ids).logits[0, :-1].double(), dim=-1)
        loss -= float(log_p.gather(-1, ids[0, 1:, None]).sum())
        right += int((log_p.argmax(-1) == ids[0, 1:]).sum())
        count += ids.shape[1] - 1
    return loss / count, right / count, count


def test_every_number_is_what_its_function_measures_alone(run, book):
    record = retention(run.path, **asked(book))
    assert record == read_json(run.path / FILE)
    base, middle, end = record["rows"]
    assert [(row["step"], row["epoch"]) for row in record["rows"]] == [(0, 0.0), (3, 1.0), (6, 2.0)]
    tuned = load_tuned(run.path)
    model, tokenizer = tuned.model.eval(), tuned.tokenizer
    text = read_text(book / "towns.txt")
    assert end["forgetting"] == forgetting(model, tokenizer, text, block=64).as_dict()
    assert base["forgetting"]["kl"] == 0 < middle["forgetting"]["kl"] < end["forgetting"]["kl"]
    for row, side in ((end, model), (base, model.get_base_model())):
        context = model.disable_adapter() if row is base else torch.no_grad()
        with context:
            loss, accuracy, _ = own_loss(side, tokenizer)
        assert row["losses"]["wording"] == pytest.approx(loss, abs=1e-5)
        assert row["accuracies"]["wording"] == pytest.approx(accuracy)
    assert base["losses"]["wording"] > middle["losses"]["wording"] > end["losses"]["wording"]
    assert middle["scores"] == []
    by_seed = [
        evaluate(model, tokenizer, "milora_book_mcq_letters", data_dir=book, task_seed=seed)["scores"][0]
        for seed in range(3)
    ]
    values = [row["value"] for row in by_seed]
    mean = sum(values) / 3
    assert len(set(values)) > 1
    (found,) = [s for s in end["scores"] if (s["task"], s["metric"]) == ("milora_book_mcq_letters", "acc")]
    assert found["value"] == pytest.approx(mean)
    assert found["stderr"] == pytest.approx(math.sqrt(sum((x - mean) ** 2 for x in values) / 2 / 3))
    assert (found["runs"], found["n"]) == (3, 5)


def test_a_task_whose_runs_do_not_differ_is_run_once(run, book, monkeypatch):
    calls = []

    def noted(*args, **settings):
        calls.append((args[2], settings["task_seed"], settings["limit"]))
        return evaluate(*args, **settings)

    monkeypatch.setattr("milora.comparison.retention.evaluate", noted)
    record = retention(run.path, **asked(book))
    scores = {(s["task"], s["runs"], s["stderr"] is None) for row in record["rows"] for s in row["scores"]}
    assert {task for task, runs, absent in scores if runs == 1 and absent} == {"milora_book_cloze"}
    assert {task for task, runs, _ in scores if runs == 3} == {"milora_book_mcq_letters"}
    # Both tasks at two steps: once for the one, three times for the other, and each is probed once.
    assert len([c for c in calls if c[2] is None]) == 2 * (1 + 3)
    assert [c[:2] for c in calls if c[2] is not None] == [("milora_book_mcq_letters", 1), ("milora_book_cloze", 1)]


def test_a_stopped_measurement_goes_on_row_by_row(run, book, monkeypatch):
    settings = asked(book) | {"tasks": []}
    whole = retention(run.path, **settings)
    write_json(run.path / FILE, whole | {"rows": whole["rows"][:2]})
    measured = []
    monkeypatch.setattr(
        "milora.comparison.retention.wording",
        lambda model, rows, **k: measured.append(1) or wording(model, rows, **k),
    )
    assert retention(run.path, **settings) == whole
    assert len(measured) == 1
    assert retention(run.path, **settings) == whole
    assert len(measured) == 1
    with pytest.raises(MiloraError, match=r"retention: .* was measured with other runs; --overwrite replaces it"):
        retention(run.path, **settings | {"runs": 4})
    assert retention(run.path, overwrite=True, **settings | {"runs": 4})["settings"]["runs"] == 4
    assert len(measured) == 4


def test_a_base_row_of_another_run_is_taken_over(run, book):
    settings = asked(book) | {"tasks": []}
    row = {"step": 0, "epoch": 0.0, "forgetting": None, "losses": {"wording": 1.5}, "accuracies": {}, "scores": []}
    assert retention(run.path, base_row=row, **settings)["rows"][0] == row


def test_full_fine_tuning_and_a_run_without_its_last_checkpoint(tiny_llama, book, tmp_path):
    adapter = {"lora_r": 32, "lora_dropout": 0.05, "target_modules": "all-linear"}
    full = keys(tiny_llama, book, tmp_path / "full") | adapter
    full |= {"method": "full", "learning_rate": 1e-3, "save_strategy": "steps", "save_steps": 4}
    run = train(load_recipe(None, full))
    record = retention(run.path, losses={"wording": str(book / "towns.txt")}, text=str(book / "towns.txt"), block=64)
    assert [row["step"] for row in record["rows"]] == [0, 4, 6]
    tuned = load_tuned(run.path)
    loss, accuracy, _ = own_loss(tuned.model, tuned.tokenizer)
    assert record["rows"][-1]["losses"]["wording"] == pytest.approx(loss, abs=1e-5)
    assert record["rows"][-1]["accuracies"]["wording"] == pytest.approx(accuracy)
    kls = [row["forgetting"]["kl"] for row in record["rows"]]
    assert 0 == kls[0] < kls[1] < kls[2]


def test_what_cannot_be_measured(run, book, tmp_path):
    with pytest.raises(MiloraError, match="retention: got nothing to measure"):
        retention(run.path)
    with pytest.raises(MiloraError, match="retention: runs: got 0, allowed 1 or more"):
        retention(run.path, **asked(book) | {"runs": 0})
    with pytest.raises(MiloraError, match="holds no run"):
        retention(tmp_path / "nothing", **asked(book))
    for checkpoint in run.checkpoints():
        (checkpoint / "rng_state.pth").unlink()
    (run.path / "adapter_config.json").unlink()
    with pytest.raises(MiloraError, match=r"holds neither a whole checkpoint nor the end of a run"):
        retention(run.path, **asked(book))


def test_wording_does_not_depend_on_the_batch_and_cuts_at_the_context(tiny_llama, book):
    from transformers import AutoModelForCausalLM

    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_llama), load_tokenizer(str(tiny_llama))
    rows = paragraphs(book / "towns.txt", tokenizer)
    loss, accuracy, count = own_loss(model, tokenizer)
    for size in (1, 4, 8):
        found = wording(model, rows, pad_token_id=tokenizer.pad_token_id, batch_size=size)
        assert found["nll"] == pytest.approx(loss, abs=1e-5)
        assert (found["accuracy"], found["tokens"]) == (pytest.approx(accuracy), count)
    cut = paragraphs(book / "towns.txt", tokenizer, context=20)
    assert max(map(len, cut)) == 20
    assert list(chain(*cut)) == list(chain(*rows))


def test_the_command(run, book, capsys):
    from milora.cli.app import main

    given = ["retention", str(run.path), "--tasks", "milora_book_mcq", "--tasks_at", "0", "--runs", "2"]
    given += ["--data_dir", str(book), "--losses", f"wording={book / 'towns.txt'}", "--json"]
    assert main(given) == 0
    record = json.loads(capsys.readouterr().out)
    assert record == read_json(run.path / FILE)
    assert [bool(row["scores"]) for row in record["rows"]] == [True, False, False]
    assert main([*given[:-1], "--runs", "3"]) == 2
    assert main([*given[:-1], "--tasks_at", "one"]) == 2
    assert main([*given[:-1], "--losses", "wording"]) == 2
    errors = re.sub(r"\s+", " ", capsys.readouterr().err)
    assert "other runs; --overwrite" in errors
    assert "--tasks_at: got 'one'" in errors
    assert "--losses: got 'wording', allowed NAME=FILE" in errors
