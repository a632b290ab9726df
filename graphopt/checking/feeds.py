"""Random inputs that a model accepts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from graphopt.analysis.batch_sizes import batch_sizes, sizes_at
from graphopt.checking.random_inputs import random_inputs
from graphopt.errors import InputError
from graphopt.ir.graph import Graph

Feeds = dict[str, np.ndarray]
LENGTHS = (3, *range(1, 129), 200, 256, 500, 512, 1000, 1024)


def random_feeds(
    graph: Graph, run: Callable[[Feeds], Any], batches: Sequence[int] = (1, 7, 64), seed: int = 0
) -> tuple[list[Feeds], list[str]]:
    """One set of random valid inputs for each batch size that the model accepts.

    Only the model knows which lengths of a history, say, fit the positions that it was trained
    with. So sizes other than the batch are found by trying: the first of `LENGTHS` that works.

    Args:
        graph: says which ids are valid, and which sizes agree (most after the pass unify-sizes).
        run: the model; raises InputError for inputs that it refuses.

    Returns:
        the inputs, and why other batch sizes were refused.

    Raises:
        InputError: the model accepts none of them; says why it refused the first.
    """
    complaint: InputError | None = None
    for others in _other_sizes(graph):
        accepted: list[Feeds] = []
        refused: list[str] = []
        for batch in batches:
            feeds = random_inputs(graph, {**others, **batch_sizes(graph, batch)}, seed + batch)
            try:
                run(feeds)
                accepted.append(feeds)
            except InputError as error:
                complaint = complaint or error
                refused.append(f"batch {batch}: {error}")
        if accepted:
            return accepted, refused
    raise complaint or InputError("no batch sizes were given")


def _other_sizes(graph: Graph) -> Iterator[Mapping[str, int]]:
    """Numbers to try for the sizes that do not follow from the batch."""
    others = sorted(sizes_at(graph, 1).keys() - batch_sizes(graph, 1).keys())
    if not others:
        yield {}
        return
    for length in LENGTHS:
        yield dict.fromkeys(others, length)
