"""Statistics of latencies and the order of calls; nothing here depends on how fast they are."""

from __future__ import annotations

import itertools

import pytest

from graphopt import latency
from graphopt.latency import Latency, interleaved


def test_percentiles_are_calls_that_happened() -> None:
    found = Latency.of([k / 1e6 for k in range(100, 0, -1)])
    assert found == Latency(50, 95, 99, 100, 1)


def test_one_call() -> None:
    assert Latency.of([3e-6]) == Latency(3, 3, 3, 1, 3)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still unless a call moves it."""
    now = [0.0]
    monkeypatch.setattr(latency.time, "perf_counter", lambda: now[0])
    return now


def test_calls_take_turns(clock: list[float]) -> None:
    order: list[str] = []

    def call(name: str) -> None:
        order.append(name)
        clock[0] += latency.BURST

    found = interleaved({"a": lambda: call("a"), "b": lambda: call("b")}, 0, least=3)
    turns = [name for name, _ in itertools.groupby(order[4:])]
    assert turns == ["a", "b"] * 3
    assert found["a"].calls == 3
    assert found["a"].median == pytest.approx(latency.BURST * 1e6)


def test_the_first_call_of_a_turn_warms_up(clock: list[float]) -> None:
    cold = [True]

    def call() -> None:
        clock[0] += latency.BURST / 2 if cold[0] else latency.BURST / 4
        cold[0] = not cold[0]

    found = interleaved({"a": call}, 0, least=2)
    assert found["a"].median == pytest.approx(latency.BURST / 4 * 1e6)


def test_it_goes_on_for_as_long_as_asked(clock: list[float]) -> None:
    def call() -> None:
        clock[0] += 0.125

    assert interleaved({"a": call}, seconds=5, least=1)["a"].calls == 40


def test_another_clock() -> None:
    ticks = itertools.count()
    found = interleaved({"a": lambda: None}, 0, least=1, clock=lambda: float(next(ticks)))["a"]
    assert found.least == found.p99 == 1e6  # each call lasts from one tick to the next
