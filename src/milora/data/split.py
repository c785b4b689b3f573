"""What identifies a data set, and the part of it that is held back for validation."""

from __future__ import annotations

import hashlib
import json
import math
from typing import TYPE_CHECKING

from milora.errors import MiloraError

if TYPE_CHECKING:
    from datasets import Dataset


def data_hash(dataset: Dataset) -> str:
    """sha256 (hex) over the examples in order, the same for every file form of the same rows."""
    digest = hashlib.sha256()
    for example in dataset:
        digest.update(json.dumps(example, sort_keys=True, ensure_ascii=False).encode("utf-8") + b"\n")
    return digest.hexdigest()


def split_validation(dataset: Dataset, val_set_size: int | float, seed: int) -> tuple[Dataset, Dataset | None]:
    """Training rows and validation rows, parted by a seeded shuffle (LLM-Adapters: 120 rows, seed 42).

    Args:
        val_set_size: rows (int) or a share below 1 (float, rounded up); 0 gives no validation set.

    Raises:
        MiloraError: the size is negative, a share of 1 or more, or leaves no row to train on.

    Examples:
        >>> from datasets import Dataset
        >>> rows = Dataset.from_list([{"text": str(i)} for i in range(10)])
        >>> [len(part) for part in split_validation(rows, 0.25, seed=42)]
        [7, 3]
    """
    if not val_set_size:
        return dataset, None
    size, total = val_set_size, len(dataset)
    if isinstance(size, float):
        if not 0 < size < 1:
            raise MiloraError(f"val_set_size: got {size}, allowed a number of rows or a share below 1")
        size = math.ceil(size * total)
    if not 0 < size < total:
        raise MiloraError(f"val_set_size: got {val_set_size} of {total} rows, allowed 0 to {total - 1} rows")
    parts = dataset.train_test_split(test_size=size, shuffle=True, seed=seed)
    return parts["train"], parts["test"]
