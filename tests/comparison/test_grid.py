"""Grids: what is refused, all at once; which runs a grid stands for."""

from pathlib import Path

import pytest

from milora.comparison.folder import MARK, ComparisonFolder
from milora.comparison.load import check_grid, dump, grids, load_grid, read_setting
from milora.comparison.plan import cells, measured_jobs, selection_jobs
from milora.errors import MiloraError
from milora.recipes import strict_yaml

BASE = {"model_name_or_path": "m", "dataset": "d.jsonl", "lora_r": 8, "max_steps": 6, "val_set_size": 2}
GRID = {
    "base": BASE,
    "arms": [
        {"label": "lora", "method": "lora", "learning_rate": [1e-3, 1e-4]},
        {"label": "milora", "method": "milora", "lora_r": [4, 8], "keys": {"lora_dropout": 0.0}},
        {"label": "full", "method": "full", "keys": {"lora_dropout": 0.05}},
    ],
    "seeds": [0, 1],
}


def test_every_shipped_grid_is_valid_says_what_it_is_and_reads_back():
    found = grids()
    assert {"paper-check", "tiny-check"} <= set(found)
    for name in found:
        grid = load_grid(name)
        assert grid.name == name and grid.description
        assert check_grid(strict_yaml.parse(dump(grid), "again")) == grid
        assert f"#   milora compare {name}" in found[name].read_text()


def test_every_problem_is_told_at_once():
    wrong = GRID | {
        "base": BASE | {"lr": 1.0, "seed": 3},
        "arms": [{"label": "lora", "method": "lora"}, {"label": "lora", "method": "lora", "keys": {"lora_r": 3}}],
        "against": ["lroa"],
        "seeds": [1, 1],
        "checks": [{"name": "c", "value": "kl(pissa)", "limit": 1.0, "variant": "x"},
                   {"name": "d", "value": "import os", "limit": 1.0}],
    }  # fmt: skip
    with pytest.raises(MiloraError) as error:
        check_grid(wrong)
    for part in ("unknown recipe key 'lr'", "'seed' is decided", "label 'lora' stands twice", "'lora_r' is decided",
                 "against: got 'lroa' (did you mean 'lora'?)", "seeds: got [1, 1]", "no arm 'pissa'",
                 "no variant 'x'", "checks: d: got 'import os'"):  # fmt: skip
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_keys_and_wrong_types_are_refused():
    with pytest.raises(
        MiloraError, match=r"arms.0.lora_r.0: got 'x', input should be a valid integer; unknown key 'measure.forgeting'"
    ):
        check_grid(GRID | {"measure": {"forgeting": {}}, "arms": [{"label": "a", "method": "lora", "lora_r": ["x"]}]})
    with pytest.raises(MiloraError, match=r"arms.0.label: got '../x'"):
        check_grid(GRID | {"arms": [{"label": "../x", "method": "lora"}]})
    with pytest.raises(MiloraError, match=r"grid paper-chek: no such file \(did you mean 'paper-check'\?\)"):
        load_grid("paper-chek")


def test_settings_and_local_files_go_over_the_grid(tmp_path: Path):
    settings = dict(map(read_setting, ["base.max_steps=2", "measure.at=[1, 2]", "arms.0.learning_rate=[1e-5]"]))
    grid = load_grid("paper-check", settings, tmp_path)
    assert grid.base["max_steps"] == 2 and grid.measure.at == [1, 2] and grid.arms[0].learning_rate == [1e-5]
    assert grid.base["dataset"] == str(tmp_path / "math/gsm8k_train.jsonl.gz")
    assert grid.measure.forgetting is not None and grid.measure.forgetting.text.startswith(str(tmp_path))
    for setting in ("base", "=3"):
        with pytest.raises(MiloraError, match="allowed KEY=VALUE"):
            read_setting(setting)
    for key in ("arms.9.label", "name.x", "arms.first.label"):
        with pytest.raises(MiloraError, match=f"--set {key}"):
            load_grid("paper-check", {key: 1})


def test_which_runs_a_grid_stands_for(tmp_path: Path):
    grid = check_grid(GRID | {"selection": {"max_steps": 3}})
    assert [cell.key for cell in cells(grid)] == ["lora-r8", "milora-r4", "milora-r8", "full"]
    choosing = selection_jobs(grid, tmp_path, {})
    assert [job.place for job in choosing] == ["selection/lora-r8-lr0.001-s0", "selection/lora-r8-lr0.0001-s0"]
    assert all(job.recipe.max_steps == 3 and not job.measured for job in choosing)
    jobs = measured_jobs(grid, tmp_path, {}, {"lora-r8": "0.0001"})
    assert [job.name for job in jobs] == [
        "lora-r8-lr0.0001-s0", "lora-r8-lr0.0001-s1", "milora-r4-lr0.0003-s0", "milora-r4-lr0.0003-s1",
        "milora-r8-lr0.0003-s0", "milora-r8-lr0.0003-s1", "full-lr0.0003-s0", "full-lr0.0003-s1",
    ]  # fmt: skip
    assert jobs[0].recipe.lora_alpha == 16 and jobs[2].recipe.lora_alpha == 4
    assert jobs[0].recipe.output_dir == str(tmp_path / "runs" / "lora-r8-lr0.0001-s0")
    assert not [job for job in measured_jobs(grid, tmp_path, {}, {"lora-r8": None}) if job.cell.arm.label == "lora"]
    every = measured_jobs(grid, tmp_path, {}, {"lora-r8": "0.0001"}, all_rates=True)
    assert [job.learning_rate for job in every if job.cell.arm.label == "lora"] == [1e-4, 1e-4, 1e-3, 1e-3]


def test_choosing_runs_as_long_as_the_others_are_the_others(tmp_path: Path):
    choosing = selection_jobs(check_grid(GRID), tmp_path, {})
    assert [job.place for job in choosing] == ["runs/lora-r8-lr0.001-s0", "runs/lora-r8-lr0.0001-s0"]


def test_variants_are_named_and_have_models_of_their_own(tmp_path: Path):
    grid = check_grid(GRID | {"variants": [{"label": "big", "rescale": 8.0}, {"label": "as_is"}]})
    jobs = measured_jobs(grid, tmp_path, {"big": "models/big"}, {})
    assert jobs[0].name == "milora@big-r4-lr0.0003-s0"
    assert {job.recipe.model_name_or_path for job in jobs if job.cell.variant.label == "big"} == {"models/big"}
    assert {job.recipe.model_name_or_path for job in jobs if job.cell.variant.label == "as_is"} == {"m"}


def test_measured_steps_decide_the_checkpoints(tmp_path: Path):
    jobs = measured_jobs(check_grid(GRID | {"measure": {"at": [4, 6]}}), tmp_path, {}, {})
    recipe = jobs[0].recipe
    assert (recipe.save_strategy, recipe.save_steps, recipe.save_total_limit) == ("steps", 2, None)


def test_a_wrong_recipe_is_told_before_anything_runs(tmp_path: Path):
    grid = check_grid(GRID | {"arms": [{"label": "a", "method": "milora", "keys": {"method_settings": {"x": 1}}}]})
    with pytest.raises(MiloraError, match="milora has no 'x'") as error:
        measured_jobs(grid, tmp_path, {}, {})
    assert str(error.value).count("has no 'x'") == 1  # once for two seeds


def test_a_folder_of_other_things_is_not_taken(tmp_path: Path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(MiloraError, match="is not empty and holds no comparison"):
        ComparisonFolder(tmp_path).create(check_grid(GRID))
    folder = ComparisonFolder(tmp_path / "new")
    folder.create(check_grid(GRID))
    assert folder.grid_file.read_text().startswith(MARK) and folder.grid() == check_grid(GRID)
    (folder.path / "mine.txt").write_text("kept")
    (folder.path / "runs" / "x").mkdir(parents=True)
    folder.create(check_grid(GRID), overwrite=True)
    assert (folder.path / "mine.txt").is_file() and not folder.runs.exists()
