"""Codes of 8 bits that ops of a quantized model hand to each other.

They are moved as they are, made unsigned, as instructions want the data of layers, and multiplied
without what they stand for in between, so that sums are exact.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import te, tirx

from graphopt.analysis.cost import Cost, cost_rule, streaming
from graphopt.ir.dims import product
from graphopt.ir.graph import Node, Value
from graphopt.ir.infer import tensor_type, type_rule
from graphopt.ir.types import Type
from graphopt.rewrite import NoMatch, Rewriter, op, rule, var
from graphopt.rewrite.pattern import Pattern
from graphopt.targets.cpu import DOMAIN
from graphopt.targets.cpu.kernels.grouped_codes import grouped_codes
from graphopt.targets.cpu.kernels.row_codes import GROUP, Quantization
from graphopt.targets.relax.lowering import Lowering, compute, lowers
from graphopt.targets.relax.scalar import const
from graphopt.targets.zero_codes import LOOKUPS

# What only says where an element of its first operand goes.
_MOVES = frozenset(
    ["Expand", "Flatten", "Gather", "GatherND", "Identity", "Reshape"]
    + ["Slice", "Squeeze", "Transpose", "Unsqueeze"]
)
MIDDLE = 128
_LARGEST = 2.0**100

x, y, q = var("x"), var("y"), var("q")
# (codes uint8[...]) -> int8[...], the same less 128
signed = Pattern("Signed", (q,), domain=DOMAIN, may_share=True)


@type_rule("Signed", domain=DOMAIN)
def _signed_type(node: Node) -> list[Type | None]:
    assert node.inputs[0] is not None
    return [tensor_type("int8", node.inputs[0].tensor.shape)]


@cost_rule("Signed", domain=DOMAIN)
def _signed_cost(node: Node) -> Cost:
    return streaming(node, product(node.output.tensor.dims))


@lowers("Signed", domain=DOMAIN)
def _lower_signed(lower: Lowering, node: Node) -> Any:
    def emit(codes: te.Tensor) -> te.Tensor:
        def element(*i: Any) -> Any:
            return tirx.reinterpret("int8", codes(*i) ^ const(MIDDLE, "uint8"))

        return compute(codes.shape, element, "signed")

    return lower.te(emit, lower.expr(node.inputs[0]))  # type: ignore[arg-type]


def rounding(node: Node) -> Quantization | None:
    """Of a (De)QuantizeLinear of uint8 with one constant scale and zero point."""
    codes = node.output if node.op == "QuantizeLinear" else node.inputs[0]
    found = _parameters(node)
    if found is None or codes is None or codes.dtype != "uint8":
        return None
    return Quantization(float(found[0]), found[1])


def _parameters(node: Node) -> tuple[np.float32, int] | None:
    """The scale and zero point of a (De)QuantizeLinear if both are single constants."""
    scale, zero = node.const(1), node.const(2)
    if node.input(2) is None:
        zero = np.zeros((), np.uint8)
    if scale is None or zero is None or scale.dtype != np.float32 or scale.size * zero.size != 1:
        return None
    return np.float32(scale.reshape(())), int(zero.reshape(()))


@rule(op.QLinearMatMul(x, ...))
def integers_to_floats(rw: Rewriter, node: Node) -> Value | NoMatch:
    """QLinearMatMul(a, b) -> QuantizeLinear((a - zero) @ (b - zero) * scale)

    Numbers of 8 bits, whose sums float32 has exactly up to 2^24; kernels have them in integers.
    """
    a, b = node.inputs[0], node.inputs[3]
    scales, zeros = [node.const(k) for k in (1, 4, 6)], [node.const(k) for k in (2, 5, 7)]
    if a is None or b is None or not a.rank or not b.rank or b.rank < 2 or a.rank < 2:
        return NoMatch("an operand is a vector, or of unknown rank")
    if any(v is None for v in (*scales, *zeros)) or any(s.dtype != np.float32 for s in scales):  # type: ignore[union-attr]
        return NoMatch("its scales and zero points are no constants of float32")
    (a_scale, b_scale, y_scale), (a_zero, b_zero, y_zero) = scales, zeros
    if {a_scale.size, y_scale.size, a_zero.size, y_zero.size} != {1}:  # type: ignore[union-attr]
        return NoMatch("its rows have a scale each")
    scale = a_scale.reshape(()) * b_scale / y_scale.reshape(())  # type: ignore[union-attr]
    one, dequantize = np.float32(1), rw.op.DequantizeLinear
    left = dequantize(a, rw.const(one), rw.const(a_zero.reshape(())))  # type: ignore[union-attr]
    if b.const is not None and b.rank == 2:
        each = np.broadcast_to(scale.reshape(-1), b.const.shape[1:]).astype(np.float32)
        shift = np.broadcast_to(b_zero.reshape(-1), b.const.shape[1:])  # type: ignore[union-attr]
        result = rw.op.MatMul(left, dequantize(b, rw.const(each), rw.const(shift), axis=1))
    elif b_scale.size == b_zero.size == 1:  # type: ignore[union-attr]
        right = dequantize(b, rw.const(one), rw.const(b_zero.reshape(())))  # type: ignore[union-attr]
        result = rw.op.Mul(rw.op.MatMul(left, right), rw.const(scale.reshape(())))
    else:
        return NoMatch("columns of a computed operand have a scale each")
    return rw.op.QuantizeLinear(result, rw.const(one), rw.const(y_zero.reshape(())))  # type: ignore[union-attr]


@rule(op.QuantizeLinear(x, ...))
def moved_codes(rw: Rewriter, node: Node, x: Value) -> Value | NoMatch:
    """QuantizeLinear(Reshape(DequantizeLinear(q, s, z)), s, z) -> Reshape(q), and so for all moves

    The quotient is within 2^-14 of the difference of code and zero point, so it rounds to that.
    """
    moves: list[Node] = []
    while x.producer is not None and x.producer.op in _MOVES and x.producer.inputs[0] is not None:
        moves.append(x.producer)
        x = x.producer.inputs[0]
    restore, found = x.producer, _parameters(node)
    if restore is None or restore.op != "DequantizeLinear" or restore.inputs[0] is None:
        return NoMatch("what it rounds are not numbers that codes stand for, moved")
    codes = restore.inputs[0]
    if found is None or found != _parameters(restore) or codes.dtype != node.output.dtype:
        return NoMatch("these are other codes")
    if not 1 / _LARGEST < found[0] < _LARGEST:
        return NoMatch("its scale is not a normal number")
    for move in reversed(moves):
        given, attrs = [codes, *move.inputs[1:]], dict(move.attrs)
        if move.op in LOOKUPS:
            attrs["_fill"] = np.array(found[1])
        codes = rw.insert(move.op_type, given, attrs, origin=move.origin).output
    return codes


@rule(op.QuantizeLinear(x, ...))
def unsigned_codes(rw: Rewriter, node: Node, x: Value) -> Value | NoMatch | None:
    """QuantizeLinear(x, s, z int8) -> Signed(QuantizeLinear(x, s, z + 128 as uint8))"""
    if node.output.dtype != "int8":
        return None
    found = _parameters(node)
    if found is None or x.dtype != "float32":
        return NoMatch("float32 is not rounded in one range")
    zero = rw.const(np.array(found[1] + MIDDLE, np.uint8))
    return sign(rw, rw.op.QuantizeLinear(x, rw.const(found[0]), zero))


def sign(rw: Rewriter, codes: Value) -> Value:
    """Signed(codes)"""
    return rw.insert("Signed", [codes], {}, domain=DOMAIN).output


@rule(op.DequantizeLinear(signed, ...))
def unsigned_to_floats(rw: Rewriter, node: Node, q: Value) -> Value | NoMatch:
    """DequantizeLinear(Signed(q), s, z) -> DequantizeLinear(q, s, z + 128)"""
    found = _parameters(node)
    if found is None or node.output.dtype != "float32":
        return NoMatch("it has more than one scale")
    zero = rw.const(np.array(found[1] + MIDDLE, np.uint8))
    return rw.op.DequantizeLinear(q, rw.const(found[0]), zero)


@rule(*(getattr(op, move)(signed, ...) for move in sorted(_MOVES)))
def unsigned_move(rw: Rewriter, node: Node, q: Value) -> Value:
    """Reshape(Signed(q)) -> Signed(Reshape(q)), and so for all moves"""
    attrs = dict(node.attrs)
    if node.op in LOOKUPS:
        attrs["_fill"] = attrs.get("_fill", np.zeros((), np.int64)) + MIDDLE
    return sign(rw, rw.insert(node.op_type, [q, *node.inputs[1:]], attrs).output)


def in_groups(rw: Rewriter, codes: Value, weights: np.ndarray) -> tuple[Value, np.ndarray]:
    """Codes [..., k] and weights [k, n] with k a multiple of GROUP, by zeros of both at the end.

    All that ask for the same codes share them.
    """
    extra, producer = -len(weights) % GROUP, codes.producer
    if not extra:
        return codes, weights
    for user in codes.users:
        if user.op == f"{DOMAIN}::Grouped":
            grouped = user.output
            break
    else:
        after = rw.root if producer is None else producer._next
        grouped = rw.insert("Grouped", [codes], {}, domain=DOMAIN, before=after).output
    return grouped, np.concatenate([weights, np.zeros((extra, weights.shape[1]), weights.dtype)])


@type_rule("Grouped", domain=DOMAIN)
def _grouped_type(node: Node) -> list[Type | None]:
    """(codes uint8[..., k]) -> uint8[..., k'], with zeros up to whole groups."""
    assert node.inputs[0] is not None
    *rows, width = node.inputs[0].tensor.dims
    return [tensor_type("uint8", [*rows, width + -width % GROUP])]


@cost_rule("Grouped", domain=DOMAIN)
def _grouped_cost(node: Node) -> Cost:
    return streaming(node, product(node.output.tensor.dims))


@lowers("Grouped", domain=DOMAIN)
def _lower_grouped(lower: Lowering, node: Node) -> Any:
    (codes,) = node.inputs
    assert codes is not None and isinstance(codes.tensor.dims[-1], int)
    width, rows = codes.tensor.dims[-1], lower.dim(product(codes.tensor.dims[:-1]))
    kernel = grouped_codes(width)
    flat = lower.reshape(lower.expr(codes), [rows, width])
    (result,) = lower.kernel(kernel, [flat], [([rows, width + -width % GROUP], "uint8")])
    return lower.reshape(result, lower.shape(node.output))


_layer = Pattern("Dense", (x, ...), domain=DOMAIN, name="y")


@rule(op.QuantizeLinear(_layer, ...))
def result_to_codes(rw: Rewriter, node: Node, y: Value) -> Value | NoMatch:
    """QuantizeLinear(Dense(x, …; data), s, z) -> Dense(x, …; data, result)"""
    before, found, columns = y.producer, rounding(node), y.tensor.dims[-1]
    assert before is not None
    if "data" not in before.attrs or "result" in before.attrs or found is None:
        return NoMatch("it does not multiply in 8 bits, or not for codes of one range")
    if len(y.uses) > 1 or y.is_graph_output:
        return NoMatch("others read it as floats")
    if not isinstance(columns, int) or columns % GROUP:
        return NoMatch(f"its rows are not of whole groups of {GROUP} bytes")
    attrs = {**before.attrs, "result": found}
    return rw.insert("Dense", before.inputs, attrs, domain=DOMAIN).output


AS_FLOATS = (integers_to_floats, moved_codes)
UNSIGNED = (unsigned_codes, unsigned_to_floats, unsigned_move)
