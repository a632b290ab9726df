"""Decides by execution whether a region computes an embedding bag, and which.

ONNX Runtime runs the region, cut out and given a small table, on edge cases; of all bags that it
could be, exactly one must give the same answers. That is a proof as far as this goes: the ops of a
region (`foreign_op`) move, multiply, add and compare, so that it computes piecewise polynomials of
the table and weights, and one polynomial rarely agrees with another on random numbers; the pieces
depend on the order of rows and on integers, and the cases exceed every integer in the region.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

import numpy as np

from graphopt.ops.embedding_bag import EmbeddingBag
from graphopt.ops.embedding_bag_body import Mode
from graphopt.passes._bag_cases import Case, cases, out_of_range, plain_case
from graphopt.passes._bag_question import Question, Signature, question_of
from graphopt.passes._bag_region import Region
from graphopt.passes._execution import Execution

MAX_SIZE = 4096
"""Bags have up to this many ids, and batches up to this many bags, in the largest cases."""
MAX_PADDINGS = 40


def ask(region: Region) -> EmbeddingBag | str:
    """The bag that `region` computes, or why it is none."""
    question = question_of(region)
    return question if isinstance(question, str) else _answer(question)


@lru_cache(maxsize=256)
def _answer(question: Question) -> EmbeddingBag | str:
    signature = question.signature
    numbers = sorted(question.integers)
    paddings = sorted(
        {c % signature.rows for c in numbers if -signature.rows <= c < signature.rows}
    )
    if len(paddings) > MAX_PADDINGS:
        return f"any of the {len(paddings)} integers in it could be padding"
    try:
        original = Execution(question.model)
        found = _recognize(original, signature, paddings, numbers)
    except MemoryError:
        return f"a table of {signature.rows} rows is too large to try out"
    if isinstance(found, str):
        return found
    for number in numbers:
        explained = abs(number) == signature.rows or number % signature.rows == found.padding_idx
        if abs(number) > MAX_SIZE and not explained:
            return f"the number {number} in it is larger than what is tried out"
    return found


def _recognize(
    original: Execution, signature: Signature, paddings: list[int], numbers: list[int]
) -> EmbeddingBag | str:
    plain = plain_case(signature, paddings)
    result = original(plain.feeds)
    if result is None:
        return f"ONNX Runtime does not run it: {original.complaint}"
    bags = len(plain.ids if plain.offsets is None else plain.offsets)
    csr = not signature.fixed and len(result) == bags - 1
    if result.shape != (bags - csr, signature.dim):
        return f"it makes {list(result.shape)} of {bags} bags of rows of {signature.dim}"
    if result.dtype != signature.dtype:
        return f"it makes {result.dtype} of a table of {signature.dtype}"
    for stray in out_of_range(plain):
        if original(stray.feeds) is not None:
            return "it gives an answer for ids outside the table"
    alive = list(_candidates(signature, paddings, csr))
    largest = max(
        (abs(c) for c in numbers if abs(c) <= MAX_SIZE and c != signature.rows), default=0
    )
    tried = accepted = 0
    for case in cases(signature, paddings, largest, csr):
        tried, result = tried + 1, original(case.feeds)
        if result is None:
            continue
        accepted += 1
        alive = [bag for bag in alive if _agree(bag, case, result)]
        if not alive:
            return f"no sum, mean or maximum of bags gives what it gives for {_describe(case)}"
    if 2 * accepted < tried:
        return f"ONNX Runtime runs it in {accepted} of {tried} cases only: {original.complaint}"
    # Where it never accepted an empty bag, bags that differ in `empty` alone are the same to it.
    if len({replace(bag, empty=0.0) for bag in alive}) > 1:
        return f"it may be any of {', '.join(str(bag.attrs) for bag in alive)}"
    return alive[0]


def _candidates(signature: Signature, paddings: list[int], csr: bool) -> Iterator[EmbeddingBag]:
    """All that a region could be, without those that are the same for the sizes it has."""
    modes: tuple[Mode, ...] = ("sum", "mean") if signature.weighted else ("sum", "mean", "max")
    size = signature.ids[1] if signature.fixed else None
    for mode in modes[:1] if size == 1 else modes:
        for padding in (None, *paddings):
            bag = EmbeddingBag(mode, csr, padding)
            never_empty = bool(size) and padding is None
            for empty in (bag.nothing,) if never_empty else (0.0, float("-inf")):
                yield replace(bag, empty=empty)


def _agree(bag: EmbeddingBag, case: Case, result: np.ndarray) -> bool:
    expected = bag.pool(case.table, case.ids, case.offsets, case.weights)
    if bag.mode == "mean":  # one division, or a product with the reciprocal: both are means
        rtol = 4 * float(np.finfo(result.dtype).eps)
        return expected.shape == result.shape and np.allclose(
            expected, result, rtol, 0.0, equal_nan=True
        )
    return np.array_equal(expected, result, equal_nan=True)


def _describe(case: Case) -> str:
    if case.offsets is None:
        return f"ids of shape {list(case.ids.shape)}"
    shown = ", ".join(str(offset) for offset in case.offsets[:8])
    return f"{len(case.ids)} ids with offsets [{shown}{', …' if len(case.offsets) > 8 else ''}]"
