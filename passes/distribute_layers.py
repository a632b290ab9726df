"""Layers over concatenations of copies, sums and differences: the weights are added up instead."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from graphopt.ir.dims import Dim
from graphopt.ir.graph import Value
from graphopt.passes._concats import axis_of
from graphopt.pipeline.base import Fidelity, RewritePass
from graphopt.rewrite import NoMatch, Rewriter, const, op, rule, var

joined, w, b, c = var("joined"), const("w"), const("b"), const("c")
wide, small = var("wide"), var("small")

_SIGNS = {"Add": 1.0, "Sub": -1.0}


def _terms(value: Value, sign: float = 1.0) -> Iterator[tuple[Value, float]]:
    """What `value` is a sum of, and whether each is added or subtracted."""
    node, width = value.producer, value.tensor.dims[-1:]
    if node is not None and node.op == "Expand" and node.inputs[0] is not None:
        source = node.inputs[0]
        if source.rank == value.rank and source.tensor.dims[-1:] == width:
            yield from _terms(source, sign)
            return
    if node is not None and node.op in _SIGNS:
        a, z = node.inputs
        assert a is not None and z is not None
        if all(v.rank == value.rank and v.tensor.dims[-1:] == width for v in (a, z)):
            yield from _terms(a, sign)
            yield from _terms(z, sign * _SIGNS[node.op])
            return
    yield value, sign


def _added_up(parts: list[Value], weights: np.ndarray) -> dict[Value, np.ndarray] | None:
    """For each value that the parts are sums of its weights, [columns, outputs], float64."""
    found: dict[Value, np.ndarray] = {}
    start = 0
    for part in parts:
        width = part.tensor.dims[-1]
        if not isinstance(width, int):
            return None
        rows = weights[start : start + width].astype(np.float64)
        for value, sign in _terms(part):
            found[value] = found.get(value, 0.0) + sign * rows
        start += width
    return found


@rule(op.MatMul(op.Concat(var("first"), ...).named("joined"), w))
def layer_of_sums(rw: Rewriter, joined: Value, w: Value) -> Value | NoMatch:
    """MatMul(Concat(Expand(q), h, q - h), w) -> MatMul(h, w2 - w3) + MatMul(q, w1 + w3)"""
    assert joined.producer is not None and w.const is not None
    parts, rank = joined.producer.operands, joined.rank or 0
    if w.const.ndim != 2 or axis_of(joined.producer) != rank - 1 or rank < 3:
        return NoMatch("it is no layer over rows of several axes")
    same_rank = all(part.rank == rank for part in parts)
    found = _added_up(parts, w.const) if same_rank else None
    if found is None:
        return NoMatch("the widths of its parts are not known")
    groups: dict[tuple[Dim, ...], dict[Value, np.ndarray]] = {}
    for value, weights in found.items():
        groups.setdefault(value.tensor.dims[:-1], {})[value] = weights
    all_rows = groups.pop(joined.tensor.dims[:-1], {})
    if not all_rows or sum(map(len, all_rows.values())) >= len(w.const):
        return NoMatch("nothing is computed twice")
    result = _layer(rw, all_rows, w.const.dtype)
    for fewer_rows in groups.values():
        result = rw.op.Add(result, _layer(rw, fewer_rows, w.const.dtype))
    return result


def _layer(rw: Rewriter, weights: dict[Value, np.ndarray], dtype: np.dtype) -> Value:
    values = list(weights)
    data = values[0] if len(values) == 1 else rw.op.Concat(*values, axis=(values[0].rank or 0) - 1)
    return rw.op.MatMul(data, rw.const(np.concatenate(list(weights.values())).astype(dtype)))


@rule(op.Add(op.Add(wide, small), c))
def bias_to_the_smaller(
    rw: Rewriter, wide: Value, small: Value, c: Value, node: object
) -> Value | NoMatch:
    """(MatMul(h, w) + small) + c -> MatMul(h, w) + (small + c)"""
    for large, little in ((wide, small), (small, wide)):
        if large.producer is None or large.producer.op != "MatMul" or little.const is not None:
            continue
        if little.rank != large.rank or (large.rank or 0) < 2:
            continue
        if little.tensor.dims[-2] == 1 != large.tensor.dims[-2]:
            bias = rw.op.Add(little, c)
            if bias.type == little.type:
                return rw.op.Add(large, bias)
    return NoMatch("neither summand is smaller than the sum")


class DistributeLayers(RewritePass):
    """Multiplies the weights of a layer out over copies, sums and differences that it reads.

    Needs parts of known width, of which something is computed twice. DIN's first layer over [q, h,
    q - h, q * h] needs only h and q * h for each item of the history, and q once: the weights of q
    - h are added to those of q and subtracted from those of h. The new weights are computed in
    float64 and rounded once. Fidelity: reassociates.

    Before:
        (float[N,1,4] q, float[N,20,4] h) => (float[N,20,8] y)
        <float[16,8] w, float[8] b, int64[3] times = {1, 20, 1}> {
            e = Expand(q, times)
            d = Sub(q, h)
            m = Mul(q, h)
            c = Concat<axis=2>(e, h, d, m)
            p = MatMul(c, w)
            y = Add(p, b)
        }

    After:
        (float[N,1,4] q, float[N,20,4] h) => (float[N,20,8] y)
        <float[8,8] w, float[4,8] v, float[8] b> {
            m = Mul(q, h)
            c = Concat<axis=2>(h, m)
            p = MatMul(c, w)
            s = MatMul(q, v)
            t = Add(s, b)
            y = Add(p, t)
        }
    """

    name = "distribute-layers"
    fidelity = Fidelity.REASSOCIATES
    rules = (layer_of_sums, bias_to_the_smaller)
