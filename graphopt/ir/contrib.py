"""Ops that ONNX lacks and that tools write all the same, in the terms of standard ONNX.

A model saved after its optimizations, or quantized in operator format, has ops of the domain
`com.microsoft`. Each adapter inserts what its op computes, as ONNX Runtime documents it; passes and
targets then see one form. `Gelu` is by `Erf`, quantized ops are those on floats in between. tf2onnx
writes some ops of TensorFlow as if they were of ONNX, which no engine runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from graphopt.ir import contrib_attention, contrib_blocks
from graphopt.ir.contrib_steps import Adapter, Steps
from graphopt.ir.graph import Graph, Value
from graphopt.ir.types import dtype_to_numpy, dtype_to_onnx
from graphopt.ir.upgrade import OpCall

DOMAIN = "com.microsoft"

# What FusedGemm may apply, and the attributes that it hands over.
_ACTIVATIONS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("Relu", "Sigmoid", "Tanh", "Softplus", "Softsign"), ()),
    **dict.fromkeys(("LeakyRelu", "Elu", "ThresholdedRelu"), ("alpha",)),
    "HardSigmoid": ("alpha", "beta"),
    "Selu": ("alpha", "gamma"),
}


def _transposed(do: Steps, value: Value) -> Value:
    """The last two axes in the other order; a vector stays."""
    if value.rank is None:
        raise do.call.unsupported("it transposes a tensor of unknown rank")
    axes = list(range(value.rank))
    return do("Transpose", value, perm=[*axes[:-2], *axes[-2:][::-1]]) if len(axes) > 1 else value


def _fused_gemm(do: Steps, attrs: dict[str, Any]) -> Value:
    kind = attrs.pop("activation", "")
    if kind and kind not in _ACTIVATIONS:
        raise do.call.unsupported(f"its activation {kind!r} is not known")
    given = {k.removeprefix("activation_"): attrs.pop(k) for k in list(attrs) if "activation" in k}
    product = do("Gemm", *do.call.inputs, **attrs)
    if not kind:
        return product
    return do(kind, product, **{name: given[name] for name in _ACTIVATIONS[kind] if name in given})


def _fused_matmul(do: Steps, attrs: dict[str, Any]) -> Value:
    if attrs.get("transBatchA") or attrs.get("transBatchB"):
        raise do.call.unsupported("it transposes batches")
    a, b = do.value(0), do.value(1)
    a = _transposed(do, a) if attrs.get("transA") else a
    b = _transposed(do, b) if attrs.get("transB") else b
    product, alpha = do("MatMul", a, b), attrs.get("alpha", 1.0)
    return product if alpha == 1.0 else do("Mul", product, do.number(alpha, product))


def _gelu(do: Steps, x: Value) -> Value:
    one, half = do.number(1.0, x), do.number(0.5, x)
    bell = do("Erf", do("Mul", x, do.number(0.5**0.5, x)))
    return do("Mul", do("Mul", x, do("Add", bell, one)), half)


def _negated(do: Steps, x: Value) -> Value:
    """-x, without a Neg where one in a product can go."""
    node = x.producer
    if node is not None and node.op == "Mul":
        for factor, other in (node.inputs, node.inputs[::-1]):
            if factor is not None and factor.producer is not None and factor.producer.op == "Neg":
                return do("Mul", factor.producer.inputs[0], other)
    return do("Neg", x)


def _erfc(do: Steps, attrs: dict[str, Any]) -> Value:
    bell = do("Erf", _negated(do, do.value(0)))
    return do("Add", bell, do.number(1.0, bell))


def _bucketize(do: Steps, attrs: dict[str, Any]) -> Value:
    """How many boundaries are not above each number, int32; all of them for NaN."""
    x, boundaries = do.value(0), attrs.get("boundaries", [])
    if x.dtype not in ("float32", "float64"):
        x = do("Cast", x, to=dtype_to_onnx("float32"))
    limits = do.graph.constant(np.array(boundaries, dtype_to_numpy(x.dtype)))
    last = do.graph.constant(np.array([-1]))
    reached = do("Not", do("Less", do("Unsqueeze", x, last), limits))
    count = do("ReduceSum", do("Cast", reached, to=dtype_to_onnx("float32")), last, keepdims=0)
    return do("Cast", count, to=dtype_to_onnx("int32"))


def _fast_gelu(do: Steps, attrs: dict[str, Any]) -> Value:
    x = do.value(0) if do.input(1) is None else do("Add", do.value(0), do.value(1))
    cube = do("Mul", do("Mul", do("Mul", x, x), x), do.number(0.044715, x))
    inner = do("Mul", do("Add", x, cube), do.number((2 / np.pi) ** 0.5, x))
    bell = do("Add", do("Tanh", inner), do.number(1.0, x))
    return do("Mul", do("Mul", x, bell), do.number(0.5, x))


def _quick_gelu(do: Steps, attrs: dict[str, Any]) -> Value:
    x, alpha = do.value(0), attrs.get("alpha", 1.702)
    return do("Mul", x, do("Sigmoid", do("Mul", x, do.number(alpha, x))))


def _skip_layer_normalization(do: Steps, attrs: dict[str, Any]) -> Sequence[Value]:
    total = do("Add", do.value(0), do.value(1))
    if (bias := do.input(4)) is not None:
        total = do("Add", total, bias)
    if any(do.call.outputs[1:3]):
        raise do.call.unsupported("its means are read, which only training does")
    beta = do.input(3)
    parts = [total, do.value(2), *([] if beta is None else [beta])]
    epsilon = attrs.get("epsilon", 1e-12)
    result = do("LayerNormalization", *parts, axis=-1, epsilon=epsilon)
    return [result, result, result, total][: len(do.call.outputs)]


def _fused_conv(do: Steps, attrs: dict[str, Any]) -> Value:
    kind, given = attrs.pop("activation", ""), attrs.pop("activation_params", [])
    names = {**_ACTIVATIONS, "Clip": ()}.get(kind, None if kind else ())
    if names is None:
        raise do.call.unsupported(f"its activation {kind!r} is not known")
    result = do("Conv", *_without_end(do.call.inputs[:3]), **attrs)
    if do.input(3) is not None:
        result = do("Add", result, do.value(3))
    if kind == "Clip":
        return do(kind, result, *(do.number(limit, result) for limit in given))
    return do(kind, result, **dict(zip(names, given))) if kind else result


def _matmul_to_float(do: Steps, attrs: dict[str, Any]) -> Value:
    return do.product(
        [do.input(k) for k in (0, 1, 4, 5)], do("Mul", do.value(2), do.value(3)), do.input(6)
    )


def _dynamic_matmul(do: Steps, attrs: dict[str, Any]) -> Value:
    made = do.graph.insert("DynamicQuantizeLinear", [do.value(0)], outputs=3, origin=do.call.origin)
    codes, scale, zero = made.outputs
    factors = (codes, do.value(1), zero, do.input(3))
    return do.product(factors, do("Mul", scale, do.value(2)), do.input(4))


def _without_end(inputs: Sequence[Value | None]) -> list[Value | None]:
    kept = list(inputs)
    while kept[-1] is None:
        kept.pop()
    return kept


def _on_floats(op_type: str, operands: int) -> Adapter:
    """A quantized op: codes to floats, `op_type`, floats to codes."""

    def adapter(do: Steps, attrs: dict[str, Any]) -> Value:
        if attrs.pop("channels_last", 0):
            raise do.call.unsupported("its channels come last")
        attrs.pop("opset", None)
        given = [do.floats(3 * k) for k in range(operands)]
        return do.codes(do(op_type, *given, **attrs), 3 * operands)

    return adapter


def _qlinear_concat(do: Steps, attrs: dict[str, Any]) -> Value:
    given = [do.floats(slot) for slot in range(2, len(do.call.inputs), 3)]
    return do.codes(do("Concat", *given, **attrs), 0)


def _qlinear_where(do: Steps, attrs: dict[str, Any]) -> Value:
    return do.codes(do("Where", do.value(0), do.floats(1), do.floats(4)), 7)


def _qgemm(do: Steps, attrs: dict[str, Any]) -> Value:
    alpha = attrs.get("alpha", 1.0)
    turned = bool(attrs.get("transB", 0))
    inputs: list[Value] = [do.floats(0), do.floats(3, axis=0 if turned else 1)]
    if (bias := do.input(6)) is not None:
        scale = do("Mul", do.value(1), do.value(4))
        floats = do("Cast", bias, to=dtype_to_onnx("float32"))
        inputs.append(do("Mul", floats, do("Mul", scale, do.number(alpha, scale))))
    product = do("Gemm", *inputs, **attrs)
    return product if do.input(7) is None else do.codes(product, 7)


_ADAPTERS: dict[str, Adapter] = {
    **contrib_attention.ADAPTERS,
    **contrib_blocks.ADAPTERS,
    "Bucketize": _bucketize,
    "Erfc": _erfc,
    "BiasGelu": lambda do, attrs: _gelu(do, do("Add", do.value(0), do.value(1))),
    "DequantizeLinear": lambda do, attrs: do("DequantizeLinear", *do.call.inputs, **attrs),
    "DynamicQuantizeMatMul": _dynamic_matmul,
    "FastGelu": _fast_gelu,
    "FusedConv": _fused_conv,
    "FusedGemm": _fused_gemm,
    "FusedMatMul": _fused_matmul,
    "GatherND": lambda do, attrs: do("GatherND", *do.call.inputs),
    "Gelu": lambda do, attrs: _gelu(do, do.value(0)),
    "MatMulIntegerToFloat": _matmul_to_float,
    "QGemm": _qgemm,
    "QLinearAdd": _on_floats("Add", 2),
    "QLinearAveragePool": _on_floats("AveragePool", 1),
    "QLinearConcat": _qlinear_concat,
    "QLinearGlobalAveragePool": _on_floats("GlobalAveragePool", 1),
    "QLinearLeakyRelu": _on_floats("LeakyRelu", 1),
    "QLinearMul": _on_floats("Mul", 2),
    "QLinearSigmoid": _on_floats("Sigmoid", 1),
    "QLinearSoftmax": _on_floats("Softmax", 1),
    "QLinearWhere": _qlinear_where,
    "QuantizeLinear": lambda do, attrs: do("QuantizeLinear", *do.call.inputs, **attrs),
    "QuickGelu": _quick_gelu,
    "SkipLayerNormalization": _skip_layer_normalization,
    "TransposeMatMul": _fused_matmul,
    "Trilu": lambda do, attrs: do("Trilu", *do.call.inputs, **attrs),
}
OF_NO_ENGINE = frozenset(["Bucketize", "Erfc"])
"""Ops of TensorFlow that tf2onnx writes as if they were of ONNX."""

# Ops that are written as if they were of ONNX.
_IN_ONNX = OF_NO_ENGINE | {"SimplifiedLayerNormalization"}


def is_known(call: OpCall) -> bool:
    """True for an op that ONNX lacks and `standard` can write."""
    if call.op_type in _IN_ONNX:
        return not call.domain
    return call.domain == DOMAIN and call.op_type in _ADAPTERS and call.op_type not in OF_NO_ENGINE


def standard(graph: Graph, call: OpCall) -> Sequence[Value]:
    """Insert what `call` computes; returns its results.

    Raises:
        InvalidModelError: the call does not fit its op.
        UnsupportedOpError: it asks for something that is not handled.
    """
    made = _ADAPTERS[call.op_type](Steps(graph, call), dict(call.attrs))
    results = [made] if isinstance(made, Value) else list(made)
    if len(results) < len(call.outputs):
        raise call.invalid(f"it has {len(call.outputs)} outputs instead of {len(results)}")
    return results
