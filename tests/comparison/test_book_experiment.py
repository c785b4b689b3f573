"""The book experiment's script: its excerpt, its runs, and what its tables say of made-up rows."""

import importlib.util
import json
import math
import sys
from pathlib import Path

import pytest

from milora.adapters.build import peft_config
from milora.comparison import load_grid
from milora.runs.folder import write_json

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def script(name):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def book():
    return script("book")


@pytest.fixture(scope="module")
def tables():
    return script("book_tables")


class Words:
    """A tokenizer of words."""

    def __call__(self, text):
        return {"input_ids": text.split()}


def test_the_excerpt_holds_the_paragraphs_that_most_questions_rest_on(book, shared_data, tmp_path):
    about = book.excerpt(shared_data, tmp_path, 16, Words())
    text = " ".join((tmp_path / "excerpt.txt").read_text().split())
    paragraphs = (tmp_path / "excerpt.txt").read_text().strip().split("\n\n")
    whole = " ".join((shared_data / "book" / "chiriqui.txt").read_text().split())
    places = [whole.index(" ".join(p.split())) for p in paragraphs]
    assert len(paragraphs) == 16 and places == sorted(places)
    for kind in ("mcq", "cloze"):
        rows = [json.loads(line) for line in (tmp_path / f"excerpt_{kind}.jsonl").read_text().splitlines()]
        assert len(rows) == about[kind] >= 20
        assert all(" ".join(row["evidence"].split()).lower() in text.lower() for row in rows)
    assert about["tokens"] == len(text.split())


def test_whole_seeds_go_first_and_random_components_are_drawn_by_seed(book, tmp_path):
    grid = load_grid("book-smollm2", book.OVER)
    jobs = book.jobs(grid, tmp_path, "a/model", [0, 1, 2], [])
    assert len(jobs) == 36
    assert [job.seed for job in jobs] == [0] * 12 + [1] * 12 + [2] * 12
    assert [job.cell.arm.label for job in jobs[:6]] == [arm.label for arm in grid.arms]
    drawn = {job.seed: peft_config(job.recipe.model_dump()) for job in jobs if job.cell.arm.label == "mica_random"}
    assert {seed: config.components_seed for seed, config in drawn.items()} == {0: 0, 1: 1, 2: 2}
    assert all(config.components == "random" for config in drawn.values())
    for job in jobs:
        assert job.recipe.save_steps == (16 if job.recipe.method == "full" else 8)
        assert job.recipe.target_modules == ["q_proj", "v_proj"]
        assert (job.recipe.dtype, job.recipe.bf16) == ("float32" if job.recipe.method == "full" else "bfloat16", True)
        assert job.recipe.model_name_or_path == "a/model"
        assert (job.recipe.dataset_split, job.recipe.max_steps, job.recipe.eval_dataset) == ("train", -1, None)


def made_up(job, kl):
    """A run that recalls linearly with its epochs, and forgets `kl` for each."""
    rows = [
        {
            "step": 8 * e, "epoch": float(e), "forgetting": {"kl": kl * e}, "losses": {"wording": 4.0 - e / 2},
            "accuracies": {"wording": e / 10}, "scores": [],
        }
        for e in range(4)
    ]  # fmt: skip
    write_json(Path(job.recipe.output_dir) / "retention.json", {"settings": {}, "rows": rows})
    write_json(Path(job.recipe.output_dir) / "provenance.json", {"trainable_parameters": 7})
    write_json(Path(job.recipe.output_dir) / "done.json", {})


@pytest.mark.parametrize(
    ("mica", "random", "claim"), [(0.1, 0.05, "confirmed"), (0.1, 0.15, "refuted"), (0.3, 0.4, "no gain")]
)
def test_the_tables_and_the_verdict(book, tables, tmp_path, mica, random, claim):
    grid = load_grid("book-smollm2")
    jobs = book.jobs(grid, tmp_path / "runs", "a/model", [0, 1], ["lora", "mica", "mica_random"])
    kls = {"lora": 0.2, "mica": mica, "mica_random": random}
    for job in jobs:
        made_up(job, kls[job.cell.arm.label] * (1 + job.seed))
    text = tables.write(tmp_path / "book", grid, jobs, {"paragraphs": 2, "tokens": 9, "mcq": 1, "cloze": 1})
    record = json.loads((tmp_path / "book.json").read_text())
    assert text == (tmp_path / "book.md").read_text()
    pairs = {(pair["a"], pair["b"]): pair for pair in record["matched"]}
    assert pairs["mica", "lora"]["ratio"] == pytest.approx(mica / 0.2)
    assert pairs["mica_random", "mica"]["by_seed"]["1"]["kl_a"] == pytest.approx(random * 3 * 2)
    others = {(pair["a"], pair["b"]): pair["learning_rates"] for pair in record["matched_at_other_rates"]}
    assert pairs["mica", "lora"]["learning_rates"] == [1e-3, 5e-4] and others["mica", "lora"] == [4e-3, 2e-3]
    assert others.keys() == pairs.keys() and "at the other rate" in text
    assert record["verdict"]["claim"] == claim
    assert record["verdict"]["every_seed_agrees"]
    (lora, *_) = [arm for arm in record["arms"] if arm["label"] == "lora" and arm["chosen"]]
    kl = lora["steps"][-1]["metrics"]["kl"]
    assert (kl["mean"], kl["stderr"]) == (pytest.approx(0.9), pytest.approx(0.3))
    assert f"by the rule set beforehand (random vectors have all of it): {claim}" in text
    kept = None if claim == "no gain" else pytest.approx(math.log(random / 0.2) / math.log(mica / 0.2))
    assert record["verdict"]["random_keeps_of_the_gain"] == kept
    assert ("in log KL" in text) == (kept is not None)
    assert "| 0.30 / 0.90 |" in text


def test_without_the_runs_nothing_is_claimed(book, tables, tmp_path):
    grid = load_grid("book-smollm2")
    jobs = book.jobs(grid, tmp_path / "runs", "a/model", [0], [])
    made_up(jobs[0], 0.1)
    tables.write(tmp_path / "book", grid, jobs, {"paragraphs": 2, "tokens": 9, "mcq": 1, "cloze": 1})
    record = json.loads((tmp_path / "book.json").read_text())
    assert record["verdict"] == {"claim": None, "why": "not measured"} and record["matched"] == []
    assert record["matched_at_other_rates"] == []
    (arm,) = record["arms"]  # of a label whose other runs were never started
    assert arm["trainable_parameters"] == 7
