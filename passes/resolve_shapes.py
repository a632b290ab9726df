"""Shape arithmetic replaced by its result, with symbolic sizes."""

from __future__ import annotations

from typing import Union

import numpy as np

from graphopt.ir.content import as_array
from graphopt.ir.dims import Dim
from graphopt.ir.graph import Graph, Node, Use, Value
from graphopt.ir.types import TensorType, dtype_to_onnx
from graphopt.pipeline.base import Fidelity, Pass, PassContext
from graphopt.rewrite.rewriter import Rewriter, erase_dead

Piece = Union[tuple[int, ...], tuple[Value, int, int]]
Sizes = dict[Dim, tuple[Value, int]]


class ResolveShapes(Pass):
    """Follows sizes through shape arithmetic and keeps only what is needed of them.

    Exporters compute each shape with `Shape → Gather → Mul → Concat`. Where every element is known it
    becomes a constant. Where elements are symbolic, it becomes `Shape(x)` of the first value that has
    these sizes (a graph input if one has them), concatenated with constants. Fidelity: exact.

    Before:
        (float[N,4] x) => (float[N,2] y, int64[1] k)
        <int64[1] two = {2}, int64 i = {0}, int64 j = {1}, int64[1] axis = {0}> {
            h = Relu(x)
            s = Shape(h)
            n = Gather(s, i)
            m = Gather(s, j)
            n1 = Unsqueeze(n, axis)
            k = Unsqueeze(m, axis)
            t = Concat<axis=0>(n1, two)
            y = ConstantOfShape(t)
        }

    After:
        (float[N,4] x) => (float[N,2] y, int64[1] k) <int64[1] two = {2}, int64[1] k = {4}> {
            n = Shape<start=0, end=1>(x)
            t = Concat<axis=0>(n, two)
            y = ConstantOfShape(t)
        }
    """

    name = "resolve-shapes"
    fidelity = Fidelity.EXACT

    def run(self, graph: Graph, ctx: PassContext) -> bool:
        before = sum(ctx.stats.hits.values())
        _resolve(graph, {}, ctx)
        return sum(ctx.stats.hits.values()) > before


def _resolve(graph: Graph, sizes: Sizes, ctx: PassContext) -> None:
    """Resolve the values of `graph`; `sizes` says where each size can be read, outside of it."""
    sizes = dict(sizes)
    for value in graph.inputs:
        _note_sizes(value, sizes)
    for node in graph.nodes:
        for subgraph in node.subgraphs:
            _resolve(subgraph, sizes, ctx)
        if node.outputs and node.output.content is not None and node.output.uses:
            _resolve_value(node, sizes, ctx)
        for value in node.outputs if node.graph is not None else ():
            _note_sizes(value, sizes)


def _note_sizes(value: Value, sizes: Sizes) -> None:
    shape = value.type.shape if isinstance(value.type, TensorType) else None
    for axis, dim in enumerate(shape or ()):
        if not isinstance(dim, int):
            sizes.setdefault(dim, (value, axis))


def _resolve_value(node: Node, sizes: Sizes, ctx: PassContext) -> None:
    value = node.output
    assert node.graph is not None and value.content is not None
    array = as_array(value.content, value.dtype)
    if array is not None:
        node.graph.replace_uses(value, node.graph.constant(array))
        erase_dead(node.graph, [node])
        ctx.stats.hits["known_to_constant"] += 1
        return
    if value.content.ndim > 1 or not any(_leaves_arithmetic(use) for use in value.uses):
        return
    pieces = _pieces(value.content, sizes)
    if isinstance(pieces, str):
        ctx.stats.refuse("sizes_to_shape", node, pieces)
        return
    if not _is_written(value, pieces):
        rewriter = Rewriter(node, [node])
        node.graph.replace_uses(value, _write(rewriter, value, pieces))
        erase_dead(node.graph, [node])
        ctx.stats.hits["sizes_to_shape"] += 1


def _leaves_arithmetic(use: Use) -> bool:
    """True if the reader is more than one more step of shape arithmetic."""
    return isinstance(use.user, Graph) or use.user.output.content is None


def _pieces(content: np.ndarray, sizes: Sizes) -> list[Piece] | str:
    """The elements as runs of numbers and runs of axes of one value, or why that is impossible."""
    pieces: list[Piece] = []
    for element in content.reshape(-1):
        last = pieces[-1] if pieces else ()
        if isinstance(element, (int, bool)):
            if last and not isinstance(last[0], Value):
                pieces[-1] = (*last, int(element))  # type: ignore[assignment]
            else:
                pieces.append((int(element),))
            continue
        if element not in sizes:
            return f"no value has the size {element}"
        value, axis = sizes[element]
        if last and last[0] is value and last[2] == axis:  # type: ignore[misc]
            pieces[-1] = (value, last[1], axis + 1)  # type: ignore[misc]
        else:
            pieces.append((value, axis, axis + 1))
    return pieces


def _is_written(value: Value | None, pieces: list[Piece]) -> bool:
    """True if `value` is computed as `_write` would."""
    node = value.producer if value is not None else None
    if node is not None and node.op == "Cast":
        return _is_written(node.inputs[0], pieces)
    if node is not None and value is not None and value.rank == 0:
        return node.op == "Reshape" and _is_written(node.inputs[0], pieces)
    if len(pieces) > 1:
        if node is None or node.op != "Concat" or len(node.inputs) != len(pieces):
            return False
        return all(_is_written(v, [piece]) for v, piece in zip(node.inputs, pieces))
    (piece,) = pieces
    if not isinstance(piece[0], Value):
        return value is not None and value.const is not None and value.const.tolist() == list(piece)
    if node is None or node.op != "Shape" or node.inputs[0] is not piece[0]:
        return False
    return (node.attr("start"), node.attr("end", piece[0].rank)) == piece[1:]


def _write(rewriter: Rewriter, value: Value, pieces: list[Piece]) -> Value:
    """Compute `pieces` with the dtype and rank of `value`."""
    assert value.content is not None
    parts = [_write_piece(rewriter, piece) for piece in pieces]
    result = parts[0] if len(parts) == 1 else rewriter.op.Concat(*parts, axis=0)
    if value.content.ndim == 0:
        result = rewriter.op.Reshape(result, rewriter.ints())
    if value.dtype != "int64":
        result = rewriter.op.Cast(result, to=dtype_to_onnx(value.dtype))
    return result


def _write_piece(rewriter: Rewriter, piece: Piece) -> Value:
    if not isinstance(piece[0], Value):
        return rewriter.ints(*piece)  # type: ignore[arg-type]
    value, start, end = piece  # type: ignore[misc]
    attrs = {} if end == value.rank else {"end": end}
    return rewriter.op.Shape(value, start=start, **attrs)
