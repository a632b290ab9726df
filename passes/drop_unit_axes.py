"""Vectors that are kept as matrices of one column are computed with as vectors."""

from __future__ import annotations

import numpy as np

from graphopt.ir.graph import Node, Value
from graphopt.passes._shapes import reshaped
from graphopt.pipeline.base import Fidelity, RewritePass
from graphopt.rewrite import NoMatch, Rewriter, const, op, rule, var

x, y, w = var("x"), var("y"), const("w")

_BINARY = (op.Add, op.Sub, op.Mul, op.Div)
_UNARY = (op.Relu, op.LeakyRelu, op.Sigmoid, op.Tanh, op.Neg, op.Exp, op.Sqrt)


def _without_column(rw: Rewriter, value: Value) -> Value | None:
    """`value` [..., 1] as [...], if it is a constant, or was brought into that shape."""
    if value.const is not None:
        array = value.const
        narrow = array.ndim > 0 and array.shape[-1] == 1
        return rw.const(array[..., 0]) if narrow else value if array.ndim == 0 else None
    node = value.producer
    source = None if node is None or node.op != "Reshape" else node.inputs[0]
    if source is None:
        return None
    bare = reshaped(rw, source, value.tensor.dims[:-1])
    return None if isinstance(bare, NoMatch) else bare


@rule(op.MatMul(w, x))
def matrix_times_column(rw: Rewriter, w: Value, x: Value, node: Node) -> Value | NoMatch:
    """MatMul(w, x), x [..., k, 1] -> Reshape(MatMul(Reshape(x), transposed w))"""
    matrix = w.const
    assert matrix is not None
    if matrix.ndim != 2 or (x.rank or 0) < 3 or x.tensor.dims[-1] != 1:
        return NoMatch("it does not multiply one matrix with a column of each sample")
    rows = _without_column(rw, x) or reshaped(rw, x, x.tensor.dims[:-1])
    if isinstance(rows, NoMatch):
        return rows
    product = rw.op.MatMul(rows, rw.const(np.ascontiguousarray(matrix.T)))
    return reshaped(rw, product, node.output.shape)


@rule(op.MatMul(x, w))
def rows_times_vector(rw: Rewriter, x: Value, w: Value, node: Node) -> Value | NoMatch:
    """MatMul(x, w), w [k] -> Reshape(MatMul(x, w as [k, 1])), which ONNX Runtime does as one"""
    vector = w.const
    assert vector is not None
    if vector.ndim != 1 or (x.rank or 0) < 2:
        return NoMatch("it does not multiply rows with one vector")
    product = rw.op.MatMul(x, rw.const(vector[:, np.newaxis]))
    return reshaped(rw, product, node.output.shape)


@rule(op.MatMul(x, y))
def column_times_row(rw: Rewriter, x: Value, y: Value) -> Value | NoMatch:
    """MatMul(x, y), x [..., m, 1] and y [..., 1, n] -> x * y"""
    if (x.rank or 0) < 3 or x.rank != y.rank:
        return NoMatch("it does not multiply a matrix of each sample with another")
    if x.tensor.dims[-1] != 1 or y.tensor.dims[-2] != 1:
        return NoMatch("it adds up products")
    return rw.op.Mul(x, y)


@rule(*(make(x, y) for make in _BINARY))
def columns_combined(rw: Rewriter, x: Value, y: Value, node: Node) -> Value | NoMatch | None:
    """Reshape(a, [..., 1]) + Reshape(b, [..., 1]) -> Reshape(a + b, [..., 1])"""
    if not node.output.rank or node.output.tensor.dims[-1] != 1:
        return None
    operands = node.operands
    bare = [_without_column(rw, value) for value in operands]
    known = [value for value in bare if value is not None]
    if len(known) < 2 or all(value.const is not None for value in operands):
        return NoMatch("an operand is not a vector reshaped to a column")
    return reshaped(rw, rw.insert(node.op_type, known).output, node.output.shape)


@rule(*(make(x) for make in _UNARY))
def column_mapped(rw: Rewriter, x: Value, node: Node) -> Value | NoMatch | None:
    """Tanh(Reshape(a, [..., 1])) -> Reshape(Tanh(a), [..., 1])"""
    if not x.rank or x.tensor.dims[-1] != 1 or x.const is not None:
        return None
    bare = _without_column(rw, x)
    if bare is None:
        return None
    mapped = rw.insert(node.op_type, [bare], dict(node.attrs)).output
    return reshaped(rw, mapped, node.output.shape)


@rule(op.Softmax(x))
def column_normalized(rw: Rewriter, x: Value, node: Node) -> Value | NoMatch | None:
    """Softmax<axis=-2>(Reshape(a, [..., 1])) -> Reshape(Softmax<axis=-1>(a), [..., 1])"""
    if not x.rank or x.tensor.dims[-1] != 1 or node.attr("axis") % x.rank != x.rank - 2:
        return None
    bare = _without_column(rw, x)
    if bare is None:
        return NoMatch("its operand is not a vector reshaped to a column")
    return reshaped(rw, rw.op.Softmax(bare, axis=-1), node.output.shape)


@rule(op.MatMul(op.Concat(x, ...).named("whole"), y))
def columns_mixed(rw: Rewriter, whole: Value, y: Value, node: Node) -> Value | NoMatch | None:
    """MatMul(Concat<axis=-1>(columns), shares) -> MatMul(shares as a row, the columns as rows)"""
    assert whole.producer is not None
    columns = whole.producer.operands
    shape = whole.tensor.dims
    if whole.rank != 3 or y.rank != 3 or y.tensor.dims[-1] != 1 or y.tensor.dims[0] != shape[0]:
        return None
    if whole.producer.attr("axis") % 3 != 2 or any(v.tensor.dims[2] != 1 for v in columns):
        return NoMatch("it does not mix columns, each of which is a value of its own")
    bare = [_without_column(rw, value) for value in columns]
    rows = [value for value in bare if value is not None and value.rank == 2]
    if len(rows) < len(columns):
        return NoMatch("an operand is not a vector reshaped to a column")
    stacked = reshaped(rw, rw.op.Concat(*rows, axis=1), (shape[0], shape[2], shape[1]))
    shares = reshaped(rw, y, (shape[0], 1, shape[2]))
    if isinstance(stacked, NoMatch) or isinstance(shares, NoMatch):
        return NoMatch("the shape of an operand cannot be written with constants")
    return reshaped(rw, rw.op.MatMul(shares, stacked), node.output.shape)


@rule(op.Concat(x, ...))
def columns_joined(rw: Rewriter, x: Value, node: Node) -> Value | NoMatch | None:
    """Concat(Reshape(a, [..., 1]), Reshape(b, [..., 1])) -> Reshape(Concat(a, b), [..., 1])"""
    axis = node.attr("axis") % (x.rank or 1)
    if not x.rank or axis == x.rank - 1 or x.tensor.dims[-1] != 1:
        return None
    bare = [_without_column(rw, value) for value in node.inputs if value is not None]
    known = [value for value in bare if value is not None and value.rank == x.rank - 1]
    if len(known) < len(node.inputs):
        return NoMatch("an operand is not a vector reshaped to a column")
    return reshaped(rw, rw.op.Concat(*known, axis=axis), node.output.shape)


class DropUnitAxes(RewritePass):
    """Multiplies a matrix by all rows of a batch at once, not by one column of each sample.

    Needs columns that are vectors reshaped to [n, d, 1], or rows that one vector multiplies. Cross
    layers and mixtures of experts often hold a sample as [n, d, 1] and multiply from the left. The
    last axis goes where all operands allow it; then a layer is one product of matrices. Columns
    that are joined and mixed become rows, which are joined and normalized whole. For a product with
    a vector, ONNX Runtime asks for one number at a time. Fidelity: reassociates.

    Before:
        (float[N,4] x) => (float[N,4] y)
        <int64[3] up = {-1, 4, 1}, int64[2] down = {-1, 4}, float[4,4] w, float[4,1] b> {
            c = Reshape(x, up)
            m = MatMul(w, c)
            a = Add(m, b)
            p = Mul(c, a)
            s = Add(p, c)
            y = Reshape(s, down)
        }

    After:
        (float[N,4] x) => (float[N,4] y)
        <int64[3] up = {-1, 4, 1}, int64[2] down = {-1, 4}, float[4,4] w, float[4] b> {
            m = MatMul(x, w)
            a = Add(m, b)
            p = Mul(x, a)
            s = Add(p, x)
            t = Reshape(s, up)
            y = Reshape(t, down)
        }
    """

    name = "drop-unit-axes"
    fidelity = Fidelity.REASSOCIATES
    rules = (
        matrix_times_column,
        rows_times_vector,
        column_times_row,
        columns_combined,
        column_mapped,
        column_normalized,
        columns_mixed,
        columns_joined,
    )
