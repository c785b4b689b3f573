"""Flags made from a pydantic model's fields."""

from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field

from milora.cli.flags import describe, parse
from milora.errors import MiloraError


class Settings(BaseModel):
    name: str | None = Field(None, description="What it is called.")
    lora_r: int = 32
    packing: bool = False
    bf16: bool | Literal["auto"] = "auto"
    target_modules: str | list[str] = "all-linear"


def keys(*arguments: str) -> dict[str, Any]:
    return parse(arguments, Settings.model_fields).keys


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--lora_r", "8"], {"lora_r": "8"}),
        (["--lora-r=8"], {"lora_r": "8"}),
        (["--lora_r", "-1"], {"lora_r": "-1"}),
        (["--packing"], {"packing": True}),
        (["--packing", "false"], {"packing": "false"}),
        (["--no-packing"], {"packing": False}),
        (["--no_packing", "--lora_r", "2"], {"packing": False, "lora_r": "2"}),
        (["--bf16", "auto"], {"bf16": "auto"}),
        (["--bf16", "--lora_r", "2"], {"bf16": True, "lora_r": "2"}),
        (["--name=--odd"], {"name": "--odd"}),
        (["--name="], {"name": ""}),
        (["--target-modules", "q_proj,v_proj"], {"target_modules": "q_proj,v_proj"}),
    ],
)
def test_flags_are_found_in_both_spellings(arguments: list[str], expected: dict[str, Any]):
    assert keys(*arguments) == expected


def test_words_keys_and_switches_are_told_apart():
    parsed = parse(["r.yaml", "--dry-run", "--packing", "--lora_r", "4"], Settings.model_fields, ("dry_run",))
    assert (parsed.words, parsed.switches) == (["r.yaml"], {"dry_run"})
    assert parsed.keys == {"packing": True, "lora_r": "4"}


def test_a_switch_takes_no_value():
    with pytest.raises(MiloraError, match="--dry-run: got 'true', takes no value"):
        parse(["--dry-run=true"], Settings.model_fields, ("dry_run",))


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
