"""Ranges of codes: what each way of choosing one is good for."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.passes._calibration import CodeRange


def test_ranges_hold_zero_exactly() -> None:
    rng = np.random.default_rng(0)
    for floats in (rng.random(99) + 5, -rng.random(99) - 5, rng.normal(size=99), np.zeros(9)):
        for found in CodeRange.of([floats]):
            assert found.rounded(np.zeros(1)) == 0
        largest = CodeRange.of([floats])[0]
        assert np.abs(largest.rounded(floats) - floats).max() <= largest.scale * 1.01


def test_the_least_squares_come_first() -> None:
    floats = np.random.default_rng(0).normal(size=100_000)
    floats[0] = 1000
    first, *others = CodeRange.of([floats])
    assert first.scale == pytest.approx(1000 / 255, rel=0.01)  # the outlier is worth it
    assert others
    assert all(first.error <= other.error for other in others)
    # Others look at how many there are: one in 100,000 counts for nothing.
    assert min(other.scale for other in others) < 10 / 255
    assert CodeRange.of([floats[1:]])[0].error < 0.01


def test_equal_ranges_come_once() -> None:
    found = CodeRange.of([np.linspace(0, 1, 50)])
    assert len({(float(r.scale), int(r.zero)) for r in found}) == len(found)


def test_a_distribution_is_kept() -> None:
    """Of a heavy tail, the range that loses least information is not that of all."""
    floats = np.random.default_rng(0).standard_cauchy(100_000)
    scales = [float(r.scale) for r in CodeRange.of([floats])]
    assert max(scales) > 10 * min(scales)


def test_no_rows_give_some_range() -> None:
    (found,) = CodeRange.of([np.zeros((0, 3))])
    assert found.scale > 0
