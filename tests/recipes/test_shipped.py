"""The recipes in the package: all of them valid, and each value of a paper's preset with its source."""

import math
import re
import shlex

import pytest

from milora.models.targets import is_target
from milora.recipes import Recipe, load_recipe, recipes
from milora.recipes.keys import MethodKeys, TrainingKeys
from milora.recipes.load import read

TWINS = {
    "llava-1.5-visual-smollm2": "llava-1.5-visual",
    "llm-adapters-commonsense-smollm2": "llm-adapters-commonsense",
    "llm-adapters-gsm8k-smollm2": "llm-adapters-math",
    "llm-adapters-ultrafeedback-smollm2": "llm-adapters-ultrafeedback",
    "mica-history-smollm2": "mica-history",
    "milora-analysis-gsm8k-smollm2": "milora-analysis-math",
    "pissa-gsm8k-10-epochs-smollm2": "pissa-math-10-epochs",
    "pissa-gsm8k-smollm2": "pissa-math",
}
PRESETS = sorted(set(recipes()) - {"demo", *TWINS})
NO_SOURCE = {"name", "description", "sources", "output_dir", "method"}


def test_the_presets_and_their_twins_are_shipped():
    assert len(PRESETS) == 10 and len(TWINS) == 8
    assert set(TWINS) == {name for name in recipes() if name.endswith("-smollm2")}
    assert set(TWINS.values()) <= set(PRESETS)


@pytest.mark.parametrize("name", sorted(recipes()))
def test_a_recipe_is_valid_and_says_what_it_is(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.description
    assert set(recipe.sources) <= set(Recipe.model_fields)


@pytest.mark.parametrize("name", sorted(recipes()))
def test_the_header_holds_a_command_that_is_a_right_call(name):
    header = recipes()[name].read_text().split("\nname:")[0]
    (command,) = re.findall(r"^#   (milora (?:train|demo).*)$", header, flags=re.MULTILINE)
    words = shlex.split(command)
    if words[1] == "demo":
        return
    assert words[:3] == ["milora", "train", name]
    flags = dict(zip((word.removeprefix("--") for word in words[3::2]), words[4::2], strict=True))
    assert load_recipe(name, flags)


@pytest.mark.parametrize("name", PRESETS)
def test_every_value_of_a_preset_has_its_source(name):
    written = read(name)
    valued = set(written) - NO_SOURCE
    assert len(valued) >= 18
    assert valued == set(written["sources"])
    lines = {line.split(":")[0]: line for line in recipes()[name].read_text().split("\nsources:")[0].splitlines()}
    assert not [key for key in valued if " # " not in lines[key]], "a value without a comment on its line"


@pytest.mark.parametrize("name", sorted(TWINS))
def test_every_hyperparameter_of_a_twin_is_the_presets_or_scaled(name):
    written = read(name)
    preset = {key: field.default for key, field in Recipe.model_fields.items()} | read(TWINS[name])
    hyper = (set(MethodKeys.model_fields) | set(TrainingKeys.model_fields) | {"max_length", "loss_on"}) & set(written)
    hyper -= NO_SOURCE
    assert len(hyper) >= 15
    assert hyper <= set(written["sources"])
    same = [key for key in hyper if written["sources"][key] == TWINS[name]]
    assert len(same) >= 7
    assert not [key for key in same if preset[key] != written[key]]
    assert "scaled" in written["description"]


def test_values_of_table_8():
    for name, r in (("llm-adapters-commonsense", 32), ("llm-adapters-math", 64)):
        recipe = load_recipe(name)
        assert (recipe.lora_r, recipe.lora_alpha, recipe.lora_dropout) == (r, r, 0.05)
        assert load_recipe(name, {"method": "lora"}).lora_alpha == 2 * r
        assert (recipe.learning_rate, recipe.lr_scheduler_type, recipe.warmup_steps) == (3e-4, "linear", 100)
        assert recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps == 16
        assert recipe.num_train_epochs == 3
        assert recipe.target_modules == ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]


@pytest.mark.parametrize(("name", "rows"), [("commonsense", 170_420 - 120), ("gsm8k", 395_000)])
def test_a_twin_states_the_presets_number_of_steps(name, rows):
    preset = load_recipe({"commonsense": "llm-adapters-commonsense", "gsm8k": "llm-adapters-math"}[name])
    batch = preset.per_device_train_batch_size * preset.gradient_accumulation_steps
    steps = f"{math.ceil(rows / batch) * int(preset.num_train_epochs):,}"
    text = recipes()[f"llm-adapters-{name}-smollm2"].read_text()
    assert text.count(steps) == 3


def test_values_of_llava():
    recipe = load_recipe("llava-1.5-visual")
    assert (recipe.lora_r, recipe.lora_alpha, recipe.lora_dropout) == (128, 128, 0.05)
    assert load_recipe("llava-1.5-visual", {"method": "lora"}).lora_alpha == 256
    assert (recipe.learning_rate, recipe.modules_to_save_learning_rate) == (2e-4, 2e-5)
    assert recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps * 4 == 128
    assert (recipe.lr_scheduler_type, recipe.warmup_steps, recipe.max_length) == ("cosine", 0.03, 2048)
    names = ["model.language_model.layers.0.self_attn.q_proj", "model.language_model.layers.31.mlp.down_proj"]
    others = ["lm_head", "model.multi_modal_projector.linear_1", "model.vision_tower.encoder.layers.0.self_attn.q_proj"]
    assert [n for n in names + others if is_target(recipe.target_modules, n)] == names


def test_values_of_table_9():
    recipe = load_recipe("pissa-math")
    assert (recipe.lora_r, recipe.lora_alpha, recipe.lora_dropout) == (128, 128, 0.0)
    assert (recipe.learning_rate, recipe.lr_scheduler_type, recipe.warmup_steps) == (2e-5, "cosine", 0.03)
    assert recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps == 128
    assert recipe.num_train_epochs == 1
    assert len(recipe.target_modules) == 7


def test_loss_is_that_of_the_protocol():
    assert load_recipe("llm-adapters-commonsense").loss_on == "all"
    assert load_recipe("llm-adapters-math").loss_on == load_recipe("pissa-math").loss_on == "completion"
