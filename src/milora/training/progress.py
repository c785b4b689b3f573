"""What a run says while it goes: a line on the screen, and a line in metrics.jsonl for every log event."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from milora.errors import MiloraError


class MetricsWriter(TrainerCallback):
    """Hand every log event on with its step, epoch and the time (seconds since 1970).

    Args:
        write: takes one record, e.g. ``RunFolder.append_metric``.
    """

    def __init__(self, write: Callable[[Mapping[str, Any]], None]):
        self.write = write

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        if not state.is_world_process_zero or not logs:
            return
        record = {"step": state.global_step, "epoch": state.epoch, "time": round(time.time(), 3)}
        self.write(record | {key: value for key, value in logs.items() if key not in record})


class StopOnNonFiniteLoss(TrainerCallback):
    """Stop a run whose loss is no number any more: each further step costs time and saves nothing."""

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        loss = (logs or {}).get("loss")
        if loss is not None and not math.isfinite(float(loss)):
            raise MiloraError(
                f"training: the loss is {loss} after {state.global_step} steps; a smaller learning_rate "
                f"(now {args.learning_rate:g}) or dtype float32 may help"
            )


class ProgressLine(TrainerCallback):
    """One line that is drawn again: steps done, loss, learning rate, tokens per second, time left.

    Args:
        console: where to draw.
    """

    def __init__(self, console: Console):
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[now]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )
        self.train_task: Any = None
        self.eval_task: Any = None
        self.since: tuple[float, float] | None = None
        self.now: dict[str, str] = {}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            self.progress.start()
            self.train_task = self.progress.add_task("training", total=state.max_steps, now="")
            self.progress.update(self.train_task, completed=state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.train_task is not None:
            self.progress.update(self.train_task, completed=state.global_step)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        if self.train_task is None or not logs:
            return
        for key, name in (("loss", "loss"), ("eval_loss", "eval loss"), ("learning_rate", "lr")):
            if key in logs:
                self.now[name] = f"{name} {float(logs[key]):.4g}"
        if "rank_budget" in logs:
            self.now["rank"] = f"ranks {logs['rank_budget']}"
        if "loss" in logs and "num_tokens" in logs:
            self._rate(float(logs["num_tokens"]))
        self.progress.update(self.train_task, now="  ".join(self.now.values()))

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.train_task is None:
            return
        if self.eval_task is None:
            loader: Any = kwargs.get("eval_dataloader")
            total = len(loader) if hasattr(loader, "__len__") else None
            self.eval_task = self.progress.add_task("validation", total=total, now="")
        self.progress.advance(self.eval_task)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.eval_task is not None:
            self.progress.remove_task(self.eval_task)
            self.eval_task = None
            self.since = None  # the time spent on validation is no training time

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Give the screen back; a second call does nothing."""
        self.progress.stop()

    def _rate(self, tokens: float) -> None:
        now = time.monotonic()
        if self.since is not None and now > self.since[0]:
            self.now["rate"] = f"{(tokens - self.since[1]) / (now - self.since[0]):,.0f} tokens/s"
        self.since = (now, tokens)
