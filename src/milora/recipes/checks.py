"""What a recipe's keys must keep to together. Each check looks at all values and says what is wrong, or
nothing."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace

from milora.data import FORMATS, TEMPLATES
from milora.recipes.keys import MethodKeys
from milora.recipes.method_settings import known_methods

SCHEDULERS = (
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt",
    "cosine_with_min_lr", "cosine_warmup_with_min_lr", "warmup_stable_decay",
)  # fmt: skip

TRACKERS = ("none", "tensorboard")

VALIDATION_DATA = ("val_set_size", "eval_dataset", "eval_split", "eval_dataset_limit")

QUANTISATION = ("quantization", "load_in_4bit", "load_in_8bit")

# Keys that say nothing to a method.
UNUSED = {
    "adalora": ("rank_pattern", "alpha_pattern", "use_rslora"),
    "svf": ("rank_pattern", "alpha_pattern", "use_rslora"),
    "svft": ("rank_pattern", "alpha_pattern", "use_rslora"),
    "vera": ("lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "bias"),
    # A preset's rank, dropout and placement are plainly an adapter's, so that `--method full` may go over any preset.
    "full": ("exclude_modules", "layers_to_transform", "rank_pattern", "alpha_pattern", "use_rslora"),
}

Check = Callable[[SimpleNamespace], Iterator[str]]


def nearest(name: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the nearest known name, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def method(v: SimpleNamespace) -> Iterator[str]:
    """`method` is known, and its settings are."""
    known = known_methods()
    if v.method not in known:
        yield f"method: got {v.method!r}{nearest(v.method, known)}, allowed {', '.join(known)}"
        return
    allowed = known[v.method]
    for name in v.method_settings:
        if name not in allowed:
            names = ", ".join(allowed) or "no settings"
            yield f"method_settings: {v.method} has no {name!r}{nearest(name, allowed)}, allowed {names}"


def full_fine_tuning(v: SimpleNamespace) -> Iterator[str]:
    """Quantised weights do not train."""
    for key in QUANTISATION:
        if v.method == "full" and getattr(v, key):
            yield f"{key}: got {str(getattr(v, key)).lower()} with method full, allowed only with an adapter"


def keys_of_the_method(v: SimpleNamespace) -> Iterator[str]:
    """A key that the method has no use for stays at its default: it would be read and not followed."""
    for key in UNUSED.get(v.method, ()):
        value, default = getattr(v, key), MethodKeys.model_fields[key].default
        if value != default:
            allowed = "null" if default is None else default
            yield f"{key}: got {value!r} with method {v.method}, which has no use for it, allowed {allowed}"


def rate_of_saved_modules(v: SimpleNamespace) -> Iterator[str]:
    """A learning rate is for something."""
    if v.modules_to_save_learning_rate is not None and not v.modules_to_save:
        rate = v.modules_to_save_learning_rate
        yield f"modules_to_save_learning_rate: got {rate} without modules_to_save, allowed with it"


def quantisation(v: SimpleNamespace) -> Iterator[str]:
    """One kind of base weights."""
    given = [key for key in QUANTISATION if getattr(v, key)]
    if len(given) > 1:
        yield f"{', '.join(given)}: got {'both' if len(given) == 2 else 'all'}, allowed one"
    if given and v.gguf_file:
        yield f"{given[0]}: got {str(getattr(v, given[0])).lower()} with gguf_file, allowed with safetensors"


def names(v: SimpleNamespace) -> Iterator[str]:
    """Names out of closed lists."""
    lists = {
        "dataset_format": ("auto", *FORMATS),
        "prompt_template": ("auto", *TEMPLATES),
        "lr_scheduler_type": SCHEDULERS,
    }
    for key, allowed in lists.items():
        value = getattr(v, key)
        if value not in allowed:
            yield f"{key}: got {value!r}{nearest(value, allowed)}, allowed {', '.join(allowed)}"


def matched_rate(v: SimpleNamespace) -> Iterator[str]:
    """A rate is matched between methods whose first steps are predicted, for Adam's steps."""
    if not isinstance(v.learning_rate, dict):
        return
    from milora.methods.first_steps import UNPREDICTED

    match, own, allowed = v.learning_rate["match"], v.method, [m for m in known_methods() if m not in UNPREDICTED]
    if match not in allowed:
        yield f"learning_rate: got match {match!r}{nearest(match, allowed)}, allowed {', '.join(allowed)}"
    if own in UNPREDICTED or v.method_settings.get("as_published"):
        how = own if own in UNPREDICTED else f"{own} as_published"
        yield f"learning_rate: got match with method {how}, whose first steps are not predicted, allowed a number"
    if "adam" not in v.optim:
        yield f"learning_rate: got match with optim {v.optim}, allowed with one of Adam's kind, or a number"


def trackers(v: SimpleNamespace) -> Iterator[str]:
    """Where metrics are also sent."""
    for name in [v.report_to] if isinstance(v.report_to, str) else v.report_to:
        if name not in TRACKERS:
            yield f"report_to: got {name!r}, allowed {', '.join(TRACKERS)}"


def validation(v: SimpleNamespace) -> Iterator[str]:
    """Where validation rows come from."""
    if v.val_set_size and v.eval_dataset:
        yield f"val_set_size: got {v.val_set_size} with eval_dataset, allowed one of them"
    if v.eval_split != "train" and not v.eval_dataset:
        yield f"eval_split: got {v.eval_split!r} without eval_dataset, allowed with it"
    if v.eval_dataset_limit and not v.eval_dataset:
        yield f"eval_dataset_limit: got {v.eval_dataset_limit} without eval_dataset, allowed with it"
    if isinstance(v.val_set_size, float) and v.val_set_size >= 1:
        yield f"val_set_size: got {v.val_set_size}, allowed a whole number of rows or a share below 1"
    if not (v.val_set_size or v.eval_dataset):
        if v.load_best_model_at_end:
            yield "load_best_model_at_end: got true without validation rows, needs val_set_size or eval_dataset"
        if v.eval_strategy == "steps":
            yield "eval_strategy: got steps without validation rows, needs val_set_size or eval_dataset"


def intervals(v: SimpleNamespace) -> Iterator[str]:
    """`steps` needs its number, and a number needs `steps`."""
    for strategy, steps in (("eval_strategy", "eval_steps"), ("save_strategy", "save_steps")):
        chosen, number = getattr(v, strategy), getattr(v, steps)
        if chosen == "steps" and number is None:
            yield f"{strategy}: got steps without {steps}, allowed with a number of steps"
        if chosen != "steps" and number is not None:
            yield f"{steps}: got {number} with {strategy} {chosen}, allowed only with {strategy} steps"


def best_checkpoint(v: SimpleNamespace) -> Iterator[str]:
    """The best checkpoint is one that was both saved and measured."""
    if not v.load_best_model_at_end:
        return
    if v.eval_strategy == "no" or v.eval_strategy != v.save_strategy:
        got = f"eval_strategy {v.eval_strategy} and save_strategy {v.save_strategy}"
        yield f"load_best_model_at_end: got {got}, allowed the same for both, steps or epoch"
    elif v.eval_strategy == "steps" and v.eval_steps and v.save_steps and v.save_steps % v.eval_steps:
        got = f"save_steps {v.save_steps} and eval_steps {v.eval_steps}"
        yield f"load_best_model_at_end: got {got}, allowed save_steps a multiple of eval_steps"


def length(v: SimpleNamespace) -> Iterator[str]:
    """How long a run and a block are."""
    if v.max_steps == 0:
        yield "max_steps: got 0, allowed a positive number, or -1 for num_train_epochs"
    if v.min_length and v.max_length and v.min_length > v.max_length:
        yield f"min_length: got {v.min_length} with max_length {v.max_length}, allowed no more than that"
    if v.packing and v.max_length is None:
        yield "packing: got true without max_length, which is the size of a block"
    if isinstance(v.warmup_steps, float) and v.warmup_steps >= 1 and not v.warmup_steps.is_integer():
        yield f"warmup_steps: got {v.warmup_steps}, allowed a whole number of steps or a share below 1"


# Each check with the keys it looks at: it is left out where one of them is wrong by itself.
CHECKS: tuple[tuple[Check, tuple[str, ...]], ...] = (
    (method, ("method", "method_settings")),
    (full_fine_tuning, ("method", *QUANTISATION)),
    (keys_of_the_method, ("method", *UNUSED["full"], "bias")),
    (rate_of_saved_modules, ("modules_to_save", "modules_to_save_learning_rate")),
    (quantisation, ("gguf_file", *QUANTISATION)),
    (names, ("dataset_format", "prompt_template", "lr_scheduler_type")),
    (matched_rate, ("learning_rate", "method", "method_settings", "optim")),
    (trackers, ("report_to",)),
    (validation, (*VALIDATION_DATA, "load_best_model_at_end", "eval_strategy")),
    (intervals, ("eval_strategy", "eval_steps", "save_strategy", "save_steps")),
    (best_checkpoint, ("load_best_model_at_end", "eval_strategy", "save_strategy", "eval_steps", "save_steps")),
    (length, ("max_steps", "packing", "min_length", "max_length", "warmup_steps")),
)


def combined(values: SimpleNamespace, wrong: set[str]) -> list[str]:
    """What is wrong with the values together.

    Args:
        values: every key as an attribute.
        wrong: keys whose value is already known to be wrong.
    """
    return [problem for check, keys in CHECKS if not wrong & set(keys) for problem in check(values)]
