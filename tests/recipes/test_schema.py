"""The schema itself: each key declared once with a description; settings of methods as PEFT has them."""

import pytest

from milora.adapters import method_names, peft_config
from milora.recipes import Recipe
from milora.recipes.method_settings import PEFT_SETTINGS, known_methods
from milora.recipes.strict_yaml import parse, write


def test_every_key_has_a_description_and_a_default_of_its_type():
    fields = Recipe.model_fields
    assert len(fields) >= 68
    assert not [name for name, field in fields.items() if not field.description]
    needed = [name for name, field in fields.items() if field.is_required()]
    assert needed == ["model_name_or_path", "dataset", "output_dir"]
    recipe = Recipe(model_name_or_path="m", dataset="d", output_dir="o")
    assert Recipe.model_validate(recipe.model_dump()) == recipe


def test_keys_come_in_the_order_of_their_sections():
    order = list(Recipe.model_fields)
    told = ["name", "model_name_or_path", "method", "dataset", "output_dir", "eval_tasks", "forgetting_block"]
    assert sorted(told, key=order.index) == told
    assert order[-1] == "forgetting_block"


def test_methods_are_those_of_the_adapters():
    assert sorted(known_methods()) == sorted(method_names())
    assert len(known_methods()) >= 10


@pytest.mark.parametrize("method", sorted(known_methods()))
def test_settings_are_fields_of_the_methods_configuration(method):
    settings = {"total_step": 100} if method == "adalora" else {}
    config = peft_config({"method": method, "lora_r": 4, "method_settings": settings})
    if config is None:
        assert PEFT_SETTINGS[method] == ()
        return
    assert set(known_methods()[method]) <= set(config.__dataclass_fields__)


@pytest.mark.parametrize(
    "text, value",
    [
        ("1e-5", 1e-5),
        ("3E4", 3e4),
        ("1.", 1.0),
        (".5", 0.5),
        ("-2", -2),
        ("010", 10),
        ("no", "no"),
        ("on", "on"),
        ("True", True),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("2024-01-01", "2024-01-01"),
        ("~", None),
        ("", None),
        ("e5", "e5"),
        ("0x1f", "0x1f"),
        (".inf", float("inf")),
        ("'1e-5'", "1e-5"),
        ("<<", "<<"),
    ],
)
def test_plain_words_of_yaml(text, value):
    read = parse(text, "here")
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize("value", ["1e-5", "no", "010", "", "~", "1:30", 1e-5, 3.0, 10, True, None, [], {}, "a: b"])
def test_written_values_are_read_back(value):
    read = parse(write({"k": value}), "here")["k"]
    assert read == value
    assert type(read) is type(value)
