"""Activations, single ops or written out as exporters do, into the store of the layer before."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphopt.ir.graph import Node, Value
from graphopt.rewrite import NoMatch, Rewriter, const, op, rule, var
from graphopt.rewrite.pattern import Pattern
from graphopt.targets.cpu import DOMAIN

x, w, z = var("x"), const("w"), var("z")
half, one, scale, cubic, three = (
    const(name) for name in ("half", "one", "scale", "cubic", "three")
)
low, high, slope = const("low"), const("high"), const("slope")

_SINGLE = {
    "Elu": "elu",
    "HardSigmoid": "hard_sigmoid",
    "HardSwish": "hard_swish",
    "LeakyRelu": "leaky_relu",
    "Relu": "relu",
    "Sigmoid": "sigmoid",
    "Softplus": "softplus",
    "Softsign": "softsign",
    "Tanh": "tanh",
    "ThresholdedRelu": "thresholded_relu",
}
layer = Pattern("Dense", (x, w, ...), domain=DOMAIN, name="z")


def activated(rw: Rewriter, z: Value, kind: str, uses: int, **constants: Any) -> Value | NoMatch:
    """The layer that computes `z` with an activation; all `uses` of `z` being part of that."""
    layer = z.producer
    if layer is None or layer.op != f"{DOMAIN}::Dense":
        return NoMatch("no layer computes its operand")
    if layer.attrs.get("activation"):
        return NoMatch("the layer has an activation already")
    if len(z.uses) > uses:
        return NoMatch("the layer is also read elsewhere")
    before = len(layer.attrs.get("steps", ()))
    attrs = {**layer.attrs, "activation": kind, "before": before, **constants}
    origin = dict.fromkeys((*layer.origin, *rw.origin))
    return rw.insert("Dense", layer.inputs, attrs, domain=DOMAIN, origin=origin).output


def _are(*values: tuple[Value, float]) -> bool:
    """True if each constant is one number, the given one as nearly as float32 has it."""
    return all(
        value.const is not None
        and value.const.size == 1
        and np.isclose(value.const.item(), number, rtol=1e-6)
        for value, number in values
    )


@rule(*(getattr(op, name)(layer) for name in _SINGLE))
def activation_to_dense(rw: Rewriter, node: Node, z: Value) -> Value | NoMatch:
    """Relu(Dense(…)) -> Dense(…, activation="relu")"""
    found = {name: node.attr(name) for name in ("alpha", "beta")}
    constants = {name: float(value) for name, value in found.items() if value is not None}
    return activated(rw, z, _SINGLE[node.op_type], 1, **constants)


@rule(op.Clip(layer, low, high))
def clip_to_dense(rw: Rewriter, z: Value, low: Value, high: Value) -> Value | NoMatch:
    """Clip(Dense(…), 0, 6) -> Dense(…, activation="clip")"""
    assert low.const is not None and high.const is not None
    limits = {"alpha": float(low.const.item()), "beta": float(high.const.item())}
    return activated(rw, z, "clip", 1, **limits)


@rule(op.PRelu(layer, slope))
def prelu_to_dense(rw: Rewriter, z: Value, slope: Value) -> Value | NoMatch:
    """PRelu(Dense(…), a) -> Dense(…, activation="prelu")"""
    return _with_slope(rw, z, slope, 1, 1.0)


@rule(op.Add(op.Relu(z), op.Mul(op.Relu(op.Neg(z)), slope)))
def relus_to_dense(rw: Rewriter, z: Value, slope: Value) -> Value | NoMatch:
    """Relu(z) + a * Relu(-z) of z = Dense(…) -> Dense(…, activation="prelu")"""
    return _with_slope(rw, z, slope, 2, -1.0)


def _with_slope(rw: Rewriter, z: Value, slope: Value, uses: int, sign: float) -> Value | NoMatch:
    """The layer that computes `z`, what is negative multiplied by `sign` times the slope."""
    assert slope.const is not None
    if slope.const.size == 1:
        return activated(rw, z, "leaky_relu", uses, alpha=sign * float(slope.const.item()))
    row = per_column(slope, z)
    if row is None:
        return NoMatch("its slope differs from row to row")
    return activated(rw, z, "prelu", uses, columns=np.float32(sign) * row[np.newaxis])


def per_column(constant: Value, z: Value) -> np.ndarray | None:
    """A constant as one number for each column of `z`, None if it is not that."""
    array, columns = constant.const, z.tensor.dims[-1] if z.rank else None
    if array is None or array.ndim > (z.rank or 0) or not isinstance(columns, int):
        return None
    if array.size not in (1, columns) or (array.size > 1 and array.shape[-1] != columns):
        return None
    return np.broadcast_to(array.reshape(-1), (columns,))


@rule(op.Mul(z, op.HardSigmoid(z)))
def hard_swish_to_dense(rw: Rewriter, node: Node, z: Value) -> Value | NoMatch:
    """z * HardSigmoid(z; 1/6, 1/2) of z = Dense(…) -> Dense(…, activation="hard_swish")"""
    gate = next(v.producer for v in node.inputs if v is not None and v is not z)
    assert gate is not None
    if not np.allclose((gate.attr("alpha"), gate.attr("beta")), (1 / 6, 1 / 2), rtol=1e-6):
        return NoMatch("it is another HardSigmoid")
    return activated(rw, z, "hard_swish", 2)


def _halved(gate: Pattern) -> tuple[Pattern, ...]:
    """z * gate / 2 in every order of the factors."""
    factors = (gate, z, half)
    orders = ((0, 1, 2), (0, 2, 1), (1, 2, 0))
    return tuple(op.Mul(op.Mul(factors[i], factors[j]), factors[k]) for i, j, k in orders)


@rule(*(p for e in (op.Div, op.Mul) for p in _halved(op.Add(op.Erf(e(z, scale)), one))))
def erf_gelu_to_dense(
    rw: Rewriter, z: Value, half: Value, one: Value, scale: Value
) -> Value | NoMatch:
    """z * (1 + Erf(z / sqrt(2))) / 2 of z = Dense(…) -> Dense(…, activation="gelu")"""
    divides = any(n.op == "Div" for n in z.users)
    if not _are((half, 0.5), (one, 1.0), (scale, 2**0.5 if divides else 0.5**0.5)):
        return NoMatch("it has other constants than Gelu")
    return activated(rw, z, "gelu", 2)


def _is_halved(node: Node) -> bool:
    """True if what `node` computes is multiplied by 1/2, so that both are Gelu."""
    others = [v for user in node.output.users if user.op == "Mul" for v in user.inputs]
    return any(v is not None and v.const is not None and _are((v, 0.5)) for v in others)


@rule(*(op.Mul(op.Add(op.Erf(e(z, scale)), one), z) for e in (op.Div, op.Mul)))
def erf_gelu_twice_to_dense(
    rw: Rewriter, node: Node, z: Value, one: Value, scale: Value
) -> Value | NoMatch:
    """z * (1 + Erf(z / sqrt(2))) of z = Dense(…) -> Dense(…, activation="gelu", alpha=2)

    What a Gelu leaves when its factor 1/2 went into the weights of the next layer.
    """
    divides = any(n.op == "Div" for n in z.users)
    if _is_halved(node) or not _are((one, 1.0), (scale, 2**0.5 if divides else 0.5**0.5)):
        return NoMatch("it has other constants than Gelu without its 1/2")
    return activated(rw, z, "gelu", 2, alpha=2.0)


_cube = op.Pow(z, three)
_inner = op.Mul(op.Add(z, op.Mul(_cube, cubic)), scale)


@rule(*_halved(op.Add(op.Tanh(_inner), one)))
def tanh_gelu_to_dense(
    rw: Rewriter, z: Value, half: Value, one: Value, scale: Value, cubic: Value, three: Value
) -> Value | NoMatch:
    """z * (1 + Tanh(…)) / 2 of z = Dense(…) -> Dense(…, activation="tanh_gelu")"""
    factor = (2 / np.pi) ** 0.5
    if not _are((half, 0.5), (one, 1.0), (scale, factor), (cubic, 0.044715), (three, 3.0)):
        return NoMatch("it has other constants than Gelu")
    return activated(rw, z, "tanh_gelu", 3)


@rule(op.Mul(op.Add(op.Tanh(_inner), one), z))
def tanh_gelu_twice_to_dense(
    rw: Rewriter, node: Node, z: Value, one: Value, scale: Value, cubic: Value, three: Value
) -> Value | NoMatch:
    """z * (1 + Tanh(…)) of z = Dense(…) -> Dense(…, activation="tanh_gelu", alpha=2)"""
    factor = (2 / np.pi) ** 0.5
    known = _are((one, 1.0), (scale, factor), (cubic, 0.044715), (three, 3.0))
    if _is_halved(node) or not known:
        return NoMatch("it has other constants than Gelu without its 1/2")
    return activated(rw, z, "tanh_gelu", 3, alpha=2.0)


@rule(Pattern("Gelu", (layer,)))
def gelu_to_dense(rw: Rewriter, node: Node, z: Value) -> Value | NoMatch:
    """Gelu(Dense(…)) -> Dense(…, activation="gelu")"""
    return activated(rw, z, "tanh_gelu" if node.attr("approximate") == "tanh" else "gelu", 1)


RULES = (
    activation_to_dense,
    clip_to_dense,
    prelu_to_dense,
    relus_to_dense,
    hard_swish_to_dense,
    erf_gelu_to_dense,
    erf_gelu_twice_to_dense,
    tanh_gelu_to_dense,
    tanh_gelu_twice_to_dense,
    gelu_to_dense,
)
