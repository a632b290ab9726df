"""How exporters write lookups, and how few kernels they become: ids stay safe in each."""

from __future__ import annotations

from functools import cache
from typing import Literal

import numpy as np
import pytest

import graphopt
from graphopt.errors import IdError
from graphopt.ir.graph import Graph
from graphopt.testing import Compiled, parse, random_inputs, run_onnxruntime

Oob = Literal["error", "clamp", "zero"]
DENSE = "float[N,2] d"
FORMS: dict[str, tuple[int, str]] = {
    # Rows of several widths and tables, one of them shared, beside dense features.
    "mixed sizes": (
        1,
        f"""(int64[N,4] x, {DENSE}) => (float[] y) <float[7,4] t, float[5,3] u, float[9,8] v,
        int64 k0 = {{0}}, int64 k1 = {{1}}, int64 k2 = {{2}}, int64 k3 = {{3}}> {{
        i = Gather<axis=1>(x, k0) j = Gather<axis=1>(x, k1) k = Gather<axis=1>(x, k2)
        l = Gather<axis=1>(x, k3) a = Gather(t, i) b = Gather(u, j) c = Gather(v, k)
        e = Gather(t, l) y = Concat<axis=-1>(a, b, d, c, e) }}""",
    ),
    "stacked in a new axis": (
        1,
        """(int64[N] p, int64[N] q) => (float[] y) <float[7,4] t, float[5,4] u, int64[1] k = {1}> {
        a = Gather(t, p) b = Gather(u, q) c = Unsqueeze(a, k) e = Unsqueeze(b, k)
        y = Concat<axis=1>(c, e) }""",
    ),
    "added up": (
        1,
        """(int64[N] p, int64[N] q, int64[N] r) => (float[] y) <float[7,4] t, float[5,4] u> {
        a = Gather(t, p) b = Gather(u, q) c = Gather(t, r) e = Add(a, b) y = Add(e, c) }""",
    ),
    "slices of floats": (
        1,
        """(float[N,3] x) => (float[] y) <float[7,4] t, float[5,4] u, int64[1] c0 = {0},
        int64[1] c1 = {1}, int64[1] c2 = {2}, int64[1] c3 = {3}> {
        i = Slice(x, c0, c1, c1) j = Slice(x, c1, c2, c1) k = Slice(x, c2, c3, c1)
        p = Cast<to=7>(i) q = Cast<to=7>(j) a = Gather(t, p) b = Gather(u, q)
        e = Concat<axis=-1>(a, b) s = Constant<value_ints=[-1, 8]>() f = Reshape(e, s)
        y = Concat<axis=-1>(f, k) }""",
    ),
    "one-hot products": (
        1,
        """(int64[N] p, int64[N] q) => (float[] y) <float[7,4] w, float[5,4] u,
        int64[1] depth = {7}, int64[2] marks = {0, 1}> {
        h = OneHot(p, depth, marks) f = Cast<to=1>(h) a = MatMul(f, w) b = Gather(u, q)
        y = Concat<axis=1>(a, b) }""",
    ),
    "masked means beside rows": (
        1,
        """(int64[N,6] p, int64[N] q) => (float[] y) <float[7,4] t, float[5,4] u, int64 pad = {0},
        int64[1] k = {1}, int64[1] last = {-1}, float tiny = {1e-8}> {
        e = Gather(t, p) o = Greater(p, pad) m = Cast<to=1>(o) r = Unsqueeze(m, last)
        w = Mul(e, r) s = ReduceSum<keepdims=0>(w, k) n = ReduceSum<keepdims=1>(m, k)
        g = Add(n, tiny) a = Div(s, g) b = Gather(u, q) y = Concat<axis=1>(a, b) }""",
    ),
    "offsets of fields": (
        1,
        """(int64[N,3] x) => (float[] y) <float[16,4] t, int64[1,3] o = {0, 7, 12}> {
        i = Add(x, o) y = Gather(t, i) }""",
    ),
    "offsets of fields, pooled": (
        1,
        """(int64[N,3] x) => (float[] y) <float[16,1] t, int64[3] o = {0, 7, 12}, int64[1] k = {1}>
        { i = Add(x, o) e = Gather(t, i) y = ReduceSum<keepdims=0>(e, k) }""",
    ),
    "quotients and remainders": (
        1,
        """(int64[N] x) => (float[] y) <float[7,4] t, float[3,4] u, int64 c = {3}, float f = {3}> {
        w = Cast<to=1>(x) v = Div(w, f) g = Floor(v) q = Cast<to=7>(g) m = Mod(x, c)
        a = Gather(t, q) b = Gather(u, m) y = Mul(a, b) }""",
    ),
    # The layer reads what the one kernel before it has put side by side.
    "a layer on looked-up rows": (
        2,
        f"""(int64[N] p, int64[N] q, {DENSE}) => (float[] y) <float[7,4] t, float[5,4] u,
        float[10,3] w, float[3] bias> {{
        a = Gather(t, p) b = Gather(u, q) c = Concat<axis=1>(a, d, b) y = Gemm(c, w, bias) }}""",
    ),
}
WITH_IDS_OF_T = ["mixed sizes", "stacked in a new axis", "added up", "offsets of fields"]


@cache
def optimized(name: str) -> Graph:
    return graphopt.optimize(parse(FORMS[name][1]))


@cache
def compiled(name: str, oob: Oob) -> Compiled:
    return Compiled(optimized(name), oob)


@pytest.mark.parametrize("name", FORMS)
def test_kernels_and_answers(name: str) -> None:
    calls, text = FORMS[name]
    assert compiled(name, "error").calls == calls
    for batch in (0, 1, 7):
        feeds = random_inputs(parse(text), {"N": batch}, seed=batch)
        wanted = run_onnxruntime(parse(text), feeds)["y"]
        for run in (compiled(name, "error"), lambda f: run_onnxruntime(optimized(name), f)):
            np.testing.assert_allclose(run(feeds)["y"], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", WITH_IDS_OF_T)
def test_ids_from_the_end_and_outside(name: str) -> None:
    graph = parse(FORMS[name][1])
    field, rows = ("x", 16) if name == "offsets of fields" else ("xp"[name != "mixed sizes"], 7)
    feeds = random_inputs(graph, {"N": 3})
    first = (1, 0) if feeds[field].ndim == 2 else (1,)
    feeds[field][first] = -rows
    wanted = run_onnxruntime(graph, feeds)["y"]
    np.testing.assert_allclose(compiled(name, "error")(feeds)["y"], wanted, rtol=1e-6)
    for stray in (rows, -rows - 1, np.iinfo(np.int64).max, np.iinfo(np.int64).min):
        feeds[field][first] = stray
        with pytest.raises(IdError, match="out of range"):
            compiled(name, "error")(feeds)
        near = {**feeds, field: feeds[field].copy()}
        near[field][first] = rows - 1 if stray > 0 else -rows
        expected = run_onnxruntime(graph, near)["y"]
        np.testing.assert_allclose(compiled(name, "clamp")(feeds)["y"], expected, rtol=1e-6)
        zeroed, others = compiled(name, "zero")(feeds)["y"], [0, 2]
        np.testing.assert_allclose(zeroed[others], expected[others], rtol=1e-6)
        assert not np.array_equal(zeroed[1], expected[1])
