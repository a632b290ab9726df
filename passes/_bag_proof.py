"""Decides by execution whether a region computes an embedding bag, and which.

ONNX Runtime runs the region, cut out and given a small table, on edge cases; of all bags that it could
be, exactly one must give the same answers. The ops of a region are limited to moves of elements,
integer arithmetic, products, sums and maxima (`foreign_op`), so that no float is treated differently
from the floats of the cases; integers that it compares with are exceeded by the sizes of the cases.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from graphopt.errors import GraphoptError
from graphopt.ir.dims import Dim, Sym
from graphopt.ir.graph import Graph, copy_node
from graphopt.ir.onnx_io import to_proto
from graphopt.ir.types import TensorType
from graphopt.ops.embedding_bag import EmbeddingBag, Mode
from graphopt.passes._bag_cases import Case, Signature, cases, out_of_range, plain_case
from graphopt.passes._bag_region import Region, outside_values

ROWS, DIM = 17, 3
UNBOUNDED = 2**31 - 1
"""Integers from here on mean "to the end" (of a Slice)."""
MAX_SIZE = 4096
MAX_PADDINGS = 40
SECONDS = 20.0
DTYPES = ("float16", "float32", "float64")


@dataclass(frozen=True)
class Question:
    """A region to be recognized, apart from names: equal questions have equal answers.

    Attributes:
        model: the region as an ONNX model.
        integers: the integer constants in it.
    """

    model: bytes
    signature: Signature
    integers: frozenset[int]


def ask(region: Region) -> EmbeddingBag | str:
    """The bag that `region` computes, or why it is none."""
    question = _question(region)
    return question if isinstance(question, str) else _answer(question)


# ------------------------------------------------------------------------ the question


def _question(region: Region) -> Question | str:
    roles = region.roles
    if roles.table.dtype not in DTYPES:
        return f"tables of {roles.table.dtype} are not tried out"
    integers = frozenset(_integers(region))
    rows, dim = (_static(d) for d in roles.table.tensor.dims)
    # A loop that knows how many rows there are (to normalize negative ids) must be given that many.
    knows_rows = any(ROWS <= abs(c) < UNBOUNDED for c in integers)
    offsets = roles.offsets
    signature = Signature(
        rows=ROWS if rows is None else rows if knows_rows else min(rows, ROWS),
        dim=DIM if dim is None else dim,
        dtype=roles.table.dtype,
        ids=tuple(_static(d) for d in roles.ids.tensor.dims),
        ids_dtype=roles.ids.dtype,
        offsets_length=None if offsets is None else _static(offsets.tensor.dims[0]),
        offsets_dtype=None if offsets is None else offsets.dtype,
        weighted=roles.weights is not None,
    )
    try:
        return Question(_cut_out(region, signature), signature, integers)
    except GraphoptError as error:
        return f"it cannot be cut out of the graph: {error}"


def _static(dim: Dim) -> int | None:
    return dim if isinstance(dim, int) else None


def _integers(region: Region) -> Iterator[int]:
    for node in region.nodes:
        for value in outside_values(node):
            if value.const is not None and value.const.dtype.kind in "iu":
                yield from np.unique(value.const).tolist()


def _cut_out(region: Region, signature: Signature) -> bytes:
    """The region as a model with the inputs of `signature`."""
    assert region.result.producer is not None and region.result.producer.graph is not None
    graph = Graph("region", dict(region.result.producer.graph.opsets))
    roles, dtype = region.roles, signature.dtype
    values = {roles.table: graph.add_input("table", TensorType(dtype, (signature.rows, signature.dim)))}
    values[roles.ids] = graph.add_input("ids", _varying(signature.ids_dtype, *signature.ids))
    if roles.offsets is not None:
        type_ = _varying(roles.offsets.dtype, signature.offsets_length)
        values[roles.offsets] = graph.add_input("offsets", type_)
    if roles.weights is not None:
        values[roles.weights] = graph.add_input("weights", _varying(dtype, *signature.ids))
    for node in region.nodes:
        copy_node(node, graph, values)
    graph.set_outputs([values[region.result]], ["result"])
    _anonymize(graph)
    return to_proto(graph).SerializeToString(deterministic=True)


def _varying(dtype: str, *sizes: int | None) -> TensorType:
    """A type in which each None is a size of its own, free to vary."""
    return TensorType(dtype, tuple(Sym.named(f"{dtype}_{k}") if s is None else s for k, s in enumerate(sizes)))


def _anonymize(graph: Graph) -> None:
    """Number all labels, so that equal regions give equal models."""
    labels = (f"value{k}" for k in itertools.count())
    for node in graph.walk():
        node.origin = ()
        for subgraph in node.subgraphs:
            subgraph.name = "body"
            subgraph.output_names = [next(labels) for _ in subgraph.outputs]
            for value in subgraph.inputs:
                value.name = next(labels)
        for value in node.outputs:
            value.name = next(labels)
    for value in graph.constants():
        value.name = next(labels)


# -------------------------------------------------------------------------- the answer


@lru_cache(maxsize=256)
def _answer(question: Question) -> EmbeddingBag | str:
    signature = question.signature
    numbers = sorted(c for c in question.integers if abs(c) < UNBOUNDED)
    paddings = sorted({c % signature.rows for c in numbers if -signature.rows <= c < signature.rows})
    if len(paddings) > MAX_PADDINGS:
        return f"any of the {len(paddings)} integers in it could be padding"
    try:
        original = _Original(question.model)
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
    original: _Original, signature: Signature, paddings: list[int], numbers: list[int]
) -> EmbeddingBag | str:
    plain = plain_case(signature, paddings)
    result = original(plain)
    if result is None:
        return f"ONNX Runtime does not run it: {original.complaint}"
    bags = len(plain.ids if plain.offsets is None else plain.offsets)
    csr = not signature.fixed and len(result) == bags - 1
    if result.shape != (bags - csr, signature.dim):
        return f"it makes {list(result.shape)} of {bags} bags of rows of {signature.dim}"
    for stray in out_of_range(plain):
        if original(stray) is not None:
            return "it gives an answer for ids outside the table"
    alive = list(_candidates(signature, paddings, csr))
    largest = max((abs(c) for c in numbers if abs(c) <= MAX_SIZE and c != signature.rows), default=0)
    tried = accepted = 0
    for case in cases(signature, paddings, largest, csr):
        tried, result = tried + 1, original(case)
        if result is None:
            continue
        accepted += 1
        alive = [bag for bag in alive if _agree(bag, case, result)]
        if not alive:
            return f"no kind of pooling gives the same as it for {_describe(case)}"
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
        return expected.shape == result.shape and np.allclose(expected, result, rtol, 0.0, equal_nan=True)
    return np.array_equal(expected, result, equal_nan=True)


def _describe(case: Case) -> str:
    if case.offsets is None:
        return f"ids of shape {list(case.ids.shape)}"
    shown = ", ".join(str(offset) for offset in case.offsets[:8])
    return f"{len(case.ids)} ids with offsets [{shown}{', …' if len(case.offsets) > 8 else ''}]"


class _Original:
    """A region as ONNX Runtime runs it; `complaint` is what it last said where it failed."""

    def __init__(self, model: bytes) -> None:
        import onnxruntime

        self._onnxruntime = onnxruntime
        self.complaint = ""
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._session: Any = None
        try:
            self._session = onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])
        except Exception as error:
            self.complaint = _one_line(error)

    def __call__(self, case: Case) -> np.ndarray | None:
        """What the region makes of `case`, None where it fails or takes more than `SECONDS`."""
        if self._session is None:
            return None
        feeds = {"table": case.table, "ids": case.ids, "offsets": case.offsets, "weights": case.weights}
        options = self._onnxruntime.RunOptions()
        options.log_severity_level = 4
        # A loop over no bags may never meet its end.
        alarm = threading.Timer(SECONDS, lambda: setattr(options, "terminate", True))
        alarm.start()
        try:
            given = {name: array for name, array in feeds.items() if array is not None}
            return np.asarray(self._session.run(None, given, options)[0])
        except Exception as error:
            self.complaint = _one_line(error)
            return None
        finally:
            alarm.cancel()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
