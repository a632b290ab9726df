"""Products of bytes that are scaled at run time, as dynamic quantization has them."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto
from tvm import te, tirx

from graphopt.analysis.cost import Cost, cost_rule, streaming
from graphopt.ir.dims import product
from graphopt.ir.graph import Node, Value
from graphopt.ir.infer import tensor_type, type_rule
from graphopt.ir.types import Type
from graphopt.rewrite import NoMatch, Rewriter, const, op, rule, var
from graphopt.rewrite.pattern import Pattern
from graphopt.targets.cpu import DOMAIN
from graphopt.targets.cpu.codes import in_groups
from graphopt.targets.cpu.kernels.int8_gemm import int8_gemm, int8_params, pack_int8, pack_start
from graphopt.targets.cpu.kernels.limit import limit
from graphopt.targets.cpu.kernels.panels import pack_bias
from graphopt.targets.cpu.kernels.row_codes import Quantization
from graphopt.targets.cpu.packed_weights import bias_row
from graphopt.targets.cpu.rates import operations
from graphopt.targets.relax.lowering import Lowering, lowers
from graphopt.targets.relax.scalar import const as number

p, t, b, nil = var("p"), var("t"), const("b"), const("nil")
scaled = op.Mul(op.Cast(op.MatMulInteger(var("x"), const("w"), ...)), t)
# (q uint8[..., K], codes int8[K, N], zero uint8[] or [1] or nothing, scale float32[] or [1] or [N],
# bias float32[N]?) -> float32[..., N], scale * ((q - zero) @ codes) + bias
mine = Pattern("IntegerProduct", (var("q"), ...), domain=DOMAIN, name="p")


@type_rule("IntegerProduct", domain=DOMAIN)
def _type(node: Node) -> list[Type | None]:
    data, codes = node.inputs[0], node.inputs[1]
    assert data is not None and codes is not None
    return [tensor_type("float32", [*data.tensor.dims[:-1], codes.tensor.dims[1]])]


@cost_rule("IntegerProduct", domain=DOMAIN)
def _cost(node: Node) -> Cost:
    assert node.inputs[1] is not None
    k = int(product(node.inputs[1].tensor.dims[:1]))  # type: ignore[arg-type]
    return streaming(node, (operations(node, k) + 2) * product(node.output.tensor.dims))


@rule(op.Min(op.ReduceMin(var("x")), nil), op.Max(op.ReduceMax(var("x")), nil))
def limit_of_data(rw: Rewriter, node: Node, x: Value, nil: Value) -> Value | NoMatch:
    """Min(ReduceMin(x), 0) -> Limit(x), and so for the greatest"""
    if nil.const is None or nil.const.any() or x.dtype != "float32" or node.output.rank != 0:
        return NoMatch("not the least or greatest of all elements and 0")
    attrs = {"greatest": int(node.op == "Max")}
    return rw.insert("Limit", [x], attrs, domain=DOMAIN).output


@type_rule("Limit", domain=DOMAIN)
def _limit_type(node: Node) -> list[Type | None]:
    return [tensor_type("float32", [])]


@cost_rule("Limit", domain=DOMAIN)
def _limit_cost(node: Node) -> Cost:
    assert node.inputs[0] is not None
    return streaming(node, product(node.inputs[0].tensor.dims))


@lowers("Limit", domain=DOMAIN)
def _lower_limit(lower: Lowering, node: Node) -> Any:
    (x,) = node.inputs
    assert x is not None
    flat = lower.reshape(lower.expr(x), [lower.dim(product(x.tensor.dims))])
    kernel = limit(bool(node.attrs["greatest"]), node.attrs["lanes"])
    (result,) = lower.kernel(kernel, [flat], [([1], "float32")])
    return lower.reshape(result, [])


@rule(scaled)
def scaled_to_product(rw: Rewriter, node: Node, t: Value) -> Value | NoMatch | None:
    """Mul(Cast(MatMulInteger(q, w, zero)), scale) -> IntegerProduct(q, w, zero, scale)"""
    cast = next(v.producer for v in node.inputs if v is not None and v is not t)
    made = cast.inputs[0].producer if cast is not None and cast.inputs[0] is not None else None
    if made is None or made.op != "MatMulInteger" or made.inputs[0] is None:
        return None
    data, zero, columns = made.inputs[0], made.input(2), node.output.tensor.dims[-1]
    codes = _codes(made)
    if codes is None or data.dtype != "uint8" or (data.rank or 0) < 2:
        return NoMatch("not unsigned bytes times a constant matrix of signed ones")
    if zero is not None and (zero.rank is None or product(zero.tensor.dims) != 1):
        return NoMatch("its data have a zero point for each row")
    if t.dtype != "float32" or t.shape not in ((), (1,), (columns,)):
        return NoMatch("it is scaled by more than one number per column")
    if cast is None or cast.output.dtype != "float32" or node.output.rank != data.rank:
        return NoMatch("its sums do not become float32")
    if not isinstance(data.tensor.dims[-1], int):
        return NoMatch("the size of its rows is known only at run time")
    data, codes = in_groups(rw, data, codes)
    inputs = [data, rw.const(codes), zero, t]
    return rw.insert("IntegerProduct", inputs, domain=DOMAIN).output


def _codes(node: Node) -> np.ndarray | None:
    """The weights of a MatMulInteger less their zero points, if these are signed bytes."""
    codes, zero = node.const(1), node.const(3)
    if codes is None or codes.ndim != 2 or (node.input(3) is not None and zero is None):
        return None
    whole = codes.astype(np.int32) - (0 if zero is None else zero.astype(np.int32))
    if whole.size and (whole.min() < -128 or whole.max() > 127):
        return None
    return whole.astype(np.int8)


@rule(op.Add(mine, b))
def bias_to_product(rw: Rewriter, node: Node, p: Value, b: Value) -> Value | NoMatch:
    """Add(IntegerProduct(q, w, zero, scale), b) -> IntegerProduct(q, w, zero, scale, b)"""
    before, columns = p.producer, p.tensor.dims[-1]
    assert before is not None and isinstance(columns, int)
    row = bias_row(b.const, columns)
    if row is None or len(before.inputs) > 4 or node.output.type != p.type:
        return NoMatch("it does not add one number per column, or not the first")
    return rw.insert("IntegerProduct", [*before.inputs, rw.const(row)], domain=DOMAIN).output


@rule(op.Cast(op.MatMulInteger(var("x"), const("w"), ...)))
def scaled_to_floats(rw: Rewriter, node: Node) -> Value | NoMatch | None:
    """Cast(MatMulInteger(q, w, zero)) -> MatMul(Cast(q) - Cast(zero), w)"""
    made = node.inputs[0].producer if node.inputs[0] is not None else None
    if made is None or made.inputs[0] is None or node.output.dtype != "float32":
        return None
    weights, (data, zero), shift = made.const(1), (made.inputs[0], made.input(2)), made.const(3)
    if weights is None or (made.input(3) is not None and shift is None):
        return NoMatch("its weights are computed")
    if zero is not None and product(zero.tensor.dims) != 1:
        return NoMatch("its data have a zero point for each row")
    whole = weights.astype(np.float32) - (0 if shift is None else shift.astype(np.float32))
    one = {"to": TensorProto.FLOAT}
    floats = rw.op.Cast(data, **one)
    if zero is not None:
        floats = rw.op.Sub(floats, rw.op.Cast(zero, **one))
    return rw.op.MatMul(floats, rw.const(whole))


STEPS = ((scaled_to_product,), (bias_to_product,))
ANYWHERE = (scaled_to_floats, limit_of_data)


@lowers("IntegerProduct", domain=DOMAIN)
def _lower(lower: Lowering, node: Node) -> Any:
    data, codes, zero, scale = node.inputs[0], node.const(1), node.inputs[2], node.inputs[3]
    assert data is not None and codes is not None and scale is not None
    k, n = codes.shape
    amx = node.attrs.get("amx")
    params = int8_params(n, amx, node.attrs["lanes"])
    width = params.panels(n) * params.width
    sums = lower.constant(pack_start(codes, -1, params))

    def start(sums: te.Tensor, *zero: te.Tensor) -> te.Tensor:
        shift = [tirx.Cast("int32", z(*[0] * len(z.shape))) for z in zero]
        return te.compute((width,), lambda j: -sums[j] * shift[0] if shift else number(0, "int32"))

    def factor(scale: te.Tensor) -> te.Tensor:
        def element(j: Any) -> Any:
            if not scale.shape:
                return scale()
            one = len(scale.shape) == 1 and scale.shape[0] == 1
            return scale[0] if one else scale[tirx.min(j, tirx.IntImm("int64", n - 1))]

        return te.compute((width,), element)

    given = [] if zero is None else [lower.expr(zero)]
    rows = lower.dim(product(data.tensor.dims[:-1]))
    arguments = [
        lower.reshape(lower.expr(data), [rows, k]),
        lower.constant(pack_int8(codes, params, amx)),
        lower.te(start, sums, *given, name="start"),
        lower.te(factor, lower.expr(scale), name="factor"),
        lower.constant(pack_bias(node.const(4), n, params)),
    ]
    kernel = int8_gemm(k, n, Quantization(1.0, 0), params, takes_codes=True, amx=amx)
    (result,) = lower.kernel(kernel, arguments, [([rows, n], "float32")])
    return lower.reshape(result, lower.shape(node.output))
