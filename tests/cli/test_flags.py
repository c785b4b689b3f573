"""Flags made from a pydantic model's fields."""

from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field

from milora.cli.flags import describe, parse
from milora.errors import MiloraError


class Settings(BaseModel):
    name: str | None = Field(None, description="What it is called.")
    lora_r: int = 32
    warmup: int | float = 0
    rate: float = 1e-3
    packing: bool = False
    bf16: bool | Literal["auto"] = "auto"
    report_to: str = "none"
    target_modules: str | list[str] = "all-linear"
    eval_tasks: list[str] = []
    rank_pattern: dict[str, int] = {}
    method_settings: dict[str, Any] = {}


def keys(*arguments: str) -> dict[str, Any]:
    return parse(arguments, Settings.model_fields).keys


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--lora_r", "8"], {"lora_r": 8}),
        (["--lora-r=8"], {"lora_r": 8}),
        (["--warmup", "0.1"], {"warmup": 0.1}),
        (["--warmup", "100"], {"warmup": 100}),
        (["--rate", "3e-4"], {"rate": 3e-4}),
        (["--lora_r", "-1"], {"lora_r": -1}),
        (["--packing"], {"packing": True}),
        (["--packing", "false"], {"packing": False}),
        (["--no-packing"], {"packing": False}),
        (["--no_packing", "--lora_r", "2"], {"packing": False, "lora_r": 2}),
        (["--bf16", "auto"], {"bf16": "auto"}),
        (["--bf16", "--lora_r", "2"], {"bf16": True, "lora_r": 2}),
        (["--report-to", "none"], {"report_to": "none"}),
        (["--name", "none"], {"name": None}),
        (["--name", "12"], {"name": "12"}),
        (["--name=--odd"], {"name": "--odd"}),
        (["--target_modules", "all-linear"], {"target_modules": "all-linear"}),
        (["--target_modules", "q_proj,v_proj"], {"target_modules": ["q_proj", "v_proj"]}),
        (["--target_modules", "[q_proj]"], {"target_modules": ["q_proj"]}),
        (["--eval-tasks", "gsm8k"], {"eval_tasks": ["gsm8k"]}),
        (["--rank_pattern", "{q_proj: 4}"], {"rank_pattern": {"q_proj": 4}}),
        (["--method_settings", "{tinit: 5}"], {"method_settings": {"tinit": 5}}),
        (["--lora_r", "many"], {"lora_r": "many"}),
    ],
)
def test_values_are_read_by_the_fields_types(arguments: list[str], expected: dict[str, Any]):
    found = keys(*arguments)
    assert found == expected
    assert {type(value) for value in found.values()} == {type(value) for value in expected.values()}


def test_words_keys_and_switches_are_told_apart():
    parsed = parse(["r.yaml", "--dry-run", "--packing", "--lora_r", "4"], Settings.model_fields, ("dry_run",))
    assert (parsed.words, parsed.switches) == (["r.yaml"], {"dry_run"})
    assert parsed.keys == {"packing": True, "lora_r": 4}


def test_a_word_after_a_switch_stays_a_word():
    parsed = parse(["--packing", "r.yaml"], Settings.model_fields)
    assert (parsed.words, parsed.keys) == (["r.yaml"], {"packing": True})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lora_rank", "8"], "--lora_rank: unknown flag, did you mean --lora_r?"),
        (["--lora-rank=8"], "--lora-rank: unknown flag, did you mean --lora_r?"),
        (["--qqqqqqq"], r"--qqqqqqq: unknown flag \("),
        (["--no-lora_r"], "unknown flag"),
        (["--lora_r"], "--lora_r: got no value"),
        (["--lora_r", "--packing"], "--lora_r: got no value"),
    ],
)
def test_wrong_flags_are_named(arguments: list[str], message: str):
    with pytest.raises(MiloraError, match=message):
        keys(*arguments)


def test_every_field_is_described():
    described = list(describe(Settings.model_fields))
    assert len(described) == len(Settings.model_fields)
    assert described[0] == ("--name", "", "What it is called.")
    assert described[1] == ("--lora_r", "32", "")
