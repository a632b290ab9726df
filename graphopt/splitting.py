"""One call on several threads: the batch in parts, or the wide layers of a small one.

The first is for models that treat samples one by one.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.runtime import MIN_ROWS, Inputs, StraightProgram

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

MIN_SHARED = 64 << 20
"""Bytes of weights times samples, below which layers take less time (some 0.4 ms) than it takes
another thread to come and be of use."""


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="graphopt")


os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork


def run_split(
    program: StraightProgram, batched: Sequence[bool] | None, inputs: Inputs, threads: int
) -> list[np.ndarray]:
    """The results of `program(inputs)`, computed by up to `threads` threads at the same time.

    Args:
        batched: for each input, whether its rows belong to samples; the others go to every part.
            None if samples may depend on one another.

    Raises:
        ValueError: inputs have different numbers of rows.
        Exception: as `StraightProgram.__call__`.
    """
    if batched is None:
        rows = max((array.shape[0] for array in inputs if array.ndim), default=1)
        return _together(program, inputs, threads, rows)
    counts = {array.shape[0] for array, split in zip(inputs, batched) if split}
    if len(counts) != 1:
        raise ValueError(f"inputs have different numbers of rows: {sorted(counts)}")
    rows = counts.pop()
    parts = min(threads, rows // MIN_ROWS)
    if parts < 2:
        return _together(program, inputs, threads, rows)
    results = program.allocate(inputs)

    def part(k: int) -> None:
        rows_of = slice(rows * k // parts, rows * (k + 1) // parts)
        taken: list[Any] = [a[rows_of] if split else a for a, split in zip(inputs, batched)]
        program.into(taken, [array[rows_of] for array in results])

    others = [_pool().submit(part, k) for k in range(1, parts)]
    try:
        part(0)
    finally:
        failures = [other.exception() for other in others]  # waits: all write to `results`
    for failure in failures:
        if failure is not None:
            raise failure
    return results


def _together(
    program: StraightProgram, inputs: Inputs, threads: int, rows: int
) -> list[np.ndarray]:
    """All samples at once, wide layers by several threads."""
    # Weights are read about as fast as three samples are multiplied with them.
    if threads < 2 or program.shared_bytes * max(rows, 3) < MIN_SHARED:
        return program(inputs)
    return program.helped(inputs, _pool().submit, threads - 1)
