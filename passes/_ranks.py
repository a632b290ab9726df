"""Which ranks the factors of a matrix may have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np


def ranks_of(
    energies: np.ndarray, shape: Sequence[int], losses: Sequence[float], step: int, most: float
) -> Iterator[tuple[int, float, int]]:
    """A rank, the share of the norm that it loses, and the elements it saves; for each loss.

    Args:
        energies: squares of the singular values of a matrix of `shape`, the largest first.
        losses: shares of the norm, falling.
        step: ranks are multiples of it.
        most: the share of the matrix's elements that factors may have.
    """
    lost = np.cumsum(energies[::-1])[::-1]  # without the values from each on
    if not lost[0] > 0:
        return
    ranks: dict[int, float] = {}
    for loss in losses:
        needed = int(np.count_nonzero(lost > loss**2 * lost[0]))
        ranks.setdefault(max(1, -(-needed // step)) * step, loss)
    elements = shape[0] * shape[1]
    for rank, loss in ranks.items():
        size = rank * (shape[0] + shape[1])
        if size <= most * elements:
            yield rank, loss, elements - size
