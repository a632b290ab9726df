"""If as a branch of the virtual machine; Loop and Scan with a known number of steps, written out.

`repetition` has loops that run, and branches that are kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import relax, te

from graphopt.ir.content import known_ints
from graphopt.ir.dims import Dim, Sym
from graphopt.ir.graph import Graph, Node, Value
from graphopt.ir.types import TensorType
from graphopt.targets.relax.lowering import Lowering, Report
from graphopt.targets.relax.operands import tensor_input

MAX_OPS = 20_000
"""Ops that a loop may come to when it is written out: about what compiles within a minute."""
_FAN_IN = 16  # operands of one concatenation: its code has a branch for each


def branch(lower: Lowering, node: Node) -> list[relax.Expr]:
    """One of two expressions, whose sizes may differ."""
    condition, outputs = node.inputs[0], node.outputs
    assert condition is not None
    for value in outputs:
        if not isinstance(value.type, TensorType):
            raise lower.unsupported(f"a branch gives a {value.type}")
    known = known_ints(condition.content) if condition.content is not None else None
    if known is not None:
        return lower.body(node.attrs["then_branch" if known[0] else "else_branch"])
    for name in ("then_branch", "else_branch"):
        if any(a.rank != b.rank for a, b in zip(node.attrs[name].outputs, outputs)):
            reason = "its branches give tensors of different rank; reshape them to one"
            raise lower.unsupported(reason)
    branches = [_branch(lower, node.attrs[name]) for name in ("then_branch", "else_branch")]
    every = [report for _, _, reports in branches for report in reports]
    flag = lower.reshape(lower.expr(condition), [])
    result = lower.bb.emit(relax.If(flag, *(_as_tuple(*each, every) for each in branches)))
    count = len(outputs) + len(every)
    parts = [lower.bb.emit(relax.TupleGetItem(result, k)) for k in range(count)]
    for report, part in zip(every, parts[len(outputs) :]):
        lower.report(part, report.messages)
    return [_as_inferred(lower, part, value) for part, value in zip(parts, outputs)]


_Branch = tuple[relax.BindingBlock, list[relax.Expr], list[Report]]


def _branch(lower: Lowering, graph: Graph) -> _Branch:
    """The nodes of a branch, their outputs, and what they report."""
    builder = lower.bb
    builder.begin_scope()
    builder._begin_binding_block()
    try:
        with lower.scope({}), lower.reporting() as reports:
            outputs = lower.body(graph)
    finally:
        block = builder._end_block()
        builder.end_scope()
    return block, outputs, reports


def _as_tuple(
    block: relax.BindingBlock,
    outputs: Sequence[relax.Expr],
    own: Sequence[Report],
    every: Sequence[Report],
) -> relax.Expr:
    """A branch as an expression: its outputs, then all reports, of which others' are zeros."""
    reports = [
        report.expr
        if report in own
        else relax.const(np.zeros([int(n) for n in report.expr.ty.shape.values], "int32"))
        for report in every
    ]
    return relax.SeqExpr([block], relax.Tuple([*outputs, *reports]))


def _as_inferred(lower: Lowering, expr: relax.Expr, value: Value) -> relax.Expr:
    """`expr` with the shape that both branches agree on; sizes that differ are bound here."""
    for dim in value.tensor.dims:
        if isinstance(dim, Sym):
            lower.name_size(dim)
    shape = lower.shape(value)
    return lower.bb.match_cast(expr, relax.TensorType(shape, value.dtype))


def few_steps(node: Node, steps: Dim | None) -> int | None:
    """How many steps a loop takes, if it can be written out; None if it cannot."""
    if not isinstance(steps, int):
        return None
    ops = steps * sum(1 for _ in node.attrs["body"].walk())
    return steps if ops <= MAX_OPS else None


def loop(lower: Lowering, node: Node, steps: int) -> list[relax.Expr]:
    """A Loop of so many steps, written out."""
    body: Graph = node.attrs["body"]
    carried = [_given(lower, value) for value in node.inputs[2:]]
    collected: list[list[relax.Expr]] = [[] for _ in body.outputs[1 + len(carried) :]]
    for step in range(steps):
        given = [lower.constant(np.array(step, np.int64)), lower.constant(np.array(True)), *carried]
        with lower.scope(dict(zip(body.inputs, given))):
            results = lower.body(body)
        carried = results[1 : 1 + len(carried)]
        for parts, result in zip(collected, results[1 + len(carried) :]):
            parts.append(result)
    stacks = node.outputs[len(carried) :]
    return [*carried, *(_stacked(lower, p, v, 0) for p, v in zip(collected, stacks))]


def length(node: Node) -> Dim | None:
    """How many steps a Scan takes."""
    count = int(node.attr("num_scan_inputs"))
    first = tensor_input(node, len(node.inputs) - count)
    return first.tensor.dims[axes_of(node, "scan_input_axes", [first.rank or 0] * count)[0]]


def scan(lower: Lowering, node: Node, steps: int) -> list[relax.Expr]:
    """A Scan of so many steps, written out."""
    body: Graph = node.attrs["body"]
    scanned = int(node.attr("num_scan_inputs"))
    states = len(node.inputs) - scanned
    sequences = [value for value in node.inputs[states:] if value is not None]
    axes = axes_of(node, "scan_input_axes", [value.rank or 0 for value in sequences])
    backwards = node.attr("scan_input_directions") or [0] * scanned
    carried = [_given(lower, value) for value in node.inputs[:states]]
    outs = node.outputs[states:]
    collected: list[list[relax.Expr]] = [[] for _ in outs]
    for step in range(steps):
        slices = [
            _step(lower, value, axis, steps - 1 - step if back else step)
            for value, axis, back in zip(sequences, axes, backwards)
        ]
        with lower.scope(dict(zip(body.inputs, [*carried, *slices]))):
            results = lower.body(body)
        carried = results[:states]
        for parts, result in zip(collected, results[states:]):
            parts.append(result)
    out_axes = axes_of(node, "scan_output_axes", [value.rank or 0 for value in outs])
    reversals = node.attr("scan_output_directions") or [0] * len(outs)
    return [
        *carried,
        *(
            _stacked(lower, parts[::-1] if back else parts, value, axis)
            for parts, value, axis, back in zip(collected, outs, out_axes, reversals)
        ),
    ]


def axes_of(node: Node, name: str, ranks: Sequence[int]) -> list[int]:
    """An attribute of a Scan that holds an axis for each of some values, none negative."""
    axes = node.attr(name) or [0] * len(ranks)
    return [axis % rank for axis, rank in zip(axes, ranks)]


def _given(lower: Lowering, value: Value | None) -> relax.Expr:
    if value is None or not isinstance(value.type, TensorType):
        raise lower.unsupported("it carries something that is not a tensor")
    return lower.expr(value)


def _step(lower: Lowering, value: Value, axis: int, step: int) -> relax.Expr:
    """Element `step` of `value` along `axis`, that axis dropped."""
    shape = lower.shape(value)
    del shape[axis]

    def take(x: te.Tensor) -> te.Tensor:
        return te.compute(shape, lambda *i: x(*i[:axis], step, *i[axis:]), name="step")

    return lower.te(take, lower.expr(value), name="step")


def _stacked(lower: Lowering, parts: list[Any], value: Value, axis: int) -> relax.Expr:
    """One tensor of the type of `value` from its slices along a new axis."""
    shape = lower.shape(value)
    if not parts:
        zero = np.zeros((), value.dtype)
        return lower.te(
            lambda: te.compute(shape, lambda *_: zero.item(), name="empty"), name="empty"
        )
    one = [*shape[:axis], 1, *shape[axis + 1 :]]
    level = [lower.reshape(part, one) for part in parts]
    while len(level) > 1:
        groups = [level[k : k + _FAN_IN] for k in range(0, len(level), _FAN_IN)]
        level = [
            group[0] if len(group) == 1 else lower.bb.emit(relax.op.concat(group, axis))
            for group in groups
        ]
    return level[0]
