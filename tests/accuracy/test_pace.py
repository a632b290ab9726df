"""A change is faster if it is so at some batch size and slower at none."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest

from graphopt.accuracy import pace
from graphopt.accuracy.datasets import Dataset, in_batches
from graphopt.latency import Latency


class Model:
    """Takes so long for a number of rows; the clock of the tests asks it."""

    def __init__(self, microseconds: Callable[[int], float]) -> None:
        self.microseconds = microseconds

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"us": np.asarray(self.microseconds(len(feeds["x"])))}


@pytest.fixture
def rows_measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    seen: list[int] = []

    def interleaved(calls: Mapping[str, Callable[[], dict]], seconds: float) -> dict[str, Latency]:
        taken = {name: float(call()["us"]) for name, call in calls.items()}
        seen.append(len(taken))
        return {name: Latency(us, us, us, 1) for name, us in taken.items()}

    monkeypatch.setattr(pace, "interleaved", interleaved)
    return seen


@pytest.mark.parametrize(
    ("after", "faster"),
    [
        (lambda n: 10.0 + n, False),  # the same
        (lambda n: 10.0 + 0.9 * n, True),
        (lambda n: 11.0 + 0.9 * n, False),  # slower for one row
        (lambda n: 0.99 * (10.0 + n), False),  # a difference within the noise
    ],
)
def test_what_is_faster(
    after: Callable[[int], float], faster: bool, rows_measured: list[int]
) -> None:
    data = in_batches({"x": np.zeros((600, 1), np.float32)})
    assert pace.is_faster(Model(lambda n: 10.0 + n), Model(after), data) == faster
    assert len(rows_measured) <= 3


def test_whole_batches_are_not_taken_apart(rows_measured: list[int]) -> None:
    data = Dataset(tuple({"x": np.zeros((n, 1), np.float32)} for n in (700, 5)), whole=True)
    only_all = Model(lambda n: 5.0 if n == 700 else 100.0)
    assert pace.is_faster(Model(lambda n: 10.0), only_all, data)
    assert len(rows_measured) == 1
