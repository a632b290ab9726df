"""One call on several threads: the batch in parts, or the wide layers of a small one.

The first is for models that treat samples one by one. Whether either is faster than one thread
depends on the work, on how soon another thread begins and on who else wants the cores: calls are
timed, and go the faster way.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from math import inf
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.serving.runtime import MIN_ROWS, Inputs, StraightProgram

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

SOON = 20e-6
"""Seconds in which another thread has hardly begun, and calls are not worth a trial: handing work
over took 9 us where the other thread was awake, 14 to 38 where it slept."""
TRIALS = 3  # calls of either way before one is chosen
AGAIN = 256  # one call in so many goes the other way, which may be the faster one by now

Results = list[np.ndarray]


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="graphopt")


os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork


class Pace:
    """Which of two ways to the same results is faster, as calls of about one size show.

    Threads may use one together: a call that gets lost among others counts for nothing.
    """

    def __init__(self) -> None:
        self._least = [inf, inf]  # seconds for a row, alone and together
        self._calls = 0

    def run(
        self, rows: int, alone: Callable[[], Results], together: Callable[[], Results]
    ) -> Results:
        """The results for so many rows, one way or the other."""
        way = self._way(rows)
        start = time.perf_counter()
        results = together() if way else alone()
        seconds = (time.perf_counter() - start) / rows
        self._least[way] = min(self._least[way], seconds)
        self._calls += 1
        return results

    def _way(self, rows: int) -> int:
        if self._least[0] * rows < SOON:
            return 0
        if self._calls < 2 * TRIALS:
            return self._calls % 2
        faster = int(self._least[1] < self._least[0])
        return 1 - faster if self._calls % AGAIN == 0 else faster


class Splitting:
    """A program on several threads.

    Args:
        batched: for each input, whether its rows belong to samples; the others go to every part.
            None if samples may depend on one another.
        threads: at most so many work on a call at the same time.
    """

    def __init__(
        self, program: StraightProgram, batched: Sequence[bool] | None, threads: int
    ) -> None:
        self._program, self._threads = program, threads
        self._batched = batched if any(batched or ()) else None
        self._paces: dict[int, Pace] = {}

    def __call__(self, inputs: Inputs) -> Results:
        """The results of `program(inputs)`.

        Raises:
            ValueError: inputs have different numbers of rows.
            Exception: as `StraightProgram.__call__`.
        """
        rows = self._rows(inputs)
        parts = 1 if self._batched is None else min(self._threads, rows // MIN_ROWS)
        if parts > 1:
            together = partial(self._in_parts, inputs, rows, parts)
        elif rows and self._program.shared_bytes:
            together = partial(self._program.helped, inputs, _pool().submit, self._threads - 1)
        else:
            return self._program(inputs)
        pace = self._paces.get(rows.bit_length())
        if pace is None:
            pace = self._paces.setdefault(rows.bit_length(), Pace())
        return pace.run(rows, partial(self._program, inputs), together)

    def _rows(self, inputs: Inputs) -> int:
        if self._batched is not None:
            return int(inputs[self._batched.index(True)].shape[0])
        return max((array.shape[0] for array in inputs if array.ndim), default=1)

    def _in_parts(self, inputs: Inputs, rows: int, parts: int) -> Results:
        program, batched = self._program, self._batched or ()
        counts = {array.shape[0] for array, split in zip(inputs, batched) if split}
        if counts != {rows}:
            raise ValueError(f"inputs have different numbers of rows: {sorted(counts)}")
        results = program.allocate(inputs)

        def part(k: int) -> None:
            some = slice(rows * k // parts, rows * (k + 1) // parts)
            taken: list[Any] = [a[some] if split else a for a, split in zip(inputs, batched)]
            program.into(taken, [array[some] for array in results])

        others = [_pool().submit(part, k) for k in range(1, parts)]
        try:
            part(0)
        finally:
            failures = [other.exception() for other in others]  # waits: all write to `results`
        for failure in failures:
            if failure is not None:
                raise failure
        return results
