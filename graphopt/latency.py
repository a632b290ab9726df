"""Latencies of several ways of doing the same, measured side by side in one process."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Call = Callable[[], object]

BURST = 0.004  # seconds
"""How long each takes its turn: caches are then as warm as where only one model is served."""


@dataclass(frozen=True)
class Latency:
    """Microseconds of a call: the median, what 95 and 99 of 100 calls stay below, the least."""

    median: float
    p95: float
    p99: float
    calls: int
    least: float = 0.0

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Latency:
        """The statistics of measured calls, of which there is at least one."""
        ordered = sorted(seconds)

        def below(share: float) -> float:
            place = max(0, math.ceil(share * len(ordered)) - 1)
            return round(ordered[place] * 1e6, 2)

        return cls(below(0.5), below(0.95), below(0.99), len(ordered), below(0))


def interleaved(
    calls: Mapping[str, Call],
    seconds: float = 1.0,
    least: int = 10,
    clock: Callable[[], float] | None = None,
) -> dict[str, Latency]:
    """The latency of each of `calls`, which take turns so that a noisy neighbour hits all alike.

    Args:
        seconds: how long to measure each, roughly; a turn ends `BURST` after it began.
        least: turns that each gets, however long they take.
        clock: what calls are timed by, `time.perf_counter` if None. `time.thread_time` leaves out
            what others take of the core; it suits calls that stay on this thread and never wait.
    """
    clock = clock or time.perf_counter
    for call in calls.values():
        _burst(call, clock)
        _burst(call, clock)
    taken: dict[str, list[float]] = {name: [] for name in calls}
    until = time.perf_counter() + seconds * len(calls)
    turn = 0
    while turn < least or time.perf_counter() < until:
        for name, call in calls.items():
            taken[name] += _burst(call, clock)
        turn += 1
    return {name: Latency.of(times) for name, times in taken.items()}


def _burst(call: Call, clock: Callable[[], float]) -> list[float]:
    """Seconds of each call of one turn; the first call warms up where there are others."""
    times: list[float] = []
    end = time.perf_counter() + BURST
    while not times or time.perf_counter() < end:
        start = clock()
        call()
        times.append(clock() - start)
    return times[1:] or times
