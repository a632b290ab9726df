"""Loops and branches that every target is tried on, in ONNX's text."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


def ramp(*shape: int) -> np.ndarray:
    return np.linspace(-1, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape)


def assert_found(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    """Of a result without rows ONNX Runtime says the other sizes are 0 too; nobody else does."""
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        assert found[name].size == array.size
        if array.size:
            np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-6)


SCAN = """g (float[N,T,2] x) => (float[N,2] last, float[N,T,2] all)
<float[2,2] w, int64[1] axis = {1}> {
    start = ReduceSum<keepdims=0>(x, axis)
    last, all = Scan <num_scan_inputs=1, AXES, body = b (float[N,2] s, float[N,2] v)
        => (float[N,2] t, float[N,2] o) { a = MatMul(s, w) t = Add(a, v) o = Mul(t, v) }> (start, x)
}"""


LOOP = """g (float[N,T,2] x) => (float[N,2] last, float[T,N,2] all)
<float[2,2] w, float zero = {0}, int64[1] axis = {1}, bool go = {1}> {
    start = ReduceSum<keepdims=0>(x, axis)
    shape = Shape<start=1, end=2>(x) steps = Squeeze(shape)
    last, all = Loop <body = b (int64 i, bool c, float[N,2] s)
        => (bool d, float[N,2] t, float[N,2] o)
        { d = Identity(c) v = Gather<axis=1>(x, i) BODY o = Mul(t, v) }> (steps, go, start)
}"""
NESTED = LOOP.replace(
    "BODY",
    """
    r = Loop <body = e (int64 j, bool f, float[N,2] p) => (bool h, float[N,2] q)
        { h = Identity(f) k = MatMul(p, w) q = Add(k, v) }> (steps, go, s)
    m = ReduceMean<keepdims=0>(r) above = Greater(m, zero)
    t = If (above) <
        then_branch = yes () => (float[N,2] y) { y1 = MatMul(r, w) y = Neg(y1) },
        else_branch = no () => (float[N,2] z) { z = Tanh(r) }>
    """,
)
# States that change places from step to step.
PLACES = """g (float[N,T,2] x) => (float[N,2] p, float[N,2] q, float[N,2] r)
<int64[1] axis = {1}, bool go = {1}> {
    s = ReduceSum<keepdims=0>(x, axis) s2 = Neg(s)
    shape = Shape<start=1, end=2>(x) steps = Squeeze(shape)
    p, q, r = Loop <body = b (int64 i, bool c, float[N,2] u, float[N,2] v, float[N,2] w)
        => (bool d, float[N,2] v2, float[N,2] u2, float[N,2] w)
        { d = Identity(c) y = Gather<axis=1>(x, i) z = Add(y, u) u2 = Add(z, w)
          v2 = Identity(v) }> (steps, go, s, s2, s)
}"""
# Sequences that may differ in length.
PAIR = """g (float[T,2] x, float[U,2] y) => (float[T,2] z) {
    z = Scan <num_scan_inputs=2, body = b (float[2] u, float[2] v)
        => (float[2] w) { w = Sub(u, v) }> (x, y)
}"""
BRANCHES = """g (bool c, float[N,4] x) => (float[N,4] y, float[N,4] z) <float[4,4] w> {
    y, z = If (c) <
        then_branch = t () => (float[N,4] a, float[N,4] b) { a = MatMul(x, w) b = Neg(a) },
        else_branch = e () => (float[N,4] p, float[N,4] p) { p = Identity(x) }>
}"""

COUNTED = """g (int64 n, bool go, float[N,2] x) => (float[N,2] last)
<float one = {1}, float most = {4}> {
    last = Loop <body = b (int64 i, bool c, float[N,2] s) => (bool d, float[N,2] t)
        { CONDITION k = Add(s, x) t = Add(k, one) }> (TRIPS, go, x)
}"""
UNTIL = "m = ReduceMax<keepdims=0>(t) d = Less(m, most)"


def stacking(text: str) -> str:
    """The loop with one more result, a row a step."""
    changes = {
        "last)": "last, float[M,N,2] all)",
        "last =": "last, all =",
        "[N,2] t)": "[N,2] t, float[N,2] o)",
        "one) }": "one) o = Neg(t) }",
    }
    for old, new in changes.items():
        text = text.replace(old, new)
    return text


# What no target compiles, and what the message says.
REFUSED = [
    (
        stacking(COUNTED.replace("CONDITION", UNTIL).replace("TRIPS", "")),
        "stacks shows only once it has run; give it a trip count",
    ),
    (
        COUNTED.replace("CONDITION", "d = Identity(c)")
        .replace("t = Add(k, one)", "t = Concat<axis=0>(k, k)")
        .replace("TRIPS", "n"),
        "may change from step to step; make it the same in all",
    ),
    (
        COUNTED.replace("CONDITION", "d = Identity(c)")
        .replace(
            "t = Add(k, one)",
            "z = NonZero(s) m = ReduceSum<keepdims=0>(z) y = Cast<to=1>(m) t = Add(k, y)",
        )
        .replace("TRIPS", "n"),
        "a size shows only at run time; compute what has that size outside",
    ),
]
