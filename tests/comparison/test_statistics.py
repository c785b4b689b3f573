"""The arithmetic against numpy, scipy and sums done by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from milora.comparison.statistics import (
    Point,
    interval,
    kl_at,
    matched,
    mean_and_stderr,
    overlap,
    paired_difference,
    pareto_front,
)

VALUES = [0.411, 0.293, 0.398, 0.5]


def test_mean_and_standard_error_are_numpys():
    mean, stderr = mean_and_stderr(VALUES)
    assert mean == pytest.approx(np.mean(VALUES), rel=1e-15)
    assert stderr == pytest.approx(stats.sem(VALUES), rel=1e-14)
    assert mean_and_stderr([2.0]) == (2.0, None)
    assert mean_and_stderr([]) == (None, None)


def test_interval_is_the_percentiles_of_bootstrap_means_and_repeats():
    differences = list(np.random.default_rng(1).normal(0.3, 1.0, 40))
    low, high = interval(differences, level=0.9, resamples=5000, seed=3)
    draw = np.random.default_rng(11)
    means = [np.mean(draw.choice(differences, 40)) for _ in range(5000)]
    assert low == pytest.approx(np.quantile(means, 0.05), abs=0.03)
    assert high == pytest.approx(np.quantile(means, 0.95), abs=0.03)
    assert interval(differences, level=0.9, resamples=5000, seed=3) == (low, high)
    assert interval(differences, level=0.9, resamples=5000, seed=4) != (low, high)


def test_interval_of_three_seeds_lies_within_them_and_of_one_there_is_none():
    low, high = interval([0.1, 0.2, 0.4])
    assert 0.1 <= low < 0.7 / 3 < high <= 0.4 + 1e-12
    assert interval([0.1]) is None
    assert interval([0.1, 0.1]) == (0.1, 0.1)


def test_differences_are_paired_by_key():
    a, b = {0: 1.0, 1: 2.0, 2: 4.0}, {2: 1.0, 0: 0.5, 7: 100.0}
    found = paired_difference(a, b)
    assert found is not None
    assert (found["difference"], found["n"]) == (1.75, 2)  # 0.5 and 3.0
    assert found["stderr"] == pytest.approx(stats.sem([0.5, 3.0]))
    assert found["interval"] == [0.5, 3.0]
    assert paired_difference({0: 1.0}, {1: 1.0}) is None
    alone = paired_difference({0: 1.0}, {0: 3.0})
    assert alone is not None and (alone["difference"], alone["interval"], alone["stderr"]) == (-2.0, None, None)


def test_pareto_front_by_hand():
    points = [(1.0, 0.0), (0.9, 0.1), (0.95, 0.2), (0.8, 0.3), (0.9, 0.1), (0.7, math.inf)]
    assert pareto_front(points, higher_is_better=False) == [True, True, False, True, True, True]
    assert pareto_front(points, higher_is_better=True) == [True, False, False, False, False, False]
    assert pareto_front([], higher_is_better=True) == []


def test_kl_at_a_loss_is_interpolated_where_the_path_first_reaches_it():
    path = [Point(2.0, 0.0), Point(1.0, 0.4), Point(1.5, 0.9), Point(0.5, 1.3)]
    assert kl_at(path, 1.5) == pytest.approx(0.2)
    assert kl_at(path, 1.0) == pytest.approx(0.4)
    assert kl_at(path, 0.75) == pytest.approx(0.9 + 0.75 * 0.4)
    assert kl_at(path, 2.0) == 0.0
    assert kl_at(path, 2.1) is None and kl_at(path, 0.4) is None
    assert kl_at([Point(1.0, 0.4)], 1.0) == 0.4
    assert kl_at([Point(0.9, 0.2), Point(1.0, 0.5)], 0.95) is None  # passed before the first point, whatever follows
    assert kl_at([], 1.0) is None


def test_arms_are_compared_at_the_least_loss_that_both_reach():
    a = {0: [Point(1.0, 0.1), Point(0.8, 0.3)], 1: [Point(1.1, 0.1), Point(0.9, 0.5)]}
    b = {0: [Point(0.9, 0.05), Point(0.7, 0.25)], 1: [Point(1.0, 0.1), Point(0.8, 0.3)]}
    found = matched(a, b)
    assert found["comparable"] and found["seeds"] == 2
    assert found["by_seed"]["0"] == {"validation_loss": 0.8, "kl_a": 0.3, "kl_b": pytest.approx(0.15)}
    assert found["by_seed"]["1"] == {"validation_loss": 0.9, "kl_a": 0.5, "kl_b": pytest.approx(0.2)}
    assert found["ratio"] == pytest.approx(math.sqrt(2.0 * 2.5))
    assert found["interval"] == [pytest.approx(2.0), pytest.approx(2.5)]
    assert found["kl_a"] == pytest.approx(0.4) and found["validation_loss"] == pytest.approx(0.85)


def test_paths_that_do_not_meet_are_not_compared():
    a, b = {0: [Point(1.0, 0.1), Point(0.9, 0.3)]}, {0: [Point(0.8, 0.1), Point(0.7, 0.3)]}
    assert overlap(a[0], b[0]) is None
    found = matched(a, b)
    assert not found["comparable"] and found["reason"] == "not comparable: ranges do not overlap"
    assert found["ratio"] is None and found["by_seed"] == {}
    assert matched(a, {1: b[0]})["reason"] == "not comparable: no common seed"
    past = matched({0: [Point(0.9, 0.2), Point(1.0, 0.5)]}, {0: [Point(1.1, 0.05), Point(0.95, 0.1)]})
    assert past["reason"] == "not comparable: one had learnt as much by its first point"


def test_a_ratio_needs_two_positive_kls():
    found = matched({0: [Point(1.0, 0.0)]}, {0: [Point(1.0, 0.2)]})
    assert found["comparable"] and found["ratio"] is None and found["interval"] is None
