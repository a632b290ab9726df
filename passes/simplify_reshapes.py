"""One Reshape in place of chains of Reshape, Flatten, Squeeze, Unsqueeze and Transpose."""

from __future__ import annotations

from graphopt.ir import dims
from graphopt.ir.graph import Node, Use, Value
from graphopt.passes._shapes import reshape_target, reshaped, without_ones
from graphopt.pipeline.base import Fidelity, RewritePass
from graphopt.rewrite import NoMatch, Rewriter, op, rule, var

x = var("x")

_RESHAPES = frozenset(["Reshape", "Flatten", "Squeeze", "Unsqueeze"])


@rule(op.Reshape(x, ...), op.Flatten(x), op.Squeeze(x, ...), op.Unsqueeze(x, ...))
def reshapes_to_one(rw: Rewriter, x: Value, node: Node) -> Value | NoMatch | None:
    """Unsqueeze(Flatten(Reshape(x))) -> Reshape(x, constant), or x where nothing changes"""
    result = node.output.tensor
    if result.shape is None:
        return NoMatch("not even the rank of the result is known")
    sources = _sources(node)
    for k, source in reversed(list(enumerate(sources))):
        asserted = any(map(_asserts_a_size, [node, *(v.producer for v in sources[:k])]))
        if source.type == result and not asserted:
            return source
        target = reshape_target(source.tensor, result, infer=not asserted)
        if target is None:
            continue
        if _is_reshape(node, source, target):
            return None
        return rw.op.Reshape(source, rw.ints(*target))
    return NoMatch("its shape cannot be written with constants")


def _is_reshape(node: Node, source: Value, target: list[int]) -> bool:
    """True if `node` is what it would be replaced by."""
    if node.op != "Reshape" or node.inputs[0] is not source or node.attrs.get("allowzero"):
        return False
    given = node.const(1)
    return given is not None and given.tolist() == target


def _asserts_a_size(node: Node | None) -> bool:
    """True for a Squeeze of a size that may not be 1, or the Reshape by constants that it became:
    the model is an error then, where -1 would take whatever there is.

    Of a Reshape to computed sizes this is not asked. Exporters write the length of a history down
    there that is a free size elsewhere, and attention over it needs the form with constants.
    """
    assert node is not None and node.inputs[0] is not None
    data, result = node.inputs[0].tensor.shape, node.output.tensor.shape
    if data is None or result is None or dims.product(data) == dims.product(result):
        return False
    given = node.const(1)
    return node.op == "Squeeze" or (given is not None and -1 not in given.tolist())


def _sources(node: Node) -> list[Value]:
    """What `node` reshapes, what that was reshaped from, and so on."""
    found: list[Value] = []
    current: Node | None = node
    while current is not None and current.op in _RESHAPES:
        value = current.inputs[0]
        assert value is not None
        found.append(value)
        current = value.producer
    return found


@rule(op.Squeeze(x))
def squeeze_to_needed_rank(rw: Rewriter, x: Value, node: Node) -> Value | NoMatch | None:
    """Squeeze(x) -> Reshape(x), where a reader needs the rank without the axes known to be 1"""
    if node.output.shape is not None or x.shape is None:
        return None
    kept = without_ones(x.shape)
    if not any(_needed_rank(use) == len(kept) for use in node.output.uses):
        return NoMatch("a size that is not known may be 1, and no reader says that it is not")
    return reshaped(rw, x, kept)


def _needed_rank(use: Use) -> int | None:
    """The only rank that a reader takes, if that is known."""
    reader = use.user
    if not isinstance(reader, Node):
        return None
    if reader.op == "Gemm":
        return 2
    ranks = [value.rank for value in reader.inputs if value is not None and value.rank is not None]
    return ranks[0] if reader.op == "Concat" and ranks else None


_UNARY = (op.Cast, op.Not, op.Neg, op.Abs, op.Relu, op.Sigmoid, op.Tanh, op.Exp, op.Log, op.Sqrt)


@rule(*(op.Reshape(make(op.Reshape(x, ...)).named("inner"), ...) for make in _UNARY))
def reshape_around_unary(rw: Rewriter, x: Value, inner: Value, node: Node) -> Value | NoMatch:
    """Reshape(Relu(Reshape(x))) -> Reshape(Relu(x))"""
    assert inner.producer is not None
    moved = rw.insert(inner.producer.op_type, [x], dict(inner.producer.attrs)).output
    return reshaped(rw, moved, node.output.shape)


@rule(op.Transpose(op.Reshape(x, ...).named("inner")))
def transpose_of_unit_axes(rw: Rewriter, x: Value, inner: Value, node: Node) -> Value | NoMatch:
    """Transpose(Reshape(x)) -> Reshape(Transpose(x)), if axes of size 1 are all that come"""
    if x.shape is None or inner.shape is None:
        return NoMatch("the rank is not known")
    kept = [axis for axis, dim in enumerate(x.shape) if dim != 1]
    axes = [axis for axis, dim in enumerate(inner.shape) if dim != 1]
    if [x.shape[axis] for axis in kept] != [inner.shape[axis] for axis in axes]:
        return NoMatch("the reshape does more than adding or dropping axes of size 1")
    perm = node.attr("perm") or list(range(len(inner.shape)))[::-1]
    order = [kept[axes.index(axis)] for axis in perm if axis in axes]
    if len(kept) < len(x.shape):  # to move axes of one element too takes ONNX Runtime longer
        if len(axes) == len(inner.shape):
            return NoMatch("the reshape drops axes of size 1")
        bare = reshaped(rw, x, tuple(x.shape[k] for k in kept))
        if isinstance(bare, NoMatch):
            return bare
        x, order = bare, [kept.index(axis) for axis in order]
    return reshaped(rw, rw.op.Transpose(x, perm=order), node.output.shape)


@rule(op.Transpose(x))
def transpose_to_less(rw: Rewriter, x: Value, node: Node) -> Value | NoMatch:
    """Transpose(x) -> x or Reshape(x), if only axes of size 1 move"""
    if x.shape is None:
        return NoMatch("the rank is not known")
    perm = node.attr("perm") or list(range(len(x.shape)))[::-1]
    moving = [axis for axis in perm if x.shape[axis] != 1]
    if moving != sorted(moving):
        return NoMatch("it moves elements")
    return reshaped(rw, x, node.output.shape)


@rule(op.Transpose(op.Transpose(x).named("inner").shared()))
def transpose_of_transpose(rw: Rewriter, x: Value, inner: Value, node: Node) -> Value | NoMatch:
    """Transpose(Transpose(x)) -> Transpose(x)"""
    if x.rank is None or inner.producer is None:
        return NoMatch("the rank is not known")
    reverse = list(range(x.rank))[::-1]
    first = inner.producer.attr("perm") or reverse
    perm = [first[axis] for axis in node.attr("perm") or reverse]
    return x if perm == sorted(perm) else rw.op.Transpose(x, perm=perm)


class SimplifyReshapes(RewritePass):
    """Turns chains of ops that keep the order of elements into one Reshape to a constant shape.

    Needs a result whose shape can be written with constants. Reshape is the one form because later
    passes then need to know only that: Flatten, Squeeze and Unsqueeze stay only where several
    unknown sizes make a constant shape impossible. A batch of any size passes as -1, several
    unknown sizes as 0 (copied from the same axis). Sizes that a Squeeze takes for granted are
    only copied, so that others stay an error. A Squeeze without axes keeps a size that
    is not known where a reader would refuse it to be 1. Transposes merge, and become a Reshape
    where they move only axes of size 1. Fidelity: exact.

    Before:
        (float[N,2,4] x) => (float[N,8] y) <int64[2] s = {-1, 8}, int64[1] axis = {1}> {
            a = Flatten(x)
            b = Unsqueeze(a, axis)
            c = Reshape(b, s)
            y = Relu(c)
        }

    After:
        (float[N,2,4] x) => (float[N,8] y) <int64[2] s = {-1, 8}> {
            a = Reshape(x, s)
            y = Relu(a)
        }
    """

    name = "simplify-reshapes"
    fidelity = Fidelity.EXACT
    rules = (
        reshapes_to_one,
        squeeze_to_needed_rank,
        reshape_around_unary,
        transpose_of_transpose,
        transpose_to_less,
        transpose_of_unit_axes,
    )
