"""The keys of a recipe: each is declared here once, with its type, default and description.

The command line makes its flags from these fields, the help text shows the descriptions, and `--dry-run`
prints the resolved values. Names are the field's own (transformers, TRL, PEFT).
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class AboutKeys(BaseModel):
    """What the recipe is and where its values are from."""

    name: str | None = Field(None, description="name of the recipe, shown in the model card")
    description: str | None = Field(None, description="one sentence: what it trains, and on what")
    sources: dict[str, str] = Field({}, description="where a key's value is from: key to citation")


class ModelKeys(BaseModel):
    """The base model."""

    model_name_or_path: str = Field(description="folder of the base model, or its name on the hub")
    gguf_file: str | None = Field(None, description="name of a GGUF file in that folder to read the weights from")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="type of the base weights; auto is the checkpoint's own, float32 for method full"
    )
    trust_remote_code: bool = Field(False, description="run Python code that comes with the model")
    quantization: Literal["bnb-4bit", "bnb-8bit", "torchao-int8", "torchao-int4"] | None = Field(
        None, description="quantise the base while loading it (extra: quant)"
    )
    load_in_4bit: bool = Field(False, description="transformers' name for quantization bnb-4bit")
    load_in_8bit: bool = Field(False, description="transformers' name for quantization bnb-8bit")
    device: str | None = Field(None, description="cpu, cuda, cuda:1, ...; by default the GPU if there is one")


class MethodKeys(BaseModel):
    """What trains."""

    method: str = Field("milora", description="fine-tuning method (`milora methods` lists them)")
    lora_r: int = Field(32, gt=0, description="rank")
    lora_alpha: float | None = Field(
        None, gt=0, description="numerator of the scale; by default r for spectral methods, 2r for LoRA and its kin"
    )
    lora_dropout: float = Field(0.05, ge=0, lt=1, description="dropout on the adapter's input")
    target_modules: str | list[str] = Field(
        "all-linear", description="modules to adapt: all-linear, a list of names, or a regular expression"
    )
    exclude_modules: str | list[str] | None = Field(None, description="modules to leave out: names or a regex")
    layers_to_transform: list[int] | None = Field(None, description="indices of the layers to adapt; all if unset")
    rank_pattern: dict[str, int] = Field({}, description="ranks by module name or regex, over lora_r")
    alpha_pattern: dict[str, float] = Field({}, description="alphas by module name or regex, over lora_alpha")
    modules_to_save: list[str] | None = Field(None, description="modules trained in full and saved")
    modules_to_save_learning_rate: float | None = Field(
        None, gt=0, description="peak learning rate of modules_to_save; learning_rate if unset"
    )
    use_rslora: bool = Field(False, description="scale by alpha/sqrt(r) in place of alpha/r")
    bias: Literal["none", "all", "lora_only"] = Field("none", description="which biases train")
    method_settings: dict[str, Any] = Field({}, description="settings that only this method has, e.g. target_r")


class DataKeys(BaseModel):
    """What is learnt from."""

    dataset: str = Field(description="file (.json, .jsonl, .parquet, .txt, .gz), folder, or NAME[:CONFIG] on the hub")
    dataset_format: str = Field("auto", description="form of the rows; auto tells it from the columns")
    dataset_split: str = Field("train", description="split, or a slice of it: train[:1000]")
    prompt_template: str = Field("auto", description="prompt around an instruction; auto is the format's own")
    dataset_limit: int | None = Field(None, gt=0, description="use this many rows, drawn with the seed")
    empty_rows: Literal["error", "drop"] = Field("error", description="what a row with an empty text does")
    image_folder: str | None = Field(None, description="folder of the rows' pictures; the data set's own if unset")
    val_set_size: int | float = Field(0, ge=0, description="validation rows split off: a number, or a share below 1")
    eval_dataset: str | None = Field(None, description="validation data, in the same format, in place of a split")
    eval_split: str = Field("train", description="split of eval_dataset, or a slice of it")
    eval_dataset_limit: int | None = Field(None, gt=0, description="use this many of its rows: the first that are kept")
    min_length: int | None = Field(None, gt=0, description="leave shorter rows out, in tokens")
    max_length: int | None = Field(None, gt=0, description="longest row in tokens; the model's context if unset")
    overlong: Literal["truncate", "drop", "error"] = Field("truncate", description="what a longer row does")
    packing: bool = Field(False, description="pack rows into blocks of max_length")
    loss_on: Literal["completion", "all"] = Field(
        "completion", description="loss on the answer only, or on prompt and answer"
    )


class MatchedRate(BaseModel):
    """The learning rate at which the first steps go as far as another method's do at its own."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    match: str = Field(description="the other method, with its own default alpha and this recipe's ranks")
    at: float = Field(gt=0, description="its learning rate")


class TrainingKeys(BaseModel):
    """How it trains: transformers' TrainingArguments by name."""

    output_dir: str = Field(description="the run folder")
    num_train_epochs: float = Field(3.0, gt=0, description="passes over the data")
    max_steps: int = Field(-1, ge=-1, description="optimiser steps, in place of num_train_epochs if positive")
    per_device_train_batch_size: int = Field(8, gt=0, description="rows in one forward pass")
    per_device_eval_batch_size: int = Field(8, gt=0, description="rows in one forward pass of validation")
    gradient_accumulation_steps: int = Field(1, gt=0, description="forward passes in one optimiser step")
    learning_rate: Annotated[float, Field(gt=0)] | MatchedRate = Field(
        3e-4, description="peak learning rate, or {match: METHOD, at: RATE}: first steps as long as that method's"
    )
    lr_scheduler_type: str = Field("linear", description="linear, cosine, constant, constant_with_warmup, ...")
    warmup_steps: int | float = Field(0.03, ge=0, description="warm-up steps, or a share of all steps below 1")
    weight_decay: float = Field(0.0, ge=0, description="weight decay")
    max_grad_norm: float = Field(1.0, ge=0, description="largest norm of the gradient; 0 does not clip")
    optim: str = Field("adamw_torch", description="optimiser, by transformers' name")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="AdamW beta1")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="AdamW beta2")
    adam_epsilon: float = Field(1e-8, gt=0, description="AdamW epsilon")
    group_by_modality_length: bool = Field(
        False, description="each optimiser step only on rows with a picture, or only on rows without one"
    )
    seed: int = Field(42, ge=0, description="seed of data order, splits, dropout and random starts")
    bf16: Literal["auto"] | bool = Field("auto", description="compute in bfloat16; auto: on a GPU that has it")
    gradient_checkpointing: bool = Field(False, description="recompute activations: less memory, more time")
    logging_steps: int = Field(10, gt=0, description="steps between two lines of metrics")
    eval_strategy: Literal["no", "steps", "epoch"] = Field("epoch", description="when validation loss is measured")
    eval_steps: int | None = Field(None, gt=0, description="steps between two measurements")
    save_strategy: Literal["no", "steps", "epoch"] = Field("epoch", description="when checkpoints are saved")
    save_steps: int | None = Field(None, gt=0, description="steps between two checkpoints")
    save_total_limit: int | None = Field(3, gt=0, description="checkpoints kept")
    load_best_model_at_end: bool = Field(False, description="end with the checkpoint of least validation loss")
    report_to: str | list[str] = Field("none", description="none or tensorboard")


class MeasuringKeys(BaseModel):
    """What is measured afterwards."""

    eval_tasks: list[str] = Field([], description="lm-evaluation-harness tasks of `milora eval`")
    eval_limit: int | None = Field(None, gt=0, description="use this many rows of each task")
    eval_batch_size: int = Field(8, gt=0, description="rows in one forward pass of the evaluation")
    eval_data_dir: str | None = Field(None, description="folder with the tasks' files, in place of the hub")
    forgetting_text: str | None = Field(None, description="text file on which forgetting is measured")
    forgetting_max_tokens: int | None = Field(None, gt=0, description="use this many tokens of it")
    forgetting_block: int = Field(512, gt=1, description="tokens in one block of it")
