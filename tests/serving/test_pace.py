"""Which way calls on several threads go, by what they took so far."""

from __future__ import annotations

import time
from functools import partial

import numpy as np
import pytest

from graphopt.serving.splitting import AGAIN, SOON, TRIALS, Pace


class Clock:
    """Time that passes while one of two ways is gone.

    Attributes:
        took: microseconds of a row alone and together.
        gone: the ways so far.
    """

    def __init__(self, alone: float, together: float) -> None:
        self.now, self.took, self.gone = 0.0, [alone, together], list[int]()

    def go(self, rows: int, way: int) -> list[np.ndarray]:
        self.gone.append(way)
        self.now += self.took[way] * rows * 1e-6
        return [np.array(way)]

    def call(self, pace: Pace, rows: int) -> None:
        (found,) = pace.run(rows, partial(self.go, rows, 0), partial(self.go, rows, 1))
        assert found == self.gone[-1]


def calls(
    monkeypatch: pytest.MonkeyPatch, alone: float, together: float, count: int, rows: int = 100
) -> tuple[Clock, Pace]:
    clock, pace = Clock(alone, together), Pace()
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    for _ in range(count):
        clock.call(pace, rows)
    return clock, pace


@pytest.mark.parametrize(("together", "way"), [(0.6, 1), (1.1, 0)])
def test_the_faster_way(monkeypatch: pytest.MonkeyPatch, together: float, way: int) -> None:
    clock, _ = calls(monkeypatch, 1.0, together, AGAIN)
    assert clock.gone == [0, 1] * TRIALS + [way] * (AGAIN - 2 * TRIALS)


def test_little_work_stays_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a trial."""
    clock, _ = calls(monkeypatch, 0.9e6 * SOON / 100, 0.1, AGAIN + 1)
    assert clock.gone == [0] * (AGAIN + 1)


def test_a_cold_start_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, pace = calls(monkeypatch, 50.0, 60.0, 2)
    clock.took = [1.0, 1.5]
    for _ in range(10):
        clock.call(pace, 100)
    assert clock.gone[2 * TRIALS :] == [0] * 6


def test_the_other_way_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, pace = calls(monkeypatch, 1.0, 1.2, AGAIN)
    clock.took[1] = 0.5  # another thread has a core now
    for _ in range(3):
        clock.call(pace, 100)
    assert clock.gone[AGAIN:] == [1, 1, 1]


def test_sizes_are_compared_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, pace = calls(monkeypatch, 1.0, 0.6, 1, rows=100)
    clock.call(pace, 64)
    for rows in (127, 64, 80, 90, 100):
        clock.call(pace, rows)
    assert clock.gone[-1] == 1
