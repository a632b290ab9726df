"""Inputs on which a loop is compared with what an embedding bag would give.

Tables hold small integers and weights multiples of 1/2, so that sums are exact in any order and
even a rounding in the loop shows. The cases have empty bags everywhere, repeated offsets, padding,
negative ids, and bags longer and more numerous than every number that the loop compares with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from graphopt.passes._bag_question import Signature

EDGE_ROWS = 8
"""Only this many rows at either end of a table, and padding, are not zero: tables may be huge."""


@dataclass(frozen=True)
class Case:
    """Values for the inputs of a bag."""

    table: np.ndarray
    ids: np.ndarray
    offsets: np.ndarray | None
    weights: np.ndarray | None

    @property
    def feeds(self) -> dict[str, np.ndarray]:
        """The values by the name of the input, without those that are None."""
        return {name: array for name, array in vars(self).items() if array is not None}


def table_of(signature: Signature, padding: Sequence[int], scale: float = 1.0) -> np.ndarray:
    """A table of integers times `scale`; only edge rows and `padding` are touched."""
    rng = np.random.default_rng(5)
    limit = 2 ** ((np.finfo(signature.dtype).nmant + 1) * 3 // 8)
    table = np.zeros((signature.rows, signature.dim), signature.dtype)
    live = _live_rows(signature, padding)
    values = rng.integers(1, limit, (len(live), signature.dim))
    signs = rng.choice([-1, 1], values.shape)
    table[live] = values * signs * scale
    return table


def _live_rows(signature: Signature, padding: Sequence[int]) -> list[int]:
    rows = signature.rows
    ends = {*range(min(rows, EDGE_ROWS)), *range(max(rows - EDGE_ROWS, 0), rows)}
    return sorted(ends | {p % rows for p in padding})


def plain_case(signature: Signature, padding: Sequence[int]) -> Case:
    """Three bags (as far as sizes may vary) of nine ids, all of which are in bags."""
    maker = _Maker(signature, padding, csr=False)
    bags, count = maker.sizes(3, 9)
    case = maker.case(bags, count, "even")
    if case.offsets is not None and bags > 1:
        case.offsets[-1] = count
    return case


def cases(signature: Signature, padding: Sequence[int], largest: int, csr: bool) -> Iterator[Case]:
    """All cases; `csr` says that offsets end with the end of the last bag.

    In a CSR case that end is the number of ids: exporters disagree on what else would mean.
    """
    maker = _Maker(signature, padding, csr)
    small = [(3, 9), (1, 6), (2, 1), (4, 3), (7, 12), (2, 5), (1, 0), (3, 0), (1, 1), (0, 0)]
    big = [(2, largest + 4), (largest + 3, largest + 5)]
    for bags, count in dict.fromkeys(maker.sizes(*size) for size in small + big):
        for kind in ("random", "even", "repeated", "all last", "all first", "late"):
            yield maker.case(bags, count, kind)
    for number in padding:
        yield maker.case(*maker.sizes(3, 9), "random", only=number)
    exponent = np.finfo(signature.dtype).maxexp // 3
    for scale in (2.0**exponent, 2.0**-exponent):
        case = maker.case(*maker.sizes(3, 9), "random")
        yield replace(case, table=table_of(signature, padding, scale))
        if case.weights is not None:
            yield replace(case, weights=case.weights * case.weights.dtype.type(scale))


def out_of_range(case: Case) -> Iterator[Case]:
    """`case` with ids just outside the table."""
    for stray in (len(case.table), -len(case.table) - 1):
        yield replace(case, ids=np.full_like(case.ids, stray))


class _Maker:
    def __init__(self, signature: Signature, padding: Sequence[int], csr: bool) -> None:
        self.signature, self.csr = signature, csr
        self.rng = np.random.default_rng(11)
        self.table = table_of(signature, padding)
        self.live = np.array(_live_rows(signature, padding))

    def sizes(self, bags: int, count: int) -> tuple[int, int]:
        """Numbers of bags and ids near the wanted ones; for fixed bags, of bags and ids in each."""
        shape, extra = self.signature.ids, 1 if self.csr else 0
        if self.signature.fixed:
            return shape[0] or bags, shape[1] or min(count, 2 * count // max(bags, 1))
        length, n = self.signature.offsets_length, shape[0]
        return (bags if length is None else length - extra), (count if n is None else n)

    def case(self, bags: int, count: int, kind: str, only: int | None = None) -> Case:
        """A case with bags of one kind; in the first bag at least, all ids are `only` if given."""
        shape = (bags, count) if self.signature.fixed else (count,)
        ids = self._ids(shape)
        offsets = None if self.signature.fixed else self._offsets(bags, count, kind)
        if only is not None:
            first = 1 if offsets is None else int(offsets[1]) if len(offsets) > 1 else count
            ids[:first] = only
        weights = None
        if self.signature.weighted:
            weights = (self.rng.integers(-8, 9, shape) / 2).astype(self.table.dtype)
        return Case(self.table, ids.astype(self.signature.ids_dtype), offsets, weights)

    def _ids(self, shape: tuple[int, ...]) -> np.ndarray:
        ids = self.rng.choice(self.live, shape)
        negative = self.rng.random(shape) < self.rng.choice([0.0, 0.3])
        return np.where(negative, ids - self.signature.rows, ids)

    def _offsets(self, bags: int, count: int, kind: str) -> np.ndarray:
        cuts = {
            "random": self.rng.integers(0, count + 1, bags),
            "even": np.arange(bags) * count // max(bags, 1),
            "repeated": self.rng.choice([0, count // 2, count], bags),
            "all last": np.zeros(bags),
            "all first": np.full(bags, count),
            "late": self.rng.integers(min(1, count), count + 1, bags),
        }[kind]
        offsets = np.sort(cuts)
        if kind != "late":
            offsets[:1] = 0
        return np.append(offsets, [count] if self.csr else []).astype(self.signature.offsets_dtype)
