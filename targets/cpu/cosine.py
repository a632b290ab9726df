"""Inner products over the norms of both vectors, by a kernel of their own."""

from __future__ import annotations

from typing import Any

from graphopt.analysis.cost import Cost, cost_rule, streaming
from graphopt.ir.dims import product
from graphopt.ir.graph import Node, Value
from graphopt.ir.infer import tensor_type, type_rule
from graphopt.ir.types import Type
from graphopt.rewrite import NoMatch, Rewriter, const, op, rule, var
from graphopt.targets.cpu import DOMAIN
from graphopt.targets.cpu.kernels.cosine import cosine
from graphopt.targets.relax.lowering import Lowering, lowers

x, y, least = var("x"), var("y"), const("least")


@type_rule("Cosine", domain=DOMAIN)
def _cosine_type(node: Node) -> list[Type | None]:
    a, b = (value.tensor.dims for value in node.inputs if value is not None)
    between = [] if len(a) == 2 else [b[1] if a[1] == 1 else a[1]]
    return [tensor_type("float32", [a[0], *between, *[1] * node.attrs["keepdims"]])]


@cost_rule("Cosine", domain=DOMAIN)
def _cosine_cost(node: Node) -> Cost:
    assert node.inputs[0] is not None
    return streaming(node, 6 * product(node.output.tensor.dims) * node.inputs[0].tensor.dims[-1])


def _summed(value: Value | None) -> tuple[Value, Value, int] | None:
    """a, b and whether the axis stays, where `value` is the sum of a * b over the last axis."""
    node = None if value is None else value.producer
    data = None if node is None or node.op != "ReduceSum" else node.inputs[0]
    last = None if node is None else node.const(1)
    if node is None or data is None or data.producer is None or data.producer.op != "Mul":
        return None
    if last is None or last.tolist() not in ([-1], [(data.rank or 0) - 1]):
        return None
    a, b = data.producer.inputs
    return None if a is None or b is None else (a, b, node.attr("keepdims"))


def _norm(value: Value) -> tuple[Value, float] | None:
    """x and the least value, where `value` is its norm along the last axis, clipped from below."""
    node = value.producer
    inner = None if node is None or node.op != "Clip" else node.inputs[0]
    norm = None if inner is None else inner.producer
    if node is None or norm is None or norm.op != "ReduceL2" or not norm.attr("keepdims"):
        return None
    lowest, last, data = node.const(1), norm.const(1), norm.inputs[0]
    if lowest is None or node.input(2) is not None or data is None or last is None:
        return None
    along = last.tolist() in ([-1], [(data.rank or 0) - 1])
    return (data, float(lowest.item())) if along else None


def _emit(rw: Rewriter, a: Value, b: Value, **attrs: Any) -> Value | NoMatch:
    shapes = (a.tensor.dims, b.tensor.dims)
    sizes = [size for shape in shapes for size in shape[1:]]
    if a.dtype != "float32" or not all(isinstance(size, int) for size in sizes):
        return NoMatch("not float32 vectors of known number and length")
    fits = len(shapes[0]) == len(shapes[1]) in (2, 3) and shapes[0][0] == shapes[1][0]
    between = {size for shape in shapes for size in shape[1:-1]} - {1}
    if not fits or shapes[0][-1] != shapes[1][-1] or len(between) > 1 or not shapes[0][-1]:
        return NoMatch("the vectors of a sample are not as many on both sides, or one alone")
    return rw.insert("Cosine", [a, b], attrs, domain=DOMAIN).output


@rule(op.Div(op.Div(x, var("p")), var("q")))
def quotients_to_cosine(
    rw: Rewriter, x: Value, p: Value, q: Value, node: Node
) -> Value | NoMatch | None:
    """ReduceSum(a * b) / Clip(ReduceL2(a)) / Clip(ReduceL2(b)) -> Cosine(a, b)"""
    found, norms = _summed(x), (_norm(p), _norm(q))
    if found is None or norms[0] is None or norms[1] is None:
        return None
    (first, lowest), (second, other), (a, b, keepdims) = norms[0], norms[1], found
    if {first, second} != {a, b} or not keepdims or lowest != other:
        return NoMatch("it divides by other norms than those of what it multiplies")
    result = _emit(rw, a, b, epsilon=lowest, jointly=0, keepdims=1)
    return result if isinstance(result, NoMatch) or result.type == node.output.type else None


@rule(op.Div(x, op.Max(op.Sqrt(op.Mul(var("p"), var("q"))), least)))
def quotient_to_cosine(
    rw: Rewriter, x: Value, p: Value, q: Value, least: Value, node: Node
) -> Value | NoMatch | None:
    """ReduceSum(a * b) / Max(Sqrt(ReduceSum(a * a) * ReduceSum(b * b)), c) -> Cosine(a, b)"""
    found, first, second = _summed(x), _summed(p), _summed(q)
    if found is None or first is None or second is None or least.const is None:
        return None
    (a, b, keepdims), squares = found, {first[0], second[0]}
    if first[0] is not first[1] or second[0] is not second[1] or squares != {a, b}:
        return NoMatch("it divides by other norms than those of what it multiplies")
    if least.const.size != 1 or {first[2], second[2]} != {keepdims}:
        return NoMatch("the least norm is not one number, or some axes stay")
    lowest = float(least.const.item())
    result = _emit(rw, a, b, epsilon=lowest, jointly=1, keepdims=keepdims)
    return result if isinstance(result, NoMatch) or result.type == node.output.type else None


RULES = (quotients_to_cosine, quotient_to_cosine)


@lowers("Cosine", domain=DOMAIN)
def _lower_cosine(lower: Lowering, node: Node) -> Any:
    a, b = (value for value in node.inputs if value is not None)
    samples, dim = lower.dim(a.tensor.dims[0]), a.tensor.dims[-1]
    left, right = (value.tensor.dims[1] if value.rank == 3 else 1 for value in (a, b))
    assert isinstance(left, int) and isinstance(right, int) and isinstance(dim, int)
    epsilon, jointly = node.attrs["epsilon"], bool(node.attrs["jointly"])
    kernel = cosine(left, right, dim, epsilon, jointly, node.attrs["lanes"])
    operands = [
        lower.reshape(lower.expr(value), [samples, count, dim])
        for value, count in ((a, left), (b, right))
    ]
    (result,) = lower.kernel(kernel, operands, [([samples, max(left, right)], "float32")])
    return lower.reshape(result, lower.shape(node.output))
