"""The model card states what was measured and nothing else."""

from pathlib import Path

import pytest
import yaml

from milora.recipes.schema import Recipe
from milora.runs import RunFolder, model_card, refresh_card
from milora.runs.folder import write_json

ROW = {
    "task": "questions", "metric": "acc", "filter": "none", "n": 40, "version": 1,
    "base": 0.25, "base_stderr": 0.068, "tuned": 0.875, "tuned_stderr": 0.052,
    "difference": 0.625, "difference_stderr": None,
}  # fmt: skip


def recipe(**keys: str) -> Recipe:
    return Recipe(**{"model_name_or_path": "org/base", "dataset": "org/data", "output_dir": "out/one"} | keys)


def front_matter(card: str) -> dict[str, object]:
    return yaml.safe_load(card.split("---\n")[1])


def test_front_matter_is_the_hubs():
    front = front_matter(model_card(recipe(method="pissa"), {}, {}))
    assert front == {
        "library_name": "peft",
        "base_model": "org/base",
        "datasets": ["org/data"],
        "tags": ["milora", "pissa"],
    }
    assert front_matter(model_card(recipe(method="milora"), {}, {}))["tags"] == ["milora"]


def test_a_folder_on_a_disk_is_no_repository(tmp_path: Path):
    front = front_matter(model_card(recipe(model_name_or_path=str(tmp_path)), {}, {}))
    assert "base_model" not in front


@pytest.mark.parametrize("dataset", ["my.jsonl", "data/rows.json.gz", "./rows", "/a/b", "~/rows", "a/b/c"])
def test_a_local_data_set_is_no_repository_though_it_does_not_lie_here(dataset: str):
    assert "datasets" not in front_matter(model_card(recipe(dataset=dataset, model_name_or_path="../m"), {}, {}))
    assert "base_model" not in front_matter(model_card(recipe(model_name_or_path="../m"), {}, {}))


def test_a_hub_data_set_is_named_without_its_configuration():
    assert front_matter(model_card(recipe(dataset="openai/gsm8k:main"), {}, {}))["datasets"] == ["openai/gsm8k"]


def test_no_results_no_table():
    card = model_card(recipe(), {}, {})
    assert "Results" not in card and "Provenance" not in card
    assert "org/base" in card and "<details>" in card


def test_results_and_provenance_are_shown(tmp_path: Path):
    run = RunFolder(tmp_path).create(recipe(output_dir=str(tmp_path), description="A short run."))
    run.write_provenance({"versions": {"torch": "9.9"}})
    write_json(run.eval_results_file, {"comparison": [ROW]})
    write_json(run.forgetting_file, {"cross_entropy": 2.5, "floor": 2.25, "kl": 0.25, "tokens": 100})
    refresh_card(run)
    card = run.card_file.read_text(encoding="utf-8")
    assert "A short run." in card and "torch: '9.9'" in card
    assert "| questions | acc | 40 | 0.2500 ± 0.0680 | 0.8750 ± 0.0520 | 0.6250 |" in card
    assert "| 2.5000 | 2.2500 | 0.2500 | 100 |" in card
    assert "Change of the weights" not in card


def test_the_change_of_the_weights_is_shown_by_module_type(tmp_path: Path):
    run = RunFolder(tmp_path).create(recipe(output_dir=str(tmp_path)))
    q = {"matrices": 2, "relative": 0.0123456, "amplification": None}
    q["phi"] = {"left": {"top": 0.05, "bottom": 0.625, "random": 0.1}, "right": {}}
    write_json(run.analysis_file, {"r": 8, "summary": q | {"by_type": {"q_proj": q}}})
    refresh_card(run)
    lines = run.card_file.read_text(encoding="utf-8").splitlines()
    assert "| module type | matrices | relative change | amplification | phi top 8 | phi bottom 8 |" in lines
    assert "| q_proj | 2 | 0.0123 | - | 0.05 | 0.625 |" in lines and "| all | 2 | 0.0123 | - | 0.05 | 0.625 |" in lines
