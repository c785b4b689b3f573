"""Run folders: made once, replaced or resumed only when asked, and nobody else's files are touched."""

from pathlib import Path
from typing import Any

import pytest

from milora.errors import MiloraError
from milora.recipes.schema import Recipe
from milora.runs import RunFolder
from milora.runs.folder import OUTPUT_ONLY


def recipe(folder: Path, **keys: Any) -> Recipe:
    return Recipe(model_name_or_path="base", dataset="data.jsonl", output_dir=str(folder), **keys)


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_run_is_made_and_read_back(tmp_path: Path):
    made = RunFolder(tmp_path / "run").create(recipe(tmp_path / "run", lora_r=7))
    assert made.holds_run
    read = RunFolder(tmp_path / "run")
    assert read.recipe() == recipe(tmp_path / "run", lora_r=7)
    assert read.provenance() == {} and read.results() == {}
    read.write_provenance({"a": 1})
    assert read.provenance() == {"a": 1}


def test_a_run_is_not_written_over(tmp_path: Path):
    folder = tmp_path / "run"
    RunFolder(folder).create(recipe(folder))
    before = files(folder)
    with pytest.raises(MiloraError, match=r"--overwrite.*--resume"):
        RunFolder(folder).create(recipe(folder, lora_r=3))
    assert files(folder) == before


def test_overwrite_deletes_what_a_run_wrote_and_no_more(tmp_path: Path):
    folder = tmp_path / "run"
    RunFolder(folder).create(recipe(folder))
    written = ["metrics.jsonl", "adapter/w.safetensors", "checkpoint-10/w", "eval/results.json", "forgetting.json",
               "analysis.json", "adapter_model.safetensors", "adapter_config.json", "README.md", "provenance.json",
               "runs/x/e", "model/config.json"]  # fmt: skip
    others = ["notes.txt", "checkpoints.txt", "mine/adapter/w"]
    for name in written + others:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    RunFolder(folder).create(recipe(folder, lora_r=3), overwrite=True)
    assert set(files(folder)) == {"recipe.yaml", *others}
    assert RunFolder(folder).recipe().lora_r == 3


def test_overwrite_follows_no_link(tmp_path: Path):
    folder, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("kept")
    RunFolder(folder).create(recipe(folder))
    (folder / "adapter").symlink_to(elsewhere)
    RunFolder(folder).create(recipe(folder), overwrite=True)
    assert (elsewhere / "precious").read_text() == "kept"
    assert not (folder / "adapter").exists()


@pytest.mark.parametrize("flags", [{}, {"overwrite": True}, {"resume": True}])
@pytest.mark.parametrize("name", ["thesis.tex", "recipe.yaml"])
def test_a_folder_of_something_else_is_refused(tmp_path: Path, flags: dict[str, bool], name: str):
    (tmp_path / name).write_text("method: milora\n")
    with pytest.raises(MiloraError, match="holds no run"):
        RunFolder(tmp_path).create(recipe(tmp_path), **flags)
    assert files(tmp_path) == {name: b"method: milora\n"}


def test_an_empty_folder_is_taken_and_a_file_is_not(tmp_path: Path):
    assert RunFolder(tmp_path).create(recipe(tmp_path)).holds_run
    (tmp_path / "file").write_text("")
    with pytest.raises(MiloraError, match="must be a folder"):
        RunFolder(tmp_path / "file").create(recipe(tmp_path / "file"))


def test_resume_needs_the_same_recipe_and_names_every_difference(tmp_path: Path):
    RunFolder(tmp_path).create(recipe(tmp_path))
    with pytest.raises(MiloraError) as raised:
        RunFolder(tmp_path).create(recipe(tmp_path, lora_r=5, seed=9), resume=True)
    assert "lora_r was 32, got 5" in str(raised.value)
    assert "seed was" in str(raised.value) and "got 9" in str(raised.value)
    assert RunFolder(tmp_path).recipe().lora_r == 32


def test_resume_takes_another_way_of_showing(tmp_path: Path):
    (RunFolder(tmp_path).create(recipe(tmp_path)).path / "metrics.jsonl").write_text("{}\n")
    RunFolder(tmp_path).create(recipe(tmp_path, logging_steps=3, eval_limit=5), resume=True)
    assert RunFolder(tmp_path).recipe().logging_steps == 3
    assert (tmp_path / "metrics.jsonl").exists()
    assert set(Recipe.model_fields) >= OUTPUT_ONLY


def test_overwrite_and_resume_exclude_each_other(tmp_path: Path):
    with pytest.raises(MiloraError, match="got both"):
        RunFolder(tmp_path).check(recipe(tmp_path), overwrite=True, resume=True)


def test_check_writes_nothing(tmp_path: Path):
    RunFolder(tmp_path / "new").check(recipe(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_checkpoints_are_in_the_order_of_their_steps(tmp_path: Path):
    for name in ("checkpoint-9", "checkpoint-100", "checkpoint-20", "checkpoint-best"):
        (tmp_path / name).mkdir()
    found = [p.name for p in RunFolder(tmp_path).checkpoints()]
    assert found == ["checkpoint-9", "checkpoint-20", "checkpoint-100"]


def test_own_adapter_is_the_spectral_one_where_there_are_two(tmp_path: Path):
    run = RunFolder(tmp_path)
    with pytest.raises(MiloraError, match="no adapter"):
        run.own_adapter()
    (tmp_path / "adapter_config.json").write_text("{}")
    assert run.own_adapter() == tmp_path
    run.adapter.mkdir()
    (run.adapter / "adapter_config.json").write_text("{}")
    assert run.own_adapter() == run.adapter


def test_what_a_run_reads_is_not_deleted_with_the_run_that_it_replaces(tmp_path: Path):
    folder = tmp_path / "run"
    old = RunFolder(folder).create(recipe(folder))
    for name in ("model/config.json", "rows.jsonl"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    reading = recipe(folder, method="milora").model_copy(update={"model_name_or_path": str(folder / "model")})
    with pytest.raises(MiloraError, match=r"--overwrite: model_name_or_path .*model lies in .* and would be deleted"):
        RunFolder(folder).create(reading, overwrite=True)
    assert (old.model / "config.json").is_file()
    rows = recipe(folder).model_copy(update={"dataset": str(folder / "rows.jsonl")})  # not a run's own, and kept
    RunFolder(folder).create(rows, overwrite=True)
    assert (folder / "rows.jsonl").is_file() and not old.model.exists()


def test_a_run_without_an_adapter_says_why(tmp_path: Path):
    run = RunFolder(tmp_path)
    with pytest.raises(MiloraError, match="has saved no adapter, for it stopped early"):
        run.own_adapter()
    run.model.mkdir()
    with pytest.raises(MiloraError, match=f"method full, whose model is whole already: {run.model}"):
        run.own_adapter()


def test_a_folder_without_a_run_has_no_recipe(tmp_path: Path):
    with pytest.raises(MiloraError, match="holds no run"):
        RunFolder(tmp_path).recipe()
