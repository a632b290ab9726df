"""Loop, Scan and If as kernels that call the kernels of their bodies.

A loop keeps two copies of what it carries: a step reads one and writes the other. What it stacks is
written where it belongs, what it scans is read where it lies, once its axis is the first.

A `Caller` is what calls, for a kind of target; the converters here are those of CPUs.
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
from graphopt.ir.infer import content_input
from graphopt.ir.types import TensorType
from graphopt.targets.kernels.storage import element_bytes
from graphopt.targets.relax.bodies import Body, Caller, NotStraightError
from graphopt.targets.relax.emitter import outside
from graphopt.targets.relax.lowering import Check, Lowering, compute, int64, lowers
from graphopt.targets.relax.operands import bind_shape, describe, elements, product, tensor_input
from graphopt.targets.relax.ops import control
from graphopt.targets.relax.primfunc import sequence
from graphopt.targets.relax.straight import bytes_of, require

_CHANGES = "the shape of {!r} may change from step to step; make it the same in all"
_UNEQUAL = "sequences that are scanned together differ in length"
VECTOR = 16  # bytes that a kernel reads or writes at once
MOST_ROWS = 1 << 24
"""Rows that are stacked at most where a condition decides how many there are."""


# --------------------------------------------------------------------- If


def branch(lower: Lowering, node: Node, calling: type[Caller]) -> Sequence[relax.Expr]:
    """An If as a kernel if its branches give equal shapes, else by the virtual machine."""
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
            return _branching(calling(lower), node, condition)
        except NotStraightError:
            lower.functions.clear()
            lower.functions.update(before)
    return control.branch(lower, node)


def _branching(caller: Caller, node: Node, condition: Value) -> list[relax.Expr]:
    lower = caller.lower
    flag, found = caller.value(lower.expr(condition))
    outs = [caller.output(lower.shape(v), outside(v.dtype)) for v in node.outputs]
    branches = []
    for name in ("then_branch", "else_branch"):
        graph = node.attrs[name]
        body = Body(caller, graph, [], graph.outputs, {})
        body.places.update(zip(body.outputs, map(tirx.address_of, outs)))
        before, calls = body.statements()
        branches.append(sequence([*before, *calls]))
    results = caller.emit([*found, tirx.IfThenElse(flag, *branches)])
    return [lower.reinterpreted(expr, v.dtype) for expr, v in zip(results, node.outputs)]


# --------------------------------------------------------------------- loops


@dataclass
class _Steps:
    """What a loop does.

    Attributes:
        limit: how many steps it takes at most, an expression; None if only its condition ends it.
        found: the statements that find it.
        given: inputs of the body that are the same in each step, and what they are.
        counter: the input of the body that counts steps.
        condition: the output of the body that says whether there is another step, and what it is
            at first; None is true.
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
    found: list[Any] = field(default_factory=list)
    given: dict[Value, relax.Expr] = field(default_factory=dict)
    counter: Value | None = None
    condition: tuple[Value, Value | None] | None = None
    carried: list[tuple[Value, relax.Expr, Value]] = field(default_factory=list)
    scanned: list[tuple[Value, relax.Expr, bool]] = field(default_factory=list)
    stacked: list[tuple[Value, list[Any], bool]] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)


def _run(caller: Caller, steps: _Steps, *, counted: bool = False) -> list[relax.Expr]:
    """Emit a loop; returns what it carried, what it stacked, and if `counted` how many steps."""
    lower, step = caller.lower, tirx.Var("step", "int64")
    limit: Any = None if steps.limit is None else int64(steps.limit)
    for value, *_ in steps.carried:
        _row_shape(lower, value)
    inputs: list[Value] = []
    outputs: list[Value] = []
    places_in, places_out = [], []
    loose: list[Value] = []
    last: list[Any] = []
    told: list[Any] = []

    counter, first = caller.number("int64")
    first.append(tirx.BufferStore(counter, int64(0), [0]))
    going = [] if limit is None else [counter[0] < limit]
    if steps.condition is not None:
        then, start = steps.condition
        flag, room = caller.number("bool")
        begins: Any = tirx.const(True, "bool")
        found: list[Any] = []
        if start is not None:
            begins, found = caller.value(lower.expr(start))
        first += [*room, *found, tirx.BufferStore(flag, begins, [0])]
        place, told = caller.told(flag)
        outputs.append(then)
        places_out.append(place)
        going.append(flag[0])
    for value, start, after in steps.carried:
        size = bytes_of(start.ty)
        pair = caller.room(size), caller.room(size)
        result = caller.output(start.ty.shape.values, str(start.ty.dtype))
        source = tirx.address_of(caller.given(start))
        first.append(caller.copied(caller.scratch(pair[0]), source, size))
        inputs.append(value)
        outputs.append(after)
        places_in.append(caller.scratch(_chosen(step, *pair)))
        places_out.append(caller.scratch(_chosen(step, *pair[::-1])))
        final = caller.scratch(_chosen(counter[0], *pair))
        last.append(caller.copied(tirx.address_of(result), final, size))
    for value, rows, backwards in steps.scanned:
        inputs.append(value)
        at_row = limit - 1 - step if backwards else step
        places_in.append(_row(caller.given(rows), at_row))
        if not _are_lines(rows.ty.shape.values[1:], rows.ty.dtype):
            loose.append(value)
    for value, shape, backwards in steps.stacked:
        outputs.append(value)
        at_row = limit - 1 - step if backwards else step
        places_out.append(_row(caller.output(shape, outside(value.dtype)), at_row))
    if steps.counter is not None:
        inputs.append(steps.counter)

    try:
        body = Body(caller, steps.body, inputs, outputs, steps.given, loose)
    except NotStraightError:
        raise lower.unsupported(
            "in its body a size shows only at run time; compute what has that size outside"
        ) from None
    shown: list[Any] = []
    if steps.counter is not None and body.inputs[-1].last_use >= 0:
        place, shown = caller.shown(counter)
        places_in.append(place)
    if counted:
        last += caller.noted(counter)
    body.places.update(zip(body.inputs, places_in))
    body.places.update(zip(body.outputs, places_out))
    before, calls = body.statements()
    count = tirx.BufferStore(counter, step + 1, [0])
    once = [tirx.Bind(step, counter[0]), *shown, *calls, *told, count]
    loop = tirx.While(functools.reduce(tirx.And, going), sequence(once))
    checks = [require(holds, message) for holds, message in steps.checks]
    return caller.emit([*checks, *steps.found, *first, *before, loop, *last])


def _are_lines(shape: Sequence[Any], dtype: str) -> bool:
    """Whether rows one after the other all begin where a vector may."""
    known = product([size for size in shape if isinstance(size, int | tirx.IntImm)])
    return int(element_bytes(str(dtype)) * known) % VECTOR == 0


def _chosen(step: Any, even: Any, odd: Any) -> Any:
    return tirx.Select(tirx.EQ(tirx.floormod(step, int64(2)), int64(0)), even, odd)


def _row(buffer: Any, row: Any) -> Any:
    return tirx.address_of(buffer[(row, *[0] * (len(buffer.ty.shape) - 1))])


def loop(caller: Caller, node: Node) -> list[relax.Expr]:
    """A Loop of any number of steps.

    Raises:
        UnsupportedOpError: what it carries changes its shape, or a size in it or how much it
            stacks shows only when it runs.
    """
    body: Graph = node.attrs["body"]
    trips, start, count = node.input(0), node.input(1), len(node.inputs) - 2
    lower, stacks = caller.lower, node.outputs[count:]
    limit, found = _limit(caller, trips, bool(stacks))
    steps = _Steps(body, limit, found, counter=body.inputs[0])
    steps.given[body.inputs[1]] = lower.constant(np.array(True))  # in every step that there is
    stops = not never_stops(node)
    if stops:
        begins = start is None or content_input(node, 1) == [True]
        steps.condition = body.outputs[0], None if begins else start
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
    others = iter(_run(caller, steps, counted=stops and bool(stacks)))
    results = [next(others) if known is None else known for known in results]
    if stops and stacks:
        *rows_of, taken = others
        (size,) = lower.bind_sizes([lower.fresh_size("steps")], taken)
        for out, rows in zip(stacks, rows_of):
            shape = [size, *rows.ty.shape.values[1:]]
            shape = bind_shape(lower, out, shape)
            results.append(lower.te(functools.partial(_cut, shape), rows, name="taken"))
    else:
        results += others
    return [lower.reinterpreted(expr, value.dtype) for expr, value in zip(results, node.outputs)]


def _limit(caller: Caller, trips: Value | None, sizes_results: bool) -> tuple[Any, list[Any]]:
    """How many steps there are at most, and the statements that find it."""
    if trips is None:
        return None, []
    if trips.content is not None or sizes_results:
        return elements(caller.lower, trips)[0], []
    return caller.value(caller.lower.expr(trips))


def _is_large(limit: Any) -> bool:
    return isinstance(limit, int) and limit > MOST_ROWS


def _row_shape(lower: Lowering, value: Value) -> list[Any]:
    if value.shape is None or not all(lower.knows(dim) for dim in value.tensor.dims):
        raise lower.unsupported(_CHANGES.format(value.name))
    return lower.shape(value)


def _cut(shape: Sequence[Any], rows: te.Tensor) -> te.Tensor:
    return compute(shape, lambda *i: rows(*i))


def scan(caller: Caller, node: Node) -> list[relax.Expr]:
    """A Scan of any length; raises UnsupportedOpError as `loop` does."""
    lower, body = caller.lower, node.attrs["body"]
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
    made = iter(_run(caller, steps))
    results = [next(made) if known is None else known for known in results]
    results += [_moved(lower, rows, 0, axis) for rows, axis in zip(made, out_axes)]
    return [lower.reinterpreted(expr, value.dtype) for expr, value in zip(results, node.outputs)]


@lowers("If", target="cpu")
def _branch(lower: Lowering, node: Node) -> Sequence[relax.Expr]:
    return branch(lower, node, Caller)


@lowers("Loop", target="cpu")
def _loop(lower: Lowering, node: Node) -> list[relax.Expr]:
    return loop(Caller(lower), node)


@lowers("Scan", target="cpu")
def _scan(lower: Lowering, node: Node) -> list[relax.Expr]:
    return scan(Caller(lower), node)


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
