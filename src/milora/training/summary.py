"""What a person wants to read when a run is over."""

from typing import Any

from rich.table import Table

from milora.runs import RunFolder


def summary(trainer: Any, run: RunFolder, record: dict[str, Any], seconds: float) -> Table:
    """A table of steps, losses, trainable numbers, time and folder.

    Args:
        trainer: after training.
        record: what went into provenance.json.
        seconds: from the call to now.
    """
    table = Table(title="run", show_header=False, title_justify="left")
    for name, value in facts(trainer, run, record, seconds).items():
        table.add_row(name, value)
    return table


def facts(trainer: Any, run: RunFolder, record: dict[str, Any], seconds: float) -> dict[str, str]:
    """The rows of the summary."""
    state = trainer.state
    losses = [event["loss"] for event in state.log_history if "loss" in event]
    trainable, total = record["trainable_parameters"], record["parameters"]
    rows = {
        "steps": f"{state.global_step} ({state.epoch or 0:.2f} epochs)",
        "train loss": _train_loss(losses),
        "eval loss": _eval_loss(trainer),
        "trainable numbers": f"{trainable:,} of {total:,} ({trainable / total:.3%})",
        "time": f"{seconds // 60:.0f} min {seconds % 60:.0f} s",
        "folder": str(run.path),
    }
    return {name: value for name, value in rows.items() if value}


def _train_loss(losses: list[float]) -> str:
    if len(losses) < 2:
        return f"{losses[0]:.4f}" if losses else "not logged"
    return f"{losses[0]:.4f} at first, {losses[-1]:.4f} at last"


def _eval_loss(trainer: Any) -> str:
    state = trainer.state
    if trainer.args.load_best_model_at_end and state.best_metric is not None:
        return f"{state.best_metric:.4f}, the best (step {state.best_global_step}), whose weights are kept"
    measured = [event["eval_loss"] for event in state.log_history if "eval_loss" in event]
    return f"{measured[-1]:.4f}" if measured else ""
