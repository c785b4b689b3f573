"""The grid: what a comparison runs, what it measures and what it checks. Its keys are declared here once.

A grid is a `base` of recipe keys and `arms` that differ from it; each arm is run at each of its ranks and learning
rates with each seed, on each of the `variants` of the base model. Unknown keys and values of another type are refused.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from milora.recipes.keys import MatchedRate

# Keys of a recipe that the grid itself decides for every run.
DECIDED = ("method", "lora_r", "learning_rate", "seed", "output_dir")
# Recipe keys that follow from `measure.at`: the steps at which checkpoints are kept are those that are measured.
FOLLOWING = ("save_strategy", "save_steps", "save_total_limit", "eval_strategy", "eval_steps", "load_best_model_at_end")

_NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.+]*$"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=(), allow_inf_nan=False)


class Arm(_Part):
    """One method with its settings."""

    label: str = Field(pattern=_NAME, description="its name in tables and folders")
    method: str = Field(description="fine-tuning method (`milora methods` lists them)")
    lora_r: list[int] = Field([], description="ranks; the base recipe's if empty")
    learning_rate: list[float | MatchedRate] = Field(
        [], description="learning rates, or {match: METHOD, at: RATE}; the base recipe's if empty"
    )
    keys: dict[str, Any] = Field({}, description="other recipe keys of this arm, over the base's")


class Variant(_Part):
    """One form of the base model."""

    label: str = Field(pattern=_NAME, description="its name in tables and folders")
    rescale: float | None = Field(None, gt=0, description="rescale the weights by this, the function unchanged")
    keys: dict[str, Any] = Field({}, description="recipe keys of this variant, over the base's")


class Selection(_Part):
    """How a learning rate is chosen where an arm has several: by validation loss, before anything else is measured."""

    criterion: Literal["validation loss"] = Field("validation loss", description="what is least at the chosen rate")
    seeds: list[int] = Field([], description="seeds of the runs that choose; the grid's first if empty")
    max_steps: int | None = Field(None, gt=0, description="optimiser steps of these runs; as long as a run if unset")


class ForgettingOn(_Part):
    """The text on which forgetting is measured."""

    text: str = Field(description="a .txt or .txt.gz file, or wikitext-103")
    max_tokens: int | None = Field(None, gt=1, description="use this many tokens of it")
    block: int = Field(512, gt=1, description="tokens in one block")
    batch_size: int = Field(1, gt=0, description="blocks in one forward pass")


class AnalysisOf(_Part):
    """The analysis of the change of each weight."""

    r: int | None = Field(None, gt=0, description="directions of a subspace; the arm's rank if unset")
    seed: int = Field(0, ge=0, description="seed of the random directions")


class Measure(_Part):
    """What is measured of each run."""

    at: list[int] = Field([], description="steps whose checkpoints are measured too; the end always is")
    validation: bool = Field(True, description="loss on the validation rows, row by row")
    validation_batch_size: int = Field(8, gt=0, description="rows in one forward pass of it")
    forgetting: ForgettingOn | None = Field(None, description="forgetting on a text")
    analysis: AnalysisOf | None = Field(None, description="analysis of the weight changes at the end")
    samples: int = Field(3, ge=0, description="validation prompts that base and tuned model answer, side by side")
    sample_tokens: int = Field(96, gt=0, description="tokens of such an answer, at most")
    predicted: bool = Field(False, description="predict each arm's first steps beside LoRA's")
    tasks: list[str] = Field([], description="lm-evaluation-harness tasks at the end")
    limit: int | None = Field(None, gt=0, description="use this many rows of each task")
    batch_size: int = Field(8, gt=0, description="rows in one forward pass of a task")
    data_dir: str | None = Field(None, description="folder with the tasks' files, in place of the hub")
    gen_kwargs: dict[str, Any] = Field({}, description="generation settings over the tasks' own, as {num_beams: 4}")
    onto: str | None = Field(
        None, description="measure on this model with each run's change added: the instruct model of the base"
    )


class Check(_Part):
    """A statement about the results that can fail."""

    name: str = Field(description="what is claimed, in a few words")
    value: str = Field(description="arithmetic over metrics: kl(pissa) / kl(lora, step=16)")
    sense: Literal[">=", "<="] = Field(">=", description="on which side of the limit the value must lie")
    limit: float = Field(description="the limit")
    variant: str | None = Field(None, description="of which variant; the first if unset")
    over: Literal["mean", "every"] = Field("mean", description="of means over seeds, or of each seed by itself")
    gate: bool = Field(True, description="whether the comparison fails with it")


class Grid(_Part):
    """Everything that decides a comparison."""

    name: str | None = Field(None, description="name of the grid")
    description: str | None = Field(None, description="one sentence: what it compares, and on what")
    recipe: str | None = Field(None, description="a recipe, shipped or a file, below the keys of `base`")
    base: dict[str, Any] = Field(description="recipe keys that all runs share")
    arms: list[Arm] = Field(min_length=1, description="the methods that are compared")
    variants: list[Variant] = Field([], description="forms of the base model; it as it is if empty")
    seeds: list[int] = Field([0], min_length=1, description="seeds; differences are paired by them")
    selection: Selection = Field(Selection.model_validate({}), description="how a learning rate is chosen")
    measure: Measure = Field(Measure.model_validate({}), description="what is measured of each run")
    against: list[str] = Field([], description="arms that all are compared with, or base; lora and base if empty")
    checks: list[Check] = Field([], description="statements that can fail")
    level: float = Field(0.95, gt=0, lt=1, description="level of the bootstrap intervals")
    resamples: int = Field(10_000, gt=99, description="resamples of the bootstrap")
    keep_checkpoints: bool = Field(False, description="keep what was measured and is needed no more")
    procs: int = Field(1, gt=0, description="processes that run at once")
    local_files: dict[str, str] = Field({}, description="dotted key to file below --data_dir that takes its place")
    output_dir: str = Field("comparison", description="the comparison folder")

    def forms(self) -> list[Variant]:
        """The variants; the base model as it is where none is named."""
        return self.variants or [Variant.model_validate({"label": "base"})]

    def others(self) -> list[str]:
        """What all arms are compared with: `against`, else the arm `lora` where there is one, and the base model."""
        return self.against or [*(["lora"] if "lora" in {arm.label for arm in self.arms} else []), "base"]


def settings_of(measure: Measure, *, whole: bool) -> dict[str, Any]:
    """What decides the measurements of a run, as measured.json names it."""
    settings = measure.model_dump(mode="json", exclude={"onto"} if measure.onto is None else None)
    return settings if whole else {name: settings[name] for name in ("validation", "onto") if name in settings}
