"""Loop, Scan and If on CPUs: kernels that call the kernels of their bodies.

A loop keeps two copies of what it carries: a step reads one and writes the other. What it stacks is
written where it belongs, what it scans is read where it lies, once its axis is the first.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tvm import relax, te, tirx

from graphopt.ir.control import never_stops
from graphopt.ir.graph import Graph, Node, Value
from graphopt.ir.types import TensorType
from graphopt.targets.kernels.storage import element_bytes
from graphopt.targets.relax.bodies import Body, Caller, NotStraightError, copied
from graphopt.targets.relax.direct import at
from graphopt.targets.relax.emitter import outside
from graphopt.targets.relax.lowering import Check, Lowering, compute, int64, lowers
from graphopt.targets.relax.operands import bind_shape, describe, elements, tensor_input
from graphopt.targets.relax.ops import control
from graphopt.targets.relax.primfunc import sequence
from graphopt.targets.relax.straight import buffer_of, bytes_of, require

_CHANGES = "the shape of {!r} may change from step to step; make it the same in all"
_UNEQUAL = "sequences that are scanned together differ in length"
MOST_ROWS = 1 << 24
"""Rows that are stacked at most where a condition decides how many there are."""


# --------------------------------------------------------------------- If


@lowers("If", target="cpu")
def _if(lower: Lowering, node: Node) -> Sequence[relax.Expr]:
    before = dict(lower.functions)
    known = all(
        isinstance(value.type, TensorType)
        and value.type.shape is not None
        and all(lower.knows(dim) for dim in value.type.shape)
        and value.shape == a.shape == b.shape
        for value, a, b in zip(node.outputs, *(body.outputs for body in node.subgraphs))
    )
    condition = node.inputs[0]
    if known and condition is not None and condition.content is None:
        try:
            return _branching(lower, node, condition)
        except NotStraightError:
            lower.functions.clear()
            lower.functions.update(before)
    return control.branch(lower, node)


def _branching(lower: Lowering, node: Node, condition: Value) -> list[relax.Expr]:
    caller = Caller(lower)
    flag = caller.given(lower.reshape(lower.expr(condition), []))
    outs = [caller.output(lower.shape(v), outside(v.dtype)) for v in node.outputs]
    branches = []
    for name in ("then_branch", "else_branch"):
        graph = node.attrs[name]
        body = Body(caller, graph, [], graph.outputs, {})
        body.places.update(zip(body.outputs, map(tirx.address_of, outs)))
        before, calls = body.statements()
        branches.append(sequence([*before, *calls]))
    results = caller.emit([tirx.IfThenElse(flag[()], *branches)])
    return [lower.reinterpreted(expr, v.dtype) for expr, v in zip(results, node.outputs)]


# --------------------------------------------------------------------- loops


@dataclass
class _Steps:
    """What a loop does.

    Attributes:
        limit: how many steps it takes at most, an expression; None if only its condition ends it.
        given: inputs of the body that are the same in each step, and what they are.
        counter: the input of the body that counts steps.
        condition: the input of the body that says whether there is this step, the output that says
            whether there is another one, and what that is at first.
        carried: of each value that steps hand on the body's input, what it is at first, and the
            body's output.
        scanned: of each input that is another row in each step all rows, and whether they come
            from the last one on.
        stacked: of each output that is a row of a result the shape of that, and whether rows come
            from the last one on.
        checks: what must hold of sizes.
    """

    body: Graph
    limit: Any
    given: dict[Value, relax.Expr] = field(default_factory=dict)
    counter: Value | None = None
    condition: tuple[Value, Value, relax.Expr] | None = None
    carried: list[tuple[Value, relax.Expr, Value]] = field(default_factory=list)
    scanned: list[tuple[Value, relax.Expr, bool]] = field(default_factory=list)
    stacked: list[tuple[Value, list[Any], bool]] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)


def _run(caller: Caller, steps: _Steps) -> list[relax.Expr]:
    """Emit a loop; returns what it carried, what it stacked, and how many steps it took."""
    lower, step = caller.lower, tirx.Var("step", "int64")
    limit: Any = None if steps.limit is None else int64(steps.limit)
    for value, *_ in steps.carried:
        _row_shape(lower, value)
    inputs: list[Value] = []
    outputs: list[Value] = []
    places_in, places_out = [], []
    first: list[Any] = []
    last: list[Any] = []

    counter, counting = _single(caller, "int64")
    first += [counting, tirx.BufferStore(counter, int64(0), [0])]
    if steps.counter is not None:
        inputs.append(steps.counter)
        places_in.append(tirx.address_of(counter))
    going = []
    if limit is not None:
        going.append(counter[0] < limit)
    if steps.condition is not None:
        flag, flagging = _single(caller, "bool")
        now, then, start = steps.condition
        first += [flagging, tirx.BufferStore(flag, caller.given(lower.reshape(start, []))[()], [0])]
        inputs.append(now)
        outputs.append(then)
        places_in.append(tirx.address_of(flag))
        places_out.append(tirx.address_of(flag))
        going.append(flag[0])
    for value, start, after in steps.carried:
        size = bytes_of(start.ty)
        pair = caller.room(size), caller.room(size)
        result = caller.output(start.ty.shape.values, str(start.ty.dtype))
        source = tirx.address_of(caller.given(start))
        first.append(copied(caller.scratch(pair[0]), source, size))
        inputs.append(value)
        outputs.append(after)
        places_in.append(caller.scratch(_chosen(step, *pair)))
        places_out.append(caller.scratch(_chosen(step, *pair[::-1])))
        final = caller.scratch(_chosen(counter[0], *pair))
        last.append(copied(tirx.address_of(result), final, size))
    for value, rows, backwards in steps.scanned:
        inputs.append(value)
        at_row = limit - 1 - step if backwards else step
        places_in.append(_row(caller.given(rows), at_row))
    for value, shape, backwards in steps.stacked:
        outputs.append(value)
        at_row = limit - 1 - step if backwards else step
        places_out.append(_row(caller.output(shape, outside(value.dtype)), at_row))
    count = caller.output([1], "int64")
    last.append(tirx.BufferStore(count, counter[0], [0]))

    try:
        body = Body(caller, steps.body, inputs, outputs, steps.given)
    except NotStraightError:
        raise lower.unsupported(
            "in its body a size shows only at run time; compute what has that size outside"
        ) from None
    body.places.update(zip(body.inputs, places_in))
    body.places.update(zip(body.outputs, places_out))
    before, calls = body.statements()
    once = [tirx.Bind(step, counter[0]), *calls, tirx.BufferStore(counter, step + 1, [0])]
    loop = tirx.While(functools.reduce(tirx.And, going), sequence(once))
    checks = [require(holds, message) for holds, message in steps.checks]
    return caller.emit([*checks, *first, *before, loop, *last])


def _single(caller: Caller, dtype: str) -> tuple[Any, Any]:
    """A number in scratch, and the statement that declares it."""
    buffer = buffer_of((int64(1),), dtype, "number")
    return buffer, at(buffer, caller.scratch(caller.room(int64(element_bytes(dtype)))))


def _chosen(step: Any, even: Any, odd: Any) -> Any:
    return tirx.Select(tirx.EQ(tirx.floormod(step, int64(2)), int64(0)), even, odd)


def _row(buffer: Any, row: Any) -> Any:
    return tirx.address_of(buffer[(row, *[0] * (len(buffer.ty.shape) - 1))])


@lowers("Loop", target="cpu")
def _loop(lower: Lowering, node: Node) -> list[relax.Expr]:
    body: Graph = node.attrs["body"]
    trips, start, count = node.input(0), node.input(1), len(node.inputs) - 2
    caller, stacks = Caller(lower), node.outputs[count:]
    steps = _Steps(body, _limit(caller, trips, bool(stacks)), counter=body.inputs[0])
    first = lower.constant(np.array(True)) if start is None else lower.expr(start)
    stops = not never_stops(node)
    if stops:
        steps.condition = body.inputs[1], body.outputs[0], first
    else:
        steps.given[body.inputs[1]] = first
    results = []
    for value, initial, after in zip(body.inputs[2:], node.inputs[2:], body.outputs[1:]):
        if initial is None or not isinstance(initial.type, TensorType):
            raise lower.unsupported(f"it carries {value.name!r}, which is no tensor")
        if after is value:
            steps.given[value] = lower.moved(initial)
        else:
            steps.carried.append((value, lower.moved(initial), after))
        results.append(steps.given.get(value))
    if stacks and (steps.limit is None or (stops and _is_large(steps.limit))):
        raise lower.unsupported(
            "how many rows it stacks shows only once it has run; give it a trip count"
        )
    for value, out in zip(body.outputs[1 + count :], stacks):
        shape = [steps.limit, *_row_shape(lower, value)]
        if isinstance(steps.limit, int):
            shape[0] = max(steps.limit, 0)
        elif stops or trips is None or trips.content is None:
            shape[0] = tirx.max(steps.limit, int64(0))
        else:
            no_rows = f"{describe(node)}: its trip count is negative"
            steps.checks.append((steps.limit >= int64(0), no_rows))
        if not stops:
            shape = bind_shape(lower, out, shape)
        steps.stacked.append((value, shape, False))
    *made, taken = _run(caller, steps)
    others = iter(made)
    results = [next(others) if known is None else known for known in results]
    if stops and stacks:
        (size,) = lower.bind_sizes([lower.fresh_size("steps")], taken)
        for out, rows in zip(stacks, others):
            shape = [size, *rows.ty.shape.values[1:]]
            shape = bind_shape(lower, out, shape)
            results.append(lower.te(functools.partial(_cut, shape), rows, name="taken"))
    else:
        results += others
    return [lower.reinterpreted(expr, value.dtype) for expr, value in zip(results, node.outputs)]


def _limit(caller: Caller, trips: Value | None, sizes_results: bool) -> Any:
    if trips is None:
        return None
    if trips.content is not None or sizes_results:
        return elements(caller.lower, trips)[0]
    return caller.given(caller.lower.reshape(caller.lower.expr(trips), []))[()]


def _is_large(limit: Any) -> bool:
    return isinstance(limit, int) and limit > MOST_ROWS


def _row_shape(lower: Lowering, value: Value) -> list[Any]:
    if value.shape is None or not all(lower.knows(dim) for dim in value.tensor.dims):
        raise lower.unsupported(_CHANGES.format(value.name))
    return lower.shape(value)


def _cut(shape: Sequence[Any], rows: te.Tensor) -> te.Tensor:
    return compute(shape, lambda *i: rows(*i))


@lowers("Scan", target="cpu")
def _scan(lower: Lowering, node: Node) -> list[relax.Expr]:
    body: Graph = node.attrs["body"]
    scanned = int(node.attr("num_scan_inputs"))
    count = len(node.inputs) - scanned
    sequences = [tensor_input(node, k) for k in range(count, len(node.inputs))]
    axes = control.axes_of(node, "scan_input_axes", [value.rank or 0 for value in sequences])
    backwards = node.attr("scan_input_directions") or [0] * scanned
    lengths = [value.tensor.dims[axis] for value, axis in zip(sequences, axes)]
    steps = _Steps(body, lower.dim(lengths[0]))
    steps.checks = [
        (tirx.EQ(int64(lower.dim(size)), int64(steps.limit)), f"{describe(node)}: {_UNEQUAL}")
        for size in dict.fromkeys(lengths[1:])
        if size != lengths[0]
    ]
    results = []
    for value, initial, after in zip(body.inputs, node.inputs[:count], body.outputs):
        assert initial is not None
        if after is value:
            steps.given[value] = lower.moved(initial)
        else:
            steps.carried.append((value, lower.moved(initial), after))
        results.append(steps.given.get(value))
    for value, rows, axis, back in zip(body.inputs[count:], sequences, axes, backwards):
        steps.scanned.append((value, _moved(lower, lower.moved(rows), axis, 0), bool(back)))
    outs = node.outputs[count:]
    out_axes = control.axes_of(node, "scan_output_axes", [value.rank or 0 for value in outs])
    reversals = node.attr("scan_output_directions") or [0] * len(outs)
    for value, back in zip(body.outputs[count:], reversals):
        steps.stacked.append((value, [steps.limit, *_row_shape(lower, value)], bool(back)))
    made = iter(_run(Caller(lower), steps)[:-1])
    results = [next(made) if known is None else known for known in results]
    results += [_moved(lower, rows, 0, axis) for rows, axis in zip(made, out_axes)]
    return [lower.reinterpreted(expr, value.dtype) for expr, value in zip(results, node.outputs)]


def _moved(lower: Lowering, expr: relax.Expr, source: int, to: int) -> relax.Expr:
    """`expr` with one axis at another place."""
    if source == to:
        return expr
    order = list(range(len(expr.ty.shape.values)))
    order.insert(to, order.pop(source))
    shape = [expr.ty.shape.values[axis] for axis in order]

    def turned(x: te.Tensor) -> te.Tensor:
        return compute(shape, lambda *i: x(*(i[order.index(a)] for a in range(len(order)))))

    return lower.te(turned, expr, name="turned")
