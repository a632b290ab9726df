"""Whether a change makes a model faster, measured where candidates run."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from graphopt.accuracy.datasets import Dataset
from graphopt.latency import interleaved
from graphopt.serving.signature import Runnable

ROWS = (1, 64, 512)  # rows at once, of which no number may become slower
NOISE = 1.03  # a smaller ratio of two medians is no difference
SECONDS = 0.2  # for each model and number of rows


def is_faster(before: Runnable, after: Runnable, data: Dataset) -> bool:
    """True if `after` is faster than `before` for some number of rows, and slower for none."""
    gains = False
    for feeds in batches_of(data):
        calls = {"before": lambda f=feeds: before.run(f), "after": lambda f=feeds: after.run(f)}
        taken = interleaved(calls, SECONDS)
        ratio = taken["before"].median / taken["after"].median
        if ratio * NOISE < 1:
            return False
        gains |= ratio > NOISE
    return gains


def batches_of(data: Dataset) -> Iterator[dict[str, np.ndarray]]:
    """The first of `ROWS` rows; where batches cannot be taken apart, one of them as it is."""
    batch = dict(data.batches[0])
    if data.whole:
        yield batch
        return
    for rows in sorted({min(rows, data.sizes[0]) for rows in ROWS}):
        yield {name: array[:rows] for name, array in batch.items()}
