"""The grids in the package: all of them resolve, every value has a source, every small twin starts."""

import re
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from milora.comparison.engine import compare, planned
from milora.comparison.load import grids, load_grid
from milora.models.load import load_tokenizer
from milora.models.smollm2 import smollm2_folder
from milora.recipes import load_recipe, recipes
from milora.recipes.load import read
from milora.tasks import folder
from milora.training.data import load_data

# The paper's tables and figures, each with its grids.
TABLES = {
    "milora-table-1": ("-llama2", "-llama3"), "milora-table-2": ("",), "milora-table-3": ("",), "milora-table-4": ("",),
    "milora-figure-2": ("",), "milora-table-7-pissa": ("",), "milora-table-7-llm-adapters": ("",),
    "milora-figure-4": ("",), "milora-visual": ("",),
}  # fmt: skip
# What stands in a small twin's place where its name is another.
OTHER_TWINS = {
    "milora-tables-5-6": "paper-check", "mica-blogs-qwen": "book-smollm2", "mica-blogs-llama2": "book-smollm2",
    "mica-blogs-components": "book-smollm2", "mica-history": "book-smollm2",
}  # fmt: skip
# No paper's: all methods side by side.
OWN = {"family-smollm2"}
# Their base takes pictures, and they start in test_pictures.py.
PICTURES = {"milora-visual-smollm2"}
SMALL = sorted({name for name in grids() if name.endswith("-smollm2")} - PICTURES)
NO_SOURCE = {"sources", "output_dir", "name", "description"}


def test_every_table_has_its_grids_and_a_small_twin():
    names = {f"{table}{model}" for table, models in TABLES.items() for model in models}
    twins = {f"{table}-smollm2" for table in TABLES}
    assert names | twins | set(OTHER_TWINS) | set(OTHER_TWINS.values()) | OWN | {"tiny-check"} == set(grids())
    assert len(names) == 10 and len(twins) == 9 and len(SMALL) == 10


@pytest.mark.parametrize("name", sorted(grids()))
def test_a_grid_resolves_to_its_runs(name):
    grid, runs = load_grid(name), planned(load_grid(name))["runs"]
    assert len(runs) >= 2
    assert {job.cell.arm.label for job in runs} == {arm.label for arm in grid.arms}
    assert {job.recipe.method for job in runs} == {arm.method for arm in grid.arms}
    if grid.recipe is not None:
        assert grid.recipe in recipes()
    files = [file.read_text() for file in folder().rglob("*") if file.suffix == ".yaml"]
    tasks = {word for text in files for word in re.findall(r"^(?:task|group): (\w+)$", text, flags=re.MULTILINE)}
    assert len(tasks) >= 10
    for task in grid.measure.tasks:
        if task.startswith("milora"):
            assert task in tasks, task


@pytest.mark.parametrize("name", sorted(set(grids()) - {"paper-check", "tiny-check"}))
def test_every_value_that_a_grid_puts_over_its_recipe_has_a_source(name):
    grid = load_grid(name)
    assert grid.recipe is not None
    given = set(grid.base) - NO_SOURCE
    for arm in grid.arms:
        given |= (
            set(arm.keys) | ({"lora_r"} if arm.lora_r else set()) | ({"learning_rate"} if arm.learning_rate else set())
        )
    sources = {**read(grid.recipe).get("sources", {}), **grid.base.get("sources", {})}
    ranks = {"lora_r"} if name.startswith("milora-figure-2") else set()  # the figure's own axis
    assert not given - ranks - set(sources)
    for job in planned(grid)["runs"]:
        assert job.recipe.sources == sources


def test_what_the_tables_compare():
    def rows(name):
        return [
            (job.recipe.method, job.recipe.lora_r, job.recipe.lora_alpha) for job in planned(load_grid(name))["runs"]
        ]

    assert rows("milora-table-1-llama2") == [("lora", 32, 64.0), ("pissa", 32, 32.0), ("milora", 32, 32.0)]
    assert rows("milora-table-4") == [("pissa", 64, 64.0), ("random_components", 64, 64.0), ("milora", 64, 64.0)]
    assert [row for row in rows("milora-figure-2") if row[0] == "milora"] == [
        ("milora", r, r) for r in (16, 32, 64, 128)
    ]
    assert {row[1:] for row in rows("milora-table-7-pissa")} == {(128, 128.0)}
    assert rows("milora-table-7-llm-adapters") == [("lora", 128, 256.0), ("pissa", 128, 128.0), ("milora", 128, 128.0)]
    models = {name: load_grid(f"milora-table-1-{name}").base.get("model_name_or_path") for name in ("llama2", "llama3")}
    assert models == {"llama2": None, "llama3": "meta-llama/Meta-Llama-3-8B"}
    (best,) = {(job.recipe.load_best_model_at_end, job.recipe.num_train_epochs) for job in
               planned(load_grid("milora-figure-4"))["runs"]}  # fmt: skip
    assert best == (True, 10)
    lora, mica = planned(load_grid("mica-blogs-llama2"))["runs"]
    assert (lora.recipe.lora_r, lora.learning_rate, lora.recipe.num_train_epochs) == (128, 1e-4, 8)
    assert (mica.recipe.lora_r, mica.learning_rate, mica.recipe.num_train_epochs) == (16, 5e-4, 4)
    components = [job.recipe.method_settings for job in planned(load_grid("mica-blogs-components"))["runs"]]
    assert components == [{}, {"components": "random"}, {"components": "top"}]


@pytest.mark.parametrize("name", SMALL)
def test_the_files_of_a_small_twin_are_there(name, shared_data):
    grid = load_grid(name, data_dir=shared_data)
    assert len(grid.local_files) >= 2
    for key in grid.local_files:
        place = grid.model_dump()
        for part in key.split("."):
            place = place[part]
        assert str(shared_data) in place and Path(place).exists(), key


# Grids of one recipe read the same rows.
@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({load_grid(name).recipe: name for name in SMALL}.values()))
def test_the_rows_of_a_small_twin_fit_its_model(name, shared_data):
    model = str(smollm2_folder())
    tokenizer = load_tokenizer(model)
    runs = planned(load_grid(name, {"base.model_name_or_path": model}, shared_data))["runs"]
    data = load_data(runs[0].recipe, tokenizer, Console(quiet=True))
    assert len(data.train) >= 12 and (data.validation is None or len(data.validation) >= 8)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_small_twin_trains_a_step_of_each_method(name, shared_data, tiny_llama, tmp_path):
    # The smallest run of each arm's kind, on a tiny model in the place of SmolLM2.
    over = {
        "base.model_name_or_path": str(tiny_llama), "base.dtype": "float32", "base.bf16": False, "base.max_steps": 2,
        "base.lora_r": 4, "base.max_length": 500, "seeds": [0], "measure.at": [2], "measure.tasks": [],
        "measure.forgetting.max_tokens": 128, "measure.forgetting.block": 64, "output_dir": str(tmp_path / "out"),
        "base.lora_alpha": None, "base.overlong": "drop", "base.dataset_limit": 64,
    }  # fmt: skip
    if planned(load_grid(name))["runs"][0].recipe.val_set_size:
        over["base.val_set_size"] = 4  # few rows fit the tiny model's context of 512 bytes
    grid = load_grid(name, over, shared_data)
    arms = [arm.model_copy(update={"lora_r": [], "learning_rate": arm.learning_rate[:1]}) for arm in grid.arms]
    record = compare(grid.model_copy(update={"arms": arms}))
    assert [arm["label"] for arm in record["arms"]] == [arm.label for arm in grid.arms]
    assert all(arm["seeds"] == [0] and not arm["failed"] for arm in record["arms"])
    assert all(arm["metrics"]["kl"]["mean"] >= 0 for arm in record["arms"])
    shutil.rmtree(tmp_path / "out")


@pytest.mark.parametrize("name", ["milora-table-1-llama2", "milora-table-1-llama3"])
def test_table_1_searches_with_the_published_beams(name):
    assert load_grid(name).measure.gen_kwargs == {"num_beams": 4}


def test_a_recipe_that_ends_with_its_best_checkpoint_does_so_in_a_grid():
    grid = load_grid("milora-table-1-llama2")
    for job in planned(grid)["runs"]:
        wanted = load_recipe("llm-adapters-commonsense")
        for key in ("load_best_model_at_end", "eval_strategy", "eval_steps", "save_strategy", "save_steps"):
            assert getattr(job.recipe, key) == getattr(wanted, key)
    at = planned(load_grid("milora-table-1-llama2", {"measure.at": [5, 10]}))["runs"][0].recipe
    assert (at.load_best_model_at_end, at.save_steps, at.eval_strategy) == (False, 5, "no")
