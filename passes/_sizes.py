"""Integer tensors of symbolic sizes, computed with few ops: Shape, and Concat with numbers."""

from __future__ import annotations

from collections import deque
from typing import Union

import numpy as np

from graphopt.ir.dims import Dim
from graphopt.ir.graph import Node, Value
from graphopt.ir.types import TensorType, dtype_to_onnx
from graphopt.rewrite.rewriter import Rewriter

Piece = Union[tuple[int, ...], tuple[Value, int, int]]
Sizes = dict[Dim, tuple[Value, int]]  # which axis of which value has a size


def note_sizes(value: Value, sizes: Sizes) -> None:
    """Add the symbolic sizes of `value` to `sizes`, those that are not there yet."""
    shape = value.type.shape if isinstance(value.type, TensorType) else None
    for axis, dim in enumerate(shape or ()):
        if not isinstance(dim, int):
            sizes.setdefault(dim, (value, axis))


def nearest_inputs(value: Value) -> Sizes:
    """The sizes of the graph inputs that `value` depends on, the nearest one first.

    Preferred to other inputs that have the same sizes: a loop over bags then depends on their
    offsets alone, and not on the dense features that happen to be as many.
    """
    sizes: Sizes = {}
    pending = deque([value])
    seen = {value}
    while pending:
        current = pending.popleft()
        if current.producer is None:
            note_sizes(current, sizes)
            continue
        for operand in current.producer.inputs:
            if operand is not None and operand.const is None and operand not in seen:
                seen.add(operand)
                pending.append(operand)
    return sizes


def pieces_of(content: np.ndarray, sizes: Sizes) -> list[Piece] | str:
    """The elements as runs of numbers and runs of axes of one value, or why that is impossible."""
    pieces: list[Piece] = []
    elements: list[Dim] = content.reshape(-1).tolist()
    for position, element in enumerate(elements):
        last = pieces[-1] if pieces else ()
        if isinstance(element, (int, bool)):
            if last and not isinstance(last[0], Value):
                pieces[-1] = (*last, int(element))
            else:
                pieces.append((int(element),))
            continue
        if element not in sizes:
            return f"no value has the size {element}"
        value, axis = sizes[element]
        rest = tuple(elements[position:])
        if value.tensor.dims[axis : axis + len(rest)] == rest:
            return [*pieces, (value, axis, axis + len(rest))]
        if last and last[0] is value and last[2] == axis:
            pieces[-1] = (value, last[1], axis + 1)
        else:
            pieces.append((value, axis, axis + 1))
    return pieces


def is_written(value: Value | None, pieces: list[Piece]) -> bool:
    """True if `value` is computed as `write` would."""
    node = value.producer if value is not None else None
    if node is not None and node.op == "Cast":
        return is_written(node.inputs[0], pieces)
    if node is not None and value is not None and value.rank == 0:
        return node.op == "Reshape" and is_written(node.inputs[0], pieces)
    if len(pieces) > 1:
        if node is None or node.op != "Concat" or len(node.inputs) != len(pieces):
            return False
        return all(is_written(v, [piece]) for v, piece in zip(node.inputs, pieces))
    return _is_piece(value, node, pieces[0])


def _is_piece(value: Value | None, node: Node | None, piece: Piece) -> bool:
    if not isinstance(piece[0], Value):
        return value is not None and value.const is not None and value.const.tolist() == list(piece)
    if node is None or node.op != "Shape" or node.inputs[0] is not piece[0]:
        return False
    return (node.attr("start"), node.attr("end", piece[0].rank)) == piece[1:]


def write(rewriter: Rewriter, value: Value, pieces: list[Piece]) -> Value:
    """Compute `pieces` with the dtype and rank (0 or 1) of `value`."""
    parts = [_write_piece(rewriter, piece) for piece in pieces]
    result = parts[0] if len(parts) == 1 else rewriter.op.Concat(*parts, axis=0)
    if value.rank == 0:
        result = rewriter.op.Reshape(result, rewriter.ints())
    if value.dtype != "int64":
        result = rewriter.op.Cast(result, to=dtype_to_onnx(value.dtype))
    return result


def _write_piece(rewriter: Rewriter, piece: Piece) -> Value:
    if not isinstance(piece[0], Value):
        return rewriter.ints(*piece)
    value, start, end = piece
    attrs = {} if end == value.rank else {"end": end}
    return rewriter.op.Shape(value, start=start, **attrs)
