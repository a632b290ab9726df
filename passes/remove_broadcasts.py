"""Expand, Tile and filled tensors dropped where the op that reads them broadcasts anyway."""

from __future__ import annotations

from graphopt.ir.broadcast import broadcast
from graphopt.ir.dims import Dim
from graphopt.ir.graph import Node, Value
from graphopt.passes._broadcasts import BINARY, VARIADIC, broadcast_shape, unexpanded
from graphopt.passes._shapes import ints_of, reshaped
from graphopt.pipeline.base import Fidelity, RewritePass
from graphopt.rewrite import NoMatch, Rewriter, op, rule, var

x, shape, repeats = var("x"), var("shape"), var("repeats")


@rule(op.Expand(x, shape))
def expand_to_nothing(rw: Rewriter, x: Value, node: Node) -> Value | NoMatch:
    """Expand(x) -> x, if x has that shape"""
    return x if x.type == node.output.type else NoMatch("it makes x larger, or may")


@rule(op.Expand(x, shape))
def expand_to_constant(rw: Rewriter, x: Value, shape: Value, node: Node) -> Value | NoMatch:
    """Expand(x, computed) -> Expand(x, constant): a 1 where x has the size already"""
    if shape.const is not None or x.shape is None or node.output.shape is None:
        return NoMatch("its shape is a constant, or not known")
    result = node.output.shape
    own: list[Dim] = [1] * (len(result) - len(x.shape)) + list(x.shape)
    target = [1 if size == mine else size for size, mine in zip(result, own)]
    if not all(isinstance(size, int) for size in target):
        return NoMatch("it grows to a size known only at run time")
    return rw.op.Expand(x, rw.ints(*target))


@rule(op.Expand(op.Expand(x, shape).shared(), var("outer")))
def expand_of_expand(rw: Rewriter, x: Value, outer: Value, node: Node) -> Value | NoMatch:
    """Expand(Expand(x), shape) -> Expand(x, shape)"""
    wanted = None if outer.content is None else list(outer.content)
    if x.shape is None or wanted is None or node.output.shape is None:
        return NoMatch("a shape is not known")
    try:
        reached = broadcast([x.shape, wanted])
    except ValueError:
        return NoMatch("the outer shape alone does not say how far to expand")
    if tuple(reached) != node.output.shape:
        return NoMatch("the outer shape alone does not say how far to expand")
    return rw.op.Expand(x, outer)


@rule(op.Reshape(op.Expand(x, shape).named("larger"), ...))
def reshape_then_expand(rw: Rewriter, x: Value, larger: Value, node: Node) -> Value | NoMatch:
    """Reshape(Expand(x)) -> Expand(Reshape(x)), if only axes of size 1 come and go"""
    before, after = larger.shape, node.output.shape
    if before is None or after is None or x.shape is None or len(x.shape) != len(before):
        return NoMatch("a shape is not known, or the expansion adds axes")
    kept = [axis for axis, size in enumerate(before) if size != 1]
    if [before[axis] for axis in kept] != [size for size in after if size != 1]:
        return NoMatch("the reshape does more than adding or dropping axes of size 1")
    rest = iter(kept)
    own: list[Dim] = [1 if size == 1 else x.shape[next(rest)] for size in after]
    wanted = [1 if size == mine else size for size, mine in zip(after, own)]
    if not all(isinstance(size, int) for size in wanted):
        return NoMatch("it grows to a size known only at run time")
    made = reshaped(rw, x, tuple(own))
    return made if isinstance(made, NoMatch) else rw.op.Expand(made, rw.ints(*wanted))


@rule(op.Tile(x, repeats))
def tile_to_expand(rw: Rewriter, x: Value, repeats: Value, node: Node) -> Value | NoMatch:
    """Tile(x) -> Expand(x), if only axes of size 1 are repeated"""
    if x.shape is None or repeats.content is None:
        return NoMatch("its shape or repeats are not known")
    counts = list(repeats.content)
    if counts == [1] * len(counts):
        return x
    if any(count != 1 and size != 1 for count, size in zip(counts, x.shape)):
        return NoMatch("an axis longer than 1 is repeated")
    known = ints_of(repeats)
    return rw.op.Expand(x, repeats if known is None else rw.ints(*known))


@rule(
    *(make(x, var("y")) for make in (*BINARY, op.Pow)),
    *(make(x, ...) for make in (*VARIADIC, op.Mean)),
)
def broadcast_twice(rw: Rewriter, node: Node) -> Value | None:
    """Mul(Expand(x), y) -> Mul(x, y), if y has the shape of the result anyway"""
    operands = list(node.inputs)
    for index, value in enumerate(operands):
        smaller = None if value is None else unexpanded(rw, value)
        if smaller is None:
            continue
        trial = [*operands[:index], smaller, *operands[index + 1 :]]
        if node.output.shape is not None and broadcast_shape(trial) == node.output.shape:
            operands = trial
    if operands == list(node.inputs):
        return None
    return rw.insert(node.op_type, operands, dict(node.attrs)).output


class RemoveBroadcasts(RewritePass):
    """Drops expansions that the ops reading them perform anyway, by broadcasting.

    Needs the sizes to agree as far as they are known: `Expand(x)` goes where the other operands
    have the shape of the result. A filled tensor (ConstantOfShape) becomes a scalar. Tile of axes
    of size 1 becomes Expand first. Fidelity: exact.

    Before:
        (float[N,1,4] q, float[N,20,4] keys) => (float[N,20,4] y) <int64[3] r = {1, 20, 1}> {
            t = Tile(q, r)
            y = Sub(t, keys)
        }

    After:
        (float[N,1,4] q, float[N,20,4] keys) => (float[N,20,4] y) {
            y = Sub(q, keys)
        }
    """

    name = "remove-broadcasts"
    fidelity = Fidelity.EXACT
    rules = (
        expand_to_nothing,
        expand_to_constant,
        expand_of_expand,
        reshape_then_expand,
        tile_to_expand,
        broadcast_twice,
    )
