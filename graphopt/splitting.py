"""A batch run in parts by several threads, for models that treat samples one by one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.runtime import Inputs, StraightProgram

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

MIN_ROWS = 16
"""Fewer samples in a part take less time than handing them to a thread."""


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="graphopt")


os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork


def run_split(
    program: StraightProgram, batched: Sequence[bool], inputs: Inputs, threads: int
) -> list[np.ndarray]:
    """The results of `program(inputs)`, computed in up to `threads` parts at the same time.

    Args:
        batched: for each input, whether its rows belong to samples; the others go to every part.

    Raises:
        ValueError: inputs have different numbers of rows.
        Exception: as `StraightProgram.__call__`.
    """
    counts = {array.shape[0] for array, split in zip(inputs, batched) if split}
    if len(counts) != 1:
        raise ValueError(f"inputs have different numbers of rows: {sorted(counts)}")
    rows = counts.pop()
    parts = min(threads, rows // MIN_ROWS)
    if parts < 2:
        return program(inputs)
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
