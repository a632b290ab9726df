"""Transposes that another one, or a reduction, takes back, with ops in between that do not mind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from graphopt.ir.dims import Dim
from graphopt.ir.graph import Node, Value
from graphopt.passes._rowwise import is_elementwise
from graphopt.passes._shapes import ints_of, reshaped
from graphopt.passes._views import View, views_of
from graphopt.pipeline.base import Fidelity, RewritePass
from graphopt.rewrite import NoMatch, Rewriter, op, rule, var
from graphopt.rewrite.rewriter import erase_dead

x = var("x")


def _perm(node: Node) -> list[int]:
    return node.attr("perm") or list(range(node.output.rank or 0))[::-1]


@dataclass
class _Region:
    """What lies between transposes and what takes them back.

    Attributes:
        nodes: in between, last node first.
        sources: the results of the first transposes.
        seen: results in between that something else reads too; one at most.
    """

    nodes: list[Node]
    sources: list[Value]
    seen: list[Value]


def _region(root: Node, perm: Sequence[int]) -> _Region | NoMatch:
    """What lies between `root`, which transposes by `perm`, and transposes that it takes back."""
    back = _inverse(perm)
    wanted: set[Value | None] = {root.inputs[0]}
    found = _Region([], [], [])
    node = root._prev
    while node is not None:
        if any(value in wanted for value in node.outputs):
            inside = (root, *found.nodes)
            seen = [v for v in node.outputs if any(use.user not in inside for use in v.uses)]
            if node.op == "Transpose" and _perm(node) == back:
                found.sources.append(node.output)
            elif _keeps_axes(node, perm) and (not seen or len(found.seen + seen) == 1):
                found.nodes.append(node)
                found.seen += seen
                wanted.update(v for v in _varying(node) if v.const is None)
            else:
                return NoMatch(f"{node.op} is in between, or read elsewhere")
        node = node._prev
    inner = {v for n in found.nodes for v in n.outputs} | set(found.sources)
    if not found.sources or any(value not in inner for value in wanted):
        return NoMatch("it takes no transposes back")
    return found


def _inverse(perm: Sequence[int]) -> list[int]:
    return [perm.index(axis) for axis in range(len(perm))]


def _varying(node: Node) -> list[Value]:
    """The operands whose elements go with those of the result, axis by axis."""
    operands = node.inputs[:1] if node.op in _OF_FIRST else node.inputs
    return [value for value in operands if value is not None and value.rank != 0]


_OF_FIRST = ("Gather", "MatMul", "Slice", "Split")


def _keeps_axes(node: Node, perm: Sequence[int]) -> bool:
    """True if transposing the operands of `node` transposes its result."""
    rank = node.output.rank
    if node.op == "MatMul":
        weight = node.const(1)
        return weight is not None and weight.ndim == 2 and perm[-1] == len(perm) - 1
    if node.op == "Gather":
        positions = node.inputs[1]
        return positions is not None and positions.rank == 1 and rank == len(perm)
    if node.op == "Concat":
        return all(v is not None and v.const is None and v.rank == len(perm) for v in node.inputs)
    if node.op in ("Slice", "Split"):
        return rank == len(perm) and (node.op == "Split" or _sliced_axes(node) is not None)
    return (
        is_elementwise(node)
        and rank == len(perm)
        and all(value.const is not None or value.rank == rank for value in _varying(node))
    )


def _sliced_axes(node: Node) -> list[int] | None:
    """The axes that a Slice is along, as it names them; None if they are computed."""
    starts, axes = node.inputs[1], node.input(3)
    count = starts.tensor.dims[0] if starts is not None and starts.rank == 1 else None
    if axes is None:
        return list(range(count)) if isinstance(count, int) else None
    return ints_of(axes)


@rule(op.Transpose(x))
def transposes_around(rw: Rewriter, node: Node) -> Value | NoMatch | None:
    """Transpose(Relu(Transpose(x))) -> Relu(x), where they cancel out"""
    if node.inputs[0] is None or node.inputs[0].rank is None:
        return None
    perm = _perm(node)
    found = _region(node, perm)
    if isinstance(found, NoMatch):
        return found
    if not found.nodes:
        return NoMatch("nothing is between the transposes")  # another rule's
    return _untransposed(rw, found, perm, node.inputs[0])


@rule(op.ReduceSum(x, ...), op.ReduceMean(x, ...), op.ReduceMax(x, ...), op.ReduceMin(x, ...))
def transposes_before_reduction(rw: Rewriter, x: Value, node: Node) -> Value | NoMatch | None:
    """ReduceSum<keepdims=0>(Transpose(x), 2) -> ReduceSum<keepdims=0>(x, 1)

    Where the axes that are left stay in order; ops that do not mind may be in between.
    """
    axes = ints_of(node.input(1))
    if axes is None or node.attr("keepdims", 1):
        return None
    return _reduced_before(rw, node, axes, node.op_type)


@rule(op.GlobalMaxPool(x), op.GlobalAveragePool(x))
def transposes_before_pooling(rw: Rewriter, x: Value, node: Node) -> Value | NoMatch | None:
    """GlobalMaxPool(Transpose(x)) -> Unsqueeze(ReduceMax<keepdims=0>(x, 1), 2)"""
    axes = range(2, x.rank or 0)
    kind = "ReduceMax" if node.op == "GlobalMaxPool" else "ReduceMean"
    reduced = _reduced_before(rw, node, axes, kind) if axes else None
    return rw.op.Unsqueeze(reduced, rw.ints(*axes)) if isinstance(reduced, Value) else reduced


def _reduced_before(
    rw: Rewriter, node: Node, axes: Sequence[int], kind: str
) -> Value | NoMatch | None:
    """What the reduction `node` along `axes` gives, without them, computed before transposes."""
    x = node.inputs[0]
    assert x is not None
    turn = _turn_before(x)
    if turn is None:
        return None
    reduced = {axis % len(turn) for axis in axes}
    left = [turn[axis] for axis in range(len(turn)) if axis not in reduced]
    if left != sorted(left):
        return NoMatch("the axes that are left would be in another order")
    perm = _inverse(turn)
    found = _region(node, perm)
    if isinstance(found, NoMatch):
        return found
    source = _untransposed(rw, found, perm, x)
    before = rw.ints(*sorted(turn[axis] for axis in reduced))
    return rw.insert(kind, [source, before], {**node.attrs, "keepdims": 0}).output


def _turn_before(value: Value) -> list[int] | None:
    """How the nearest transpose before `value` orders axes, ops that do not mind in between."""
    while value.producer is not None:
        node = value.producer
        if node.op == "Transpose":
            return _perm(node)
        operands = [v for v in _varying(node) if v.const is None]
        if not operands or not _keeps_axes(node, range(value.rank or 0)):
            return None
        value = operands[0]
    return None


def _untransposed(rw: Rewriter, found: _Region, perm: Sequence[int], result: Value) -> Value:
    """What `result` is before `perm` if the transposes that it takes back are left out."""
    rebuilt: dict[Value | None, Value | None] = {
        value: value.producer.inputs[0] for value in found.sources if value.producer
    }
    for inner in reversed(found.nodes):
        varying = _varying(inner)
        inputs = [
            rebuilt[v] if v in rebuilt else _turned(rw, v, perm) if v in varying else v
            for v in inner.inputs
        ]
        attrs = dict(inner.attrs)
        if inner.op in ("Concat", "Gather", "Split"):
            attrs["axis"] = perm.index(inner.attr("axis", 0) % len(perm))
        if inner.op == "Slice":
            axes = [perm.index(axis % len(perm)) for axis in _sliced_axes(inner) or ()]
            inputs[3:4] = [rw.ints(*axes)]
        made = rw.insert(
            inner.op_type,
            inputs,
            attrs,
            outputs=len(inner.outputs),
            origin=inner.origin,
            before=inner,
        )
        rebuilt.update(zip(inner.outputs, made.outputs))
    found_result = rebuilt[result]
    for value in found.seen:
        assert value.producer is not None
        inputs, attrs = [rebuilt[value]], {"perm": _inverse(perm)}
        turned = rw.insert("Transpose", inputs, attrs, before=value.producer)
        rw.graph.replace_uses(value, turned.output)
        erase_dead(rw.graph, [value.producer])
    assert found_result is not None
    return found_result


def _turned(rw: Rewriter, value: Value | None, perm: Sequence[int]) -> Value | None:
    """A constant as it must be where the transposes are gone."""
    if value is None or value.const is None:
        return value
    array = value.const
    array = array.reshape((1,) * (len(perm) - array.ndim) + array.shape).transpose(perm)
    lead = next((k for k, size in enumerate(array.shape) if size != 1), array.ndim - 1)
    return rw.const(np.ascontiguousarray(array.reshape(array.shape[lead:])))


@rule(op.Reshape(x, ...), op.Transpose(x))
def transposes_in_a_row(rw: Rewriter, node: Node) -> Value | NoMatch | None:
    """Transpose(Reshape(Transpose(Reshape(x)))) -> Reshape(Transpose(x)), where that is the same

    As heads of attention are taken apart and put together again. Also of one transpose between
    reshapes, if these take each other back.
    """
    moved, turns = [node.output], 0
    best: tuple[Value, list[int]] | None = None
    for view in views_of(node.output):
        if view.source is not node.output:
            turns += moved[-1].producer.op == "Transpose"  # type: ignore[union-attr]
            if len(moved) > 1 and len(moved[-1].uses) > 1:
                break
            moved.append(view.source)
        perm = _order_of(view)
        if perm is None or turns == 0:
            continue
        dims = tuple(view.source.tensor.dims[axis] for axis in perm)
        if turns > 1 or (len(moved) > 2 and dims == node.output.shape):
            best = view.source, perm
    if best is None:
        return NoMatch("its transposes do not come to one") if turns > 1 else None
    source, perm = best
    turned = source if perm == sorted(perm) else rw.op.Transpose(source, perm=perm)
    return reshaped(rw, turned, node.output.shape)


def _order_of(view: View) -> list[int] | None:
    """The axes of the source in the order of the view; None if some are cut or taken apart."""
    order: list[int] = []
    extents: list[Dim] = []
    stride = 1
    for atom in (atom for axis in view.axes for atom in axis):
        if order and order[-1] == atom.axis and stride == atom.stride * atom.extent:
            extents[-1] = extents[-1] * atom.extent
        else:
            order.append(atom.axis)
            extents.append(atom.extent)
        stride = atom.stride
    dims = view.source.tensor.dims
    ones = [axis for axis, dim in enumerate(dims) if dim == 1]
    if view.scale != 1.0 or any(view.starts) or sorted([*order, *ones]) != list(range(len(dims))):
        return None
    return [*order, *ones] if [dims[axis] for axis in order] == extents else None


class CancelTransposes(RewritePass):
    """Removes transposes that a later one undoes; everything in between works untransposed.

    Needs a transpose back on every way to a result, or a reduction that leaves axes in order. In
    between may be ops that work on each element by itself, their constants being transposed,
    products with a matrix where the last axis stays the last, a Gather of positions of one axis,
    and what takes parts of tensors or joins them. One value in between may be read elsewhere too;
    it is transposed for that. Several transposes in a row, with reshapes in between, become one if
    they come to one. Fidelity: reassociates.

    Before:
        (float[N,5,4] x) => (float[N,5,4] y) <float[4,1] s, float[4,1] o> {
            t = Transpose<perm=[0, 2, 1]>(x)
            m = Mul(t, s)
            p = Sigmoid(m)
            q = Mul(p, t)
            r = Add(q, o)
            y = Transpose<perm=[0, 2, 1]>(r)
        }

    After:
        (float[N,5,4] x) => (float[N,5,4] y) <float[4] s, float[4] o> {
            m = Mul(x, s)
            p = Sigmoid(m)
            q = Mul(p, x)
            y = Add(q, o)
        }
    """

    name = "cancel-transposes"
    fidelity = Fidelity.REASSOCIATES
    rules = (
        transposes_around,
        transposes_before_reduction,
        transposes_before_pooling,
        transposes_in_a_row,
    )
