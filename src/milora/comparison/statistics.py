"""The arithmetic of a comparison: means, paired differences, the Pareto front, KL at equal learning. Pure functions.

Runs of different arms share their seeds, and through them the order of the data, which moves all methods together. So
arms are compared by the differences d_s = a_s - b_s of the seeds that both have, or of the test rows that both answer:

    difference = mean(d),    interval = percentile bootstrap over the d's

With three seeds such an interval is the range of the three; it says how far the seeds agree, not more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
from scipy.stats import bootstrap

Key = TypeVar("Key", bound="str | int")


def mean_and_stderr(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean and standard error sd / sqrt(n) with n - 1 under the root of sd; None for no value, or for one."""
    if not values:
        return None, None
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, None
    variance = math.fsum((x - mean) ** 2 for x in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def interval(
    differences: Sequence[float], *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float] | None:
    """The percentile bootstrap interval of a mean; None below two values.

    Args:
        differences: what is resampled, with replacement.
        level: share of the bootstrap means inside.
        resamples: bootstrap samples.
        seed: of their generator.
    """
    if len(differences) < 2:
        return None
    if min(differences) == max(differences):
        return differences[0], differences[0]
    found = bootstrap(
        (np.asarray(differences, dtype=float),),
        np.mean,
        confidence_level=level,
        n_resamples=resamples,
        method="percentile",
        batch=max(1, min(resamples, 10_000_000 // len(differences))),
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


def paired_difference(
    a: Mapping[Key, float], b: Mapping[Key, float], *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> dict[str, Any] | None:
    """mean(a - b) over the keys that both have, with its interval.

    Args:
        a, b: value by seed, or by test row.
        level, resamples, seed: of :func:`interval`.

    Returns:
        difference, stderr, interval, n, level; None without a common key.
    """
    d = [a[key] - b[key] for key in a if key in b]
    mean, stderr = mean_and_stderr(d)
    if mean is None:
        return None
    found = interval(d, level=level, resamples=resamples, seed=seed)
    return {
        "difference": mean, "stderr": stderr, "interval": list(found) if found else None, "n": len(d), "level": level,
    }  # fmt: skip


def pareto_front(points: Sequence[tuple[float, float]], *, higher_is_better: bool) -> list[bool]:
    """Which (score, KL) no other point beats: none has a score as good and a KL as small, one of them strictly.

    Args:
        points: score and KL.
        higher_is_better: of the score; the KL is better the smaller it is.
    """
    sign = 1.0 if higher_is_better else -1.0
    better = [(sign * score, -kl) for score, kl in points]
    return [
        not any(all(p >= q for p, q in zip(other, own, strict=True)) and other != own for other in better)
        for own in better
    ]


@dataclass(frozen=True)
class Point:
    """A run at one step or at one rate: how much it has learnt, and how far it has moved."""

    loss: float  # validation loss
    kl: float


def kl_at(path: Sequence[Point], loss: float) -> float | None:
    """KL where a path first reaches a validation loss, by linear interpolation between neighbouring points.

    Args:
        path: points in the order of their steps, or of their rates.
        loss: the loss asked for.

    Returns:
        None if the loss lies outside what the path was measured at, or was passed before its first point.
    """
    for point in path[:1]:
        if point.loss <= loss:
            return point.kl if point.loss == loss else None
    for before, after in pairwise(path):
        if min(before.loss, after.loss) <= loss <= max(before.loss, after.loss):
            if before.loss == after.loss:
                return before.kl
            share = (loss - before.loss) / (after.loss - before.loss)
            return before.kl + share * (after.kl - before.kl)
    return None


def overlap(a: Sequence[Point], b: Sequence[Point]) -> tuple[float, float] | None:
    """The losses that both paths were measured around: (least, greatest), or None."""
    if not a or not b:
        return None
    low = max(min(p.loss for p in path) for path in (a, b))
    high = min(max(p.loss for p in path) for path in (a, b))
    return (low, high) if low <= high else None


def matched(
    a: Mapping[int, Sequence[Point]],
    b: Mapping[int, Sequence[Point]],
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, Any]:
    """KL of two arms at equal learning: at the least validation loss that both reach, seed by seed.

    Args:
        a, b: the path of each seed.
        level, resamples, seed: of the interval of the mean log ratio.

    Returns:
        comparable, and why not; by seed the loss and both KLs; their means; ratio = exp(mean log(kl_a / kl_b)) with its
        interval.
    """
    by_seed: dict[str, dict[str, float]] = {}
    reason = "not comparable: ranges do not overlap" if set(a) & set(b) else "not comparable: no common seed"
    for run in sorted(set(a) & set(b)):
        common = overlap(a[run], b[run])
        if common is None:
            continue
        kls = kl_at(a[run], common[0]), kl_at(b[run], common[0])
        if kls[0] is not None and kls[1] is not None:
            by_seed[str(run)] = {"validation_loss": common[0], "kl_a": kls[0], "kl_b": kls[1]}
        else:
            reason = "not comparable: one had learnt as much by its first point"
    if not by_seed:
        return {"comparable": False, "reason": reason, "seeds": 0, "ratio": None, "interval": None, "by_seed": {}}
    rows = list(by_seed.values())
    means = {name: math.fsum(row[name] for row in rows) / len(rows) for name in rows[0]}
    logs = [math.log(row["kl_a"] / row["kl_b"]) for row in rows if row["kl_a"] > 0 and row["kl_b"] > 0]
    whole = len(logs) == len(rows)
    found = interval(logs, level=level, resamples=resamples, seed=seed) if whole else None
    return {
        "comparable": True,
        "reason": None,
        "seeds": len(rows),
        **means,
        "ratio": math.exp(math.fsum(logs) / len(logs)) if whole else None,
        "interval": [math.exp(bound) for bound in found] if found else None,
        "by_seed": by_seed,
    }
