"""The region of a loop, cut out of its graph, as a question that can be answered by running it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from graphopt.errors import GraphoptError
from graphopt.ir.copying import copy_node
from graphopt.ir.dims import Dim, Sym
from graphopt.ir.graph import Graph
from graphopt.ir.onnx_io import to_proto
from graphopt.ir.types import TensorType
from graphopt.passes._bag_region import Region, outside_values

ROWS, DIM = 17, 3
"""The size of the table that is tried, where the region does not know that of its own."""
UNBOUNDED = 2**31 - 1
"""Integers from here on mean "to the end" (of a Slice)."""
DTYPES = ("float16", "float32", "float64")


@dataclass(frozen=True)
class Signature:
    """The inputs of a bag to try out; sizes that may vary are None.

    Attributes:
        rows, dim, dtype: the type of the table.
        ids: the shape of the ids: [n], or [b, k] where every row is a bag.
        offsets_length: None also where there are no offsets.
        offsets_dtype: None where there are no offsets.
        weighted: whether there is a weight per id, of the table's dtype.
    """

    rows: int
    dim: int
    dtype: str
    ids: tuple[int | None, ...]
    ids_dtype: str
    offsets_length: int | None
    offsets_dtype: str | None
    weighted: bool

    @property
    def fixed(self) -> bool:
        """True if every row of the ids is a bag."""
        return self.offsets_dtype is None


@dataclass(frozen=True)
class Question:
    """A region to be recognized, apart from names: equal questions have equal answers.

    Attributes:
        model: the region as an ONNX model.
        integers: the integer constants in it, without those that mean "to the end".
    """

    model: bytes
    signature: Signature
    integers: frozenset[int]


def question_of(region: Region) -> Question | str:
    """The question that `region` poses, or why it cannot be tried out."""
    roles = region.roles
    if roles.table.dtype not in DTYPES:
        return f"tables of {roles.table.dtype} are not tried out"
    integers = frozenset(_integers(region))
    rows, dim = (_static(d) for d in roles.table.tensor.dims)
    if rows == 0:
        return "its table has no rows"
    # A loop that knows how many rows there are (to normalize negative ids) must be given that many.
    knows_rows = any(abs(number) >= ROWS for number in integers)
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
                numbers = np.unique(value.const).tolist()
                yield from (number for number in numbers if abs(number) < UNBOUNDED)


def _cut_out(region: Region, signature: Signature) -> bytes:
    """The region as a model with the inputs of `signature`."""
    assert region.result.producer is not None and region.result.producer.graph is not None
    graph = Graph("region", dict(region.result.producer.graph.opsets))
    roles, dtype = region.roles, signature.dtype
    values = {
        roles.table: graph.add_input("table", TensorType(dtype, (signature.rows, signature.dim)))
    }
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
    return TensorType(
        dtype, tuple(Sym.named(f"{dtype}_{k}") if s is None else s for k, s in enumerate(sizes))
    )


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
