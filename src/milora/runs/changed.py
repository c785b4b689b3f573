"""The changed weights of a run, an adapter or two whole models, by their paths: nothing is built that need not be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from milora.adapters import weight_changes
from milora.errors import MiloraError
from milora.models.changes import Changes, checkpoint_changes
from milora.models.targets import ALL_LINEAR
from milora.runs.folder import RunFolder


def changes_of(
    path: str | Path | None,
    *,
    model_name_or_path: str | None = None,
    tuned: str | Path | None = None,
    targets: str | Sequence[str] = ALL_LINEAR,
    gguf_file: str | None = None,
    trust_remote_code: bool = False,
    force: bool = False,
) -> Changes:
    """The changes of weights that lie behind a path.

    Args:
        path: a run folder or an adapter's folder; None with `tuned`.
        model_name_or_path: the base; by default the one that the run or the adapter names.
        tuned: a whole model, to be compared with `model_name_or_path`.
        targets: which weights of whole models.
        gguf_file: the GGUF file inside the base's folder; by default the run's.
        trust_remote_code: run the model's own code; a run that does so says so itself.
        force: measure an adapter also on a base with another fingerprint.

    Raises:
        MiloraError: both or neither of `path` and `tuned`, no base, or what the sources of changes refuse.
    """
    if (path is None) == (tuned is None):
        raise MiloraError("analyse: allowed a run or an adapter, or --tuned with --model_name_or_path")
    if tuned is not None:
        if model_name_or_path is None:
            raise MiloraError("--model_name_or_path: got none, allowed the model before training, with --tuned")
        return checkpoint_changes(
            model_name_or_path, tuned, targets, gguf_file=gguf_file, trust_remote_code=trust_remote_code
        )
    run = RunFolder(path or "")
    if not run.holds_run:
        return weight_changes(
            run.path, model_name_or_path, gguf_file=gguf_file, trust_remote_code=trust_remote_code, force=force
        )
    recipe = run.recipe()
    if model_name_or_path is None:
        model_name_or_path, gguf_file = recipe.model_name_or_path, gguf_file or recipe.gguf_file
    trust_remote_code = trust_remote_code or recipe.trust_remote_code
    source = {"gguf_file": gguf_file, "trust_remote_code": trust_remote_code}
    if recipe.method == "full":
        return checkpoint_changes(model_name_or_path, run.model, targets, **source)
    return weight_changes(run.own_adapter(), model_name_or_path, force=force, **source)
