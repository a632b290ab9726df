"""Tables as parts out of codebooks, by faiss."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np

from graphopt.ops.product_lookup import ENTRIES, product_lookup

MIN_ROWS = 16 * ENTRIES  # with fewer, codebooks are not small next to the codes
_POINTS = 64  # rows a codebook's entry is fitted on
_CHUNK = 1 << 13  # rows worked on at once
_ROUNDS = 12  # of k-means


@dataclass(frozen=True, eq=False)
class Codebooks:
    """A table [rows, dim] as `ProductLookup` takes it.

    Attributes:
        codes: uint8[rows, parts].
        books: float16[parts * 256, dim / parts].
        error: root mean square of what the elements lost.
    """

    codes: np.ndarray
    books: np.ndarray
    error: float

    @staticmethod
    def of(table: np.ndarray, width: int) -> Codebooks:
        """`table` in parts of `width` elements, which divides a row; the same on every run."""
        import faiss

        parts = table.shape[1] // width
        made = faiss.ProductQuantizer(table.shape[1], parts, 8)
        made.cp.niter, made.cp.seed = _ROUNDS, 1
        made.cp.max_points_per_centroid = _POINTS
        made.cp.min_points_per_centroid = 1  # fewer than it likes are no news to the user
        rows = np.ascontiguousarray(table, np.float32)
        sample = np.random.default_rng(0).permutation(len(rows))[: _POINTS * ENTRIES]
        made.train(np.ascontiguousarray(rows[np.sort(sample)]))
        books = faiss.vector_to_array(made.centroids).reshape(parts, ENTRIES, width)
        books = books.astype(np.float16).astype(np.float32)
        if not rows.any(axis=1).all():  # rows of zeros stay that
            books[np.arange(parts), np.square(books).sum(axis=2).argmin(axis=1)] = 0
        faiss.copy_array_to_vector(books.reshape(-1), made.centroids)
        codes = made.compute_codes(rows)
        stored = books.reshape(parts * ENTRIES, width).astype(np.float16)
        lost = 0.0
        for start in range(0, len(rows), _CHUNK):
            ids = np.arange(start, min(len(rows), start + _CHUNK))
            lost += float(np.square(product_lookup(codes, stored, ids) - rows[ids]).sum())
        return Codebooks(codes, stored, (lost / rows.size) ** 0.5)


def is_available() -> bool:
    """True if faiss is installed."""
    return find_spec("faiss") is not None
