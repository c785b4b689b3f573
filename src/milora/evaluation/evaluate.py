"""One model on tasks of lm-evaluation-harness: this package's own, or any other of the harness by name.

The model is used as it stands, in eval mode and without gradients; its mode and the global random state are
given back afterwards. The harness is imported on the first call, because that takes seconds.
"""

import contextlib
import difflib
import io
import logging
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from milora.errors import MiloraError
from milora.evaluation.records import completions, score_rows
from milora.tasks import folder

if TYPE_CHECKING:
    from milora.evaluation.language_model import Progress


def evaluate(
    model: Any,
    tokenizer: Any,
    tasks: str | Sequence[str],
    *,
    limit: int | float | None = None,
    batch_size: int = 8,
    data_dir: str | os.PathLike[str] | None = None,
    include_path: str | os.PathLike[str] | None = None,
    num_fewshot: int | None = None,
    gen_kwargs: Mapping[str, Any] | None = None,
    max_gen_toks: int | None = None,
    max_length: int | None = None,
    apply_chat_template: bool = False,
    seed: int = 0,
    task_seed: int | None = None,
    task_settings: Mapping[str, Any] | None = None,
    progress: "Progress | None" = None,
) -> dict[str, Any]:
    """Scores and completions of a model on tasks.

    Args:
        model: a built PreTrainedModel or PeftModel, on its device.
        tokenizer: its tokenizer; the processor of an image-text model, for tasks that show pictures.
        tasks: names of tasks or groups.
        limit: the first so many rows of each task, or a share of them below 1; None for all.
        batch_size: requests a forward pass.
        data_dir: folder or file of local rows for this package's tasks; else MILORA_TASK_DATA, else the hub.
        include_path: a further folder of task files.
        num_fewshot: examples before the question, where the task does not fix their number.
        gen_kwargs: generation settings over the task's own; ``{"num_beams": 4}`` is LLM-Adapters' search.
        max_gen_toks: at most so many new tokens, over the task's own number.
        max_length: the context in tokens, below the model's own: prompts are cut to it, and the windows of
            rolling perplexities are so long.
        apply_chat_template: wrap each prompt in the tokenizer's chat template.
        seed: of Python's, numpy's and torch's generators and of the few-shot choice.
        task_seed: what a task draws its rows with: the order of the choices of ``milora_book_mcq``, which is the
            file's where this is None.
        task_settings: further settings that a task takes, as the harness's ``--metadata``, by name.
        progress: called with (kind of request, done, all).

    Returns:
        scores: rows of :mod:`milora.evaluation.records`.
        completions: task -> its completions.
        truncated: task -> number of rows whose prompt did not fit the model's context and lost its beginning.
        settings: what was asked, and the harness's version.

    Raises:
        MiloraError: an unknown task, data that cannot be had or is bad, no chat template, examples asked of a task
            that allows none, or no room for the new tokens.
    """
    names = [tasks] if isinstance(tasks, str) else list(tasks)
    settings = _check_settings(names, limit, batch_size, apply_chat_template, tokenizer)
    overrides = dict(gen_kwargs or {}) | ({"max_gen_toks": max_gen_toks} if max_gen_toks is not None else {})
    settings |= {"num_fewshot": num_fewshot, "gen_kwargs": overrides, "seed": seed}
    settings |= {"task_seed": task_seed, "max_length": _checked_length(model, max_length)}
    settings |= {"task_settings": dict(task_settings or {})}
    with _quiet_harness(), _seeded(seed), _mode_kept(model):
        loaded = _load_tasks(names, include_path, _metadata(data_dir, task_seed, task_settings))
        lm = _harness_model(model, tokenizer, batch_size=batch_size, max_length=max_length, progress=progress)
        for name, task in loaded["tasks"].items():
            _configure(name, task, overrides, num_fewshot, seed, lm)
        output = _run(lm, loaded, limit, apply_chat_template)
    return {
        "scores": score_rows(output, loaded["groups"]),
        "completions": {name: completions(rows, name) for name, rows in output["samples"].items()},
        "truncated": {name: len(lm.truncated[name]) for name in loaded["tasks"]},
        "settings": settings | {"lm_eval_version": _harness_version()},
    }


def task_names(tasks: str | Sequence[str], *, data_dir: Any = None, include_path: Any = None) -> set[str]:
    """The names of tasks and groups that a request stands for: a group is itself and its tasks.

    Raises:
        MiloraError: as :func:`evaluate`.
    """
    with _quiet_harness():
        names = [tasks] if isinstance(tasks, str) else list(tasks)
        loaded = _load_tasks(names, include_path, _metadata(data_dir, None, None))
    return {*loaded["groups"], *loaded["tasks"]}


def _check_settings(
    names: list[str], limit: float | None, batch_size: int, apply_chat_template: bool, tokenizer: Any
) -> dict[str, Any]:
    if not names:
        raise MiloraError("tasks: got none, name at least one")
    if limit is not None and limit <= 0:
        raise MiloraError(f"limit: got {limit}, allowed: a number of rows, a share below 1, or none")
    if batch_size < 1:
        raise MiloraError(f"batch_size: got {batch_size}, allowed: 1 or more")
    if apply_chat_template and not getattr(tokenizer, "chat_template", None):
        raise MiloraError("apply_chat_template: the tokenizer has no chat template")
    return {
        "tasks": names,
        "limit": limit,
        "batch_size": batch_size,
        "apply_chat_template": apply_chat_template,
    }


def _checked_length(model: Any, max_length: int | None) -> int | None:
    context = getattr(model.config, "max_position_embeddings", None)
    if max_length is not None and (max_length < 2 or (context is not None and max_length > context)):
        raise MiloraError(f"max_length: got {max_length}, allowed: 2 to {context or 'any'} (the model's context)")
    return max_length


def _metadata(data_dir: Any, task_seed: int | None, task_settings: Mapping[str, Any] | None) -> dict[str, Any]:
    given = {"data_dir": os.fspath(data_dir) if data_dir else None, "task_seed": task_seed}
    return {name: value for name, value in given.items() if value is not None} | dict(task_settings or {})


def _load_tasks(names: list[str], include_path: Any, metadata: dict[str, Any]) -> dict[str, Any]:
    from datasets.exceptions import DatasetsError
    from lm_eval.tasks import TaskManager

    own = [str(folder())] + ([os.fspath(include_path)] if include_path else [])
    # The harness's own index takes seconds to build, so it is read only for a name that may be there.
    manager = TaskManager(include_path=own, include_defaults=False, metadata=metadata)
    if any(name not in manager.all_tasks and not name.startswith("milora") for name in names):
        manager = TaskManager(include_path=own, metadata=metadata)
    known = manager.all_tasks
    for name in names:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
            hint = f"; nearest: {', '.join(nearest)}" if nearest else f"; {len(known)} names are known"
            raise MiloraError(f"tasks: unknown task {name!r}{hint}")
    try:
        return {"groups": {}, **manager.load(list(dict.fromkeys(names)))}
    except MiloraError:
        raise
    except (OSError, ValueError, DatasetsError) as error:
        line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        if line.startswith("Duplicate task"):
            raise MiloraError(f"tasks: {line}; name the group or its task, not both") from error
        raise MiloraError(f"tasks: {', '.join(names)} cannot be loaded ({line})") from error


def _harness_model(model: Any, tokenizer: Any, **settings: Any) -> Any:
    from milora.evaluation.language_model import BuiltModel
    from milora.evaluation.picture_model import PictureModel

    kind = PictureModel if hasattr(tokenizer, "image_processor") else BuiltModel
    return kind(model, tokenizer, **settings)


def _configure(name: str, task: Any, overrides: dict[str, Any], num_fewshot: int | None, seed: int, lm: Any) -> None:
    from milora.evaluation.language_model import new_tokens

    if getattr(task, "MULTIMODAL", False) and not getattr(lm, "MULTIMODAL", False):
        raise MiloraError(f"tasks: {name} shows pictures, the model takes none; allowed an image-text model")
    if task.get_config("output_type") == "generate_until":
        if overrides:
            task.set_config(key="generation_kwargs", value=overrides, update=True)
        asked = new_tokens(task.get_config("generation_kwargs") or {}, lm.max_gen_toks)
        if asked >= lm.max_length:
            room = f"no room in the model's context of {lm.max_length} tokens"
            raise MiloraError(f"{name}: max_gen_toks {asked} leaves {room}; set a smaller max_gen_toks")
    fixed = task.get_config("num_fewshot")
    if fixed == 0 and num_fewshot:
        raise MiloraError(f"num_fewshot: got {num_fewshot}, allowed 0 for {name}, whose prompt holds no examples")
    if fixed is None or num_fewshot is not None:
        task.set_config(key="num_fewshot", value=num_fewshot or 0)
    task.set_fewshot_seed(seed=seed)


def _run(lm: Any, loaded: dict[str, Any], limit: float | None, apply_chat_template: bool) -> dict[str, Any]:
    from lm_eval.evaluator import evaluate as run_harness

    for task in loaded["tasks"].values():
        task.build_all_requests = _without_bar(task.build_all_requests)
    # Bootstrapping serves metrics that are no means; the harness's 100,000 rounds take minutes.
    return run_harness(lm, loaded, limit=limit, apply_chat_template=apply_chat_template, bootstrap_iters=1000)


def _without_bar(build: Any) -> Any:
    def quietly(*args: Any, **kwargs: Any) -> Any:
        with contextlib.redirect_stderr(io.StringIO()):
            return build(*args, **kwargs)

    return quietly


@contextlib.contextmanager
def _quiet_harness() -> Iterator[None]:
    """Errors only: the harness warns of each prebuilt model and of each task with rows of its own."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextlib.contextmanager
def _mode_kept(model: Any) -> Iterator[None]:
    """The harness puts the model in eval mode; afterwards it is in the mode it came in."""
    training = model.training
    try:
        yield
    finally:
        model.train(training)


def _harness_version() -> str:
    from importlib.metadata import version

    return version("lm_eval")
