"""Random small graphs in the manner of exported recommenders, for property tests.

They look ids up, concatenate, multiply, reshape by computed shapes with a symbolic batch, and
contain the noise that exporters leave. Each step takes values of shape [N, width] and gives one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from graphopt.ir.dims import Sym
from graphopt.ir.graph import Attr, Graph, Value
from graphopt.ir.types import TensorType

ROWS, FIELDS, MAX_WIDTH = 7, 3, 48


@st.composite
def graphs(draw: st.DrawFn, max_steps: int = 10) -> Graph:
    """A graph with float and id inputs of batch N and one or two outputs."""
    builder = _Builder(draw)
    steps = draw(st.lists(st.sampled_from(_STEPS), min_size=1, max_size=max_steps))
    for step in steps:
        value = step(builder, builder.pick())
        if _width(value) <= MAX_WIDTH:
            builder.pool.append(value)
    outputs = [builder.pool[-1]]
    if draw(st.booleans()):
        outputs.append(builder.pick())
    builder.graph.set_outputs(outputs, [f"y{k}" for k in range(len(outputs))])
    return builder.graph


def _width(value: Value) -> int:
    width = value.tensor.dims[1]
    assert isinstance(width, int)
    return width


class _Builder:
    """A graph being built, and the values of shape [N, width] that there are so far."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw, self.graph = draw, Graph("random", {"": 18})
        batch = Sym.named("N")
        self.x = self.graph.add_input("x", TensorType("float32", (batch, 4)))
        self.ids = self.graph.add_input("ids", TensorType("int64", (batch, FIELDS)))
        self.rng = np.random.default_rng(draw(st.integers(0, 7)))
        self.pool = [self.x]

    def op(self, op_type: str, *inputs: Value | None, **attrs: Attr) -> Value:
        return self.graph.insert(op_type, inputs, attrs).output

    def ints(self, *elements: int) -> Value:
        return self.graph.constant(np.array(elements, np.int64))

    def scalar(self, element: int) -> Value:
        return self.graph.constant(np.array(element, np.int64))

    def floats(self, *shape: int) -> Value:
        return self.graph.constant(self.rng.normal(0, 0.5, shape).astype(np.float32))

    def number(self, element: float) -> Value:
        return self.graph.constant(np.array(element, np.float32))

    def pick(self) -> Value:
        return self.draw(st.sampled_from(self.pool))

    def like(self, value: Value) -> Value:
        """A value of the same shape, possibly the same one."""
        return self.draw(st.sampled_from([v for v in self.pool if _width(v) == _width(value)]))

    def choose(self, *options: Any) -> Any:
        return self.draw(st.sampled_from(options))

    def batch_of(self, value: Value) -> Value:
        """[N], computed as exporters do."""
        shape = self.op("Shape", value)
        if self.draw(st.booleans()):
            return self.op("Slice", shape, self.ints(0), self.ints(1))
        return self.op("Unsqueeze", self.op("Gather", shape, self.scalar(0), axis=0), self.ints(0))


Step = Callable[[_Builder, Value], Value]
_STEPS: list[Step] = []


def _step(step: Step) -> Step:
    _STEPS.append(step)
    return step


@_step
def _noise(b: _Builder, x: Value) -> Value:
    op_type = b.choose("Identity", "Dropout", "Sum", "Max", "Cast")
    return b.op(op_type, x, **({"to": 1} if op_type == "Cast" else {}))


@_step
def _cast_chain(b: _Builder, x: Value) -> Value:
    # Not the casts themselves: ONNX Runtime 1.32 merges equal ones, also those that a branch reads.
    return b.op("Tanh", b.op("Cast", b.op("Cast", x, to=11), to=1))


@_step
def _unary(b: _Builder, x: Value) -> Value:
    op_type = b.choose("Relu", "Neg", "Abs", "Sigmoid")
    return b.op(op_type, b.op(op_type, x) if b.draw(st.booleans()) else x)


@_step
def _with_number(b: _Builder, x: Value) -> Value:
    op_type = b.choose("Add", "Mul", "Sub", "Div")
    return b.op(op_type, x, b.number(b.choose(0.0, -0.0, 1.0, 2.5) if op_type != "Div" else 1.0))


@_step
def _binary(b: _Builder, x: Value) -> Value:
    return b.op(b.choose("Add", "Mul", "Sub", "Max"), x, b.like(x))


@_step
def _clip(b: _Builder, x: Value) -> Value:
    inner = b.op("Clip", x, b.number(-1.0), b.number(0.75))
    return b.op("Clip", inner, b.number(b.choose(-0.5, -2.0)), b.number(1.0))


@_step
def _masked(b: _Builder, x: Value) -> Value:
    mask = b.op("Not", b.op("Not", b.op("Greater", x, b.number(0.0))))
    return b.op("Where", mask, x, b.op("Expand", b.number(0.5), b.op("Shape", x)))


@_step
def _filled(b: _Builder, x: Value) -> Value:
    value = np.array([b.choose(0.0, 1.0, 3.0)], np.float32)
    shape = b.op("Concat", b.batch_of(x), b.ints(_width(x)), axis=0)
    return b.op(b.choose("Add", "Mul"), x, b.op("ConstantOfShape", shape, value=value))


@_step
def _embedding(b: _Builder, x: Value) -> Value:
    dim = b.choose(2, 4)
    found = b.op("Gather", b.floats(ROWS, dim), b.ids)
    shape = b.op("Concat", b.batch_of(x), b.ints(FIELDS * dim), axis=0)
    return b.op("Reshape", found, b.choose(shape, b.ints(-1, FIELDS * dim)))


@_step
def _one_field(b: _Builder, x: Value) -> Value:
    field = b.choose(0, 1, FIELDS - 1, -1)
    if b.draw(st.booleans()):
        ids = b.op("Gather", b.ids, b.scalar(field), axis=1)
        return b.op("Gather", b.floats(ROWS, 4), ids)
    start = field % FIELDS
    ids = b.op("Slice", b.ids, b.ints(start), b.ints(start + 1), b.ints(1))
    return b.op("Flatten", b.op("Gather", b.floats(ROWS, 4), ids))


@_step
def _storm(b: _Builder, x: Value) -> Value:
    """Seven fields of one matrix, each with a table, some of which are the same."""
    matrix = b.op("Tile", b.ids, b.ints(1, 3))
    tables, rows = [b.floats(ROWS, 2), b.floats(ROWS + 2, 2)], []
    for field in range(7):
        column = b.op("Slice", matrix, b.ints(field), b.ints(field + 1), b.ints(1))
        rows.append(b.op("Gather", b.choose(*tables), column))
    return b.op("Reshape", b.op("Concat", *rows, axis=b.choose(1, 2, -1)), b.ints(-1, 14))


@_step
def _computed_ids(b: _Builder, x: Value) -> Value:
    shifted = b.op(b.choose("Add", "Sub", "Mul"), b.ids, b.scalar(b.choose(0, 1, 3, -3)))
    ids = b.op("Div", b.op("Mod", shifted, b.scalar(ROWS)), b.scalar(b.choose(1, 2)))
    return b.op("Flatten", b.op("Gather", b.floats(ROWS, 2), ids))


@_step
def _pooling(b: _Builder, x: Value) -> Value:
    """The sum or the mean of the rows of ids, but for those of the padding."""
    kept = b.op("Cast", b.op("Not", b.op("Equal", b.ids, b.scalar(0))), to=1)
    found = b.op(
        "Mul", b.op("Gather", b.floats(ROWS, 3), b.ids), b.op("Unsqueeze", kept, b.ints(2))
    )
    total = b.op("ReduceSum", found, b.ints(1), keepdims=0)
    if b.draw(st.booleans()):
        return total
    count = b.op("ReduceSum", kept, b.ints(1), keepdims=1)
    return b.op("Div", total, b.op("Max", count, b.number(1.0)))


@_step
def _attention(b: _Builder, x: Value) -> Value:
    rows = b.op("Gather", b.floats(ROWS, 4), b.ids)
    scores = b.op("MatMul", rows, b.op("Transpose", rows, perm=[0, 2, 1]))
    hidden = b.op("Unsqueeze", b.op("Equal", b.ids, b.scalar(0)), b.ints(1))
    scores = b.op("Where", hidden, b.number(-1e9), scores)
    return b.op("Flatten", b.op("MatMul", b.op("Softmax", scores, axis=-1), rows))


@_step
def _no_width(b: _Builder, x: Value) -> Value:
    none = b.op("Relu", b.op("Slice", x, b.ints(0), b.ints(0), b.ints(1)))
    return b.op("Concat", none, x, axis=1)


@_step
def _bags(b: _Builder, x: Value) -> Value:
    """A bag of one id a sample, of several fields."""
    count = b.op("Squeeze", b.batch_of(x), b.ints(0))
    offsets = b.op("Range", b.scalar(0), count, b.scalar(1))
    mode = b.choose("sum", "mean")
    pooled = []
    for field in range(b.choose(2, 5)):
        ids = b.op("Gather", b.ids, b.scalar(field % FIELDS), axis=1)
        inputs = [b.floats(ROWS, 3), ids, offsets]
        node = b.graph.insert("EmbeddingBag", inputs, {"mode": mode}, domain="graphopt")
        pooled.append(node.output)
    return b.op("Concat", *pooled, axis=1)


@_step
def _repeated_columns(b: _Builder, x: Value) -> Value:
    """A layer over columns that are the same in all rows, next to others."""
    row = b.op("Tile", b.op("ReduceMax", x, b.ints(0), keepdims=1), b.ints(1, 20))
    shape = b.op("Concat", b.batch_of(x), b.ints(1), axis=0)
    joined = b.op("Concat", b.op("Expand", row, shape), x, axis=1)
    return b.op("Gemm", joined, b.floats(21 * _width(x), b.choose(4, 16)))


@_step
def _dense(b: _Builder, x: Value) -> Value:
    width = b.choose(1, 3, 8)
    if b.draw(st.booleans()):
        return b.op("Gemm", x, b.floats(width, _width(x)), b.floats(width), transB=1)
    weight = b.op("Transpose", b.floats(width, _width(x)), perm=[1, 0])
    return b.op("Add", b.op("MatMul", x, weight), b.floats(width))


@_step
def _batch_norm(b: _Builder, x: Value) -> Value:
    width = _width(x)
    variance = b.graph.constant(b.rng.uniform(0.5, 2.0, width).astype(np.float32))
    statistics = [b.floats(width) for _ in range(3)]
    return b.op("BatchNormalization", x, *statistics, variance)


@_step
def _concat(b: _Builder, x: Value) -> Value:
    values = [b.pick() for _ in range(b.choose(0, 1, 2))]
    return b.op("Concat", x, *values, axis=b.choose(1, -1))


@_step
def _slice(b: _Builder, x: Value) -> Value:
    start, end = b.choose((0, 2**63 - 1), (0, -1), (1, 100), (-2, 2**31 - 1), (0, 1))
    steps = [b.ints(1)] if b.draw(st.booleans()) else []
    part = b.op("Slice", x, b.ints(start), b.ints(end), b.ints(1), *steps)
    return part if _width(part) else x


@_step
def _split(b: _Builder, x: Value) -> Value:
    first = b.choose(1, max(1, _width(x) - 1))
    if first >= _width(x):
        return x
    sizes = b.ints(first, _width(x) - first)
    left, right = b.graph.insert("Split", [x, sizes], {"axis": 1}, outputs=2).outputs
    return b.op("Concat", *b.choose((left, right), (right, left), (left,)), axis=1)


@_step
def _unit_axis(b: _Builder, x: Value) -> Value:
    axis = b.choose(0, 1, 2, -1)
    three = b.op("Unsqueeze", x, b.ints(axis))
    if b.draw(st.booleans()):
        three = b.op(b.choose("Relu", "Neg"), three)
    return b.op("Squeeze", three, b.ints(axis))


@_step
def _transposes(b: _Builder, x: Value) -> Value:
    three = b.op("Reshape", x, b.ints(0, _width(x), 1))
    perm: Sequence[int] = b.choose([0, 2, 1], [1, 0, 2], [2, 1, 0])
    turned = b.op("Transpose", b.op("Neg", b.op("Transpose", three, perm=list(perm))), perm=perm)
    return b.op("Flatten", turned, axis=1)


@_step
def _broadcast(b: _Builder, x: Value) -> Value:
    width = _width(x)
    three = b.op("Reshape", x, b.op("Concat", b.batch_of(x), b.ints(1, width), axis=0))
    if b.draw(st.booleans()):
        larger = b.op("Tile", three, b.ints(1, 2, 1))
    else:
        larger = b.op("Expand", three, b.op("Concat", b.batch_of(x), b.ints(2, width), axis=0))
    mixed = b.op(b.choose("Mul", "Sub"), larger, b.choose(b.floats(2, width), b.number(1.5)))
    return b.op("ReduceSum", mixed, b.ints(1), keepdims=0)


@_step
def _reduce(b: _Builder, x: Value) -> Value:
    return b.op(b.choose("ReduceSum", "ReduceMean", "ReduceMax"), x, b.ints(1), keepdims=1)


@_step
def _branch(b: _Builder, x: Value) -> Value:
    branches = {}
    for name, op_type in (("then_branch", "Relu"), ("else_branch", "Neg")):
        branch = Graph(name, parent=b.graph)
        branch.set_outputs([branch.insert(op_type, [x]).output], ["out"])
        branches[name] = branch
    rank = b.op("Size", b.op("Shape", x))
    return b.op("If", b.op("Equal", rank, b.scalar(b.choose(2, 3))), **branches)


@_step
def _loop(b: _Builder, x: Value) -> Value:
    body = Graph("body", parent=b.graph)
    counter = body.add_input("i", TensorType("int64", ()))
    going = body.add_input("going", TensorType("bool", ()))
    state = body.add_input("state", x.type)
    scaled = body.insert("Mul", [state, body.insert("Cast", [counter], {"to": 1}).output])
    body.set_outputs([going, body.insert("Add", [scaled.output, x]).output], ["go", "next"])
    yes = b.graph.constant(np.array(True))
    return b.op("Loop", b.scalar(b.choose(0, 1, 3)), yes, x, body=body)
