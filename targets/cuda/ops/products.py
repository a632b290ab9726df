"""MatMul and Det of computed matrices, one or a batch of them, in one launch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from graphopt.ir.dims import Dim, product
from graphopt.ir.graph import Node
from graphopt.targets.cuda.kernels import tiles
from graphopt.targets.cuda.kernels.determinants import determinants
from graphopt.targets.cuda.lowering import CudaLowering, lowers
from graphopt.targets.relax.broadcast import index_into
from graphopt.targets.relax.converters import converter_of
from graphopt.targets.relax.loops import loops, row_major
from graphopt.targets.relax.operands import tensor_input
from graphopt.targets.relax.ops.linear import broadcast_dims, det


@lowers("MatMul")
def _matmul(lower: CudaLowering, node: Node) -> Any:
    shapes = [tensor_input(node, k).tensor.dims for k in range(2)]
    floats = all(tensor_input(node, k).dtype == "float32" for k in range(2))
    if not floats or min(map(len, shapes)) < 2 or not _agree(lower, *shapes):
        general = converter_of(node.op_type, "", "")
        assert general is not None
        return general(lower, node)
    leading = broadcast_dims(shapes[0][:-2], shapes[1][:-2])
    arguments = [lower.expr(tensor_input(node, k)) for k in range(2)]
    aligned = [not lower.is_given(argument) for argument in arguments]
    places = [_place(lower, shape[:-2], leading) for shape in shapes]
    flat = [
        lower.reshape(argument, [lower.dim(product(shape[:-2])), *map(lower.dim, shape[-2:])])
        for argument, shape in zip(arguments, shapes)
    ]
    math = tiles.math_of_floats(lower.math)

    def body(a: Any, b: Any, out: Any) -> None:
        tiles.batched(math, a, b, out, places, aligned)

    m, n = shapes[0][-2], shapes[1][-1]
    (result,) = loops(
        lower, body, flat, [([lower.dim(d) for d in (product(leading), m, n)], "float32")]
    )
    return lower.reshape(result, lower.shape(node.output))


def _agree(lower: CudaLowering, a: Sequence[Dim], b: Sequence[Dim]) -> bool:
    """True if that the shapes fit each other needs no look at run time."""
    leading = broadcast_dims(a[:-2], b[:-2])
    return a[-1] == b[-2] and not any(index_into(lower, s[:-2], leading)[1] for s in (a, b))


def _place(lower: CudaLowering, own: Sequence[Dim], leading: Sequence[Dim]) -> tiles.Place:
    """Which of the matrices of an operand a product takes, of the number of the product."""
    into, _ = index_into(lower, own, leading)
    sizes = [lower.dim(size) for size in leading]

    def place(which: Any) -> Any:
        if tuple(own) == tuple(leading):
            return which
        index: list[Any] = []
        for size in reversed(sizes):
            index.insert(0, which % size)
            which = which // size
        return row_major(into(tuple(index)), [lower.dim(size) for size in own])

    return place


@lowers("Det")
def _det(lower: CudaLowering, node: Node) -> Any:
    def emit(lower: Any, flat: Any) -> Any:
        count, _, _ = flat.ty.shape.values
        return loops(lower, determinants, [flat], [([count], str(flat.ty.dtype))])[0]

    return det(lower, node, emit)
