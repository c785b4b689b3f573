"""Libraries that draw bars and warn of what nobody can mend, kept quiet while the console says what is going on."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import datasets
from transformers.utils import logging as transformers_logging


@contextmanager
def quiet_libraries(*, adalora: bool = False) -> Iterator[None]:
    """Silence what datasets, transformers and PEFT say of their own accord.

    Args:
        adalora: also what PEFT says of a pruned layer.
    """
    # datasets draws a bar for every pass over the rows and transformers one for each file it reads or writes; the
    # console says what is going on. A caller who had them on gets them back.
    rows, files = datasets.is_progress_bar_enabled(), transformers_logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()
    checkpoints = logging.getLogger("transformers.trainer_utils")
    checkpoints.addFilter(_not_about_mtime)
    try:
        with warnings.catch_warnings():
            # PEFT asks transformers by a deprecated name; nobody who trains can do anything about it.
            warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated", FutureWarning)
            if adalora:
                # PEFT takes a layer whose last triplet is pruned for a sharded one that was not gathered.
                warnings.filterwarnings("ignore", r".*LoRA tensor\(s\) have invalid shape")
            yield
    finally:
        checkpoints.removeFilter(_not_about_mtime)
        if rows:
            datasets.enable_progress_bars()
        if files:
            transformers_logging.enable_progress_bar()


def _not_about_mtime(record: logging.LogRecord) -> bool:
    # Checkpoints written within a second are sorted by their numbers, which is right; the warning blames the disk.
    return "mtime may not be reliable" not in record.getMessage()
