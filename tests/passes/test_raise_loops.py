"""Loops whose body is the step of a GRU or LSTM become one op."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.passes.count_steps import CountSteps
from graphopt.passes.dce import Dce
from graphopt.passes.raise_loops import RULE, RaiseLoops
from graphopt.pipeline.base import PassContext
from graphopt.testing import assert_unchanged, parse, run_onnxruntime

LOOP = """(float[N,T,3] x, float[N,4] start) => (float[N,4] last, float[T,N,4] all)
<float[3,12] w, float[4,12] r, float[12] b, float one = {1}, bool yes = {1}, int64 c0 = {0},
 int64 c1 = {1}, int64 c5 = {5}> {
    size = Shape<start=1, end=2>(x) steps = Squeeze(size) turned = Transpose<perm=[1,0,2]>(x)
    some = Less(c0, steps)
    last, count, all = Loop(steps, yes, start, c0) <
        body = g (int64 i, bool c, float[N,4] h, int64 k)
            => (bool on, float[N,4] v, int64 k2, float[N,4] v) {
            k2 = Add(k, c1) on = Identity(c)
            xi = Gather<axis=1>(x, i)
            a = MatMul(xi, w)
            m = MatMul(h, r) d = Add(m, b)
            az, ar, an = Split<axis=1, num_outputs=3>(a)
            dz, dr, dn = Split<axis=1, num_outputs=3>(d)
            pz = Add(az, dz) z = Sigmoid(pz)
            pr = Add(ar, dr) s = Sigmoid(pr)
            q = Mul(s, dn) pn = Add(an, q) n = Tanh(pn)
            u = Sub(one, z) e = Mul(u, n) f = Mul(z, h)
            v = Add(e, f)
        }
    >
}"""


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"Gather<axis=1>(x, i)": "Gather<axis=0>(turned, k)"},
        {"=> (float[N,4] last, float[T,N,4] all)": "=> (float[N,4] last)"},
        {"Loop(steps, yes,": 'Loop("", some,', "on = Identity(c)": "on = Less(k2, steps)"},
    ],
    ids=["all", "by a counter", "last", "while"],
)
def test_it_becomes_an_op(changes: dict[str, str]) -> None:
    text = LOOP
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    source = parse(text)
    graph, ctx = source.clone(), PassContext()
    CountSteps().run(graph, ctx)
    assert RaiseLoops().run(graph, ctx)
    assert ctx.stats.hits[RULE] == 1
    Dce().run(graph, ctx)
    made = "GRU" if " all)" in text.splitlines()[0] else "graphopt::GRU"
    assert [node.op for node in graph.nodes].count(made) == 1
    for rows, steps in ((1, 1), (3, 5)):
        x = np.linspace(-1, 1, rows * steps * 3, dtype=np.float32).reshape(rows, steps, 3)
        feeds = {"x": x, "start": np.linspace(-1, 1, rows * 4, dtype=np.float32).reshape(rows, 4)}
        found = run_onnxruntime(graph, feeds)
        for name, expected in run_onnxruntime(source, feeds).items():
            np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"Loop(steps,": "Loop(c5,"}, "all positions"),
        ({"start, c0)": "start, c1)", "(x, i)": "(x, k)"}, "all positions"),
        ({"=> (float[N,4] last,": "=> (int64 count, float[N,4] last,"}, "more than the states"),
        ({"k2, float[N,4] v)": "k2, float[N,4] n)"}, "not its states"),
        ({"Mul(z, h)": "Mul(z, an)"}, "is not the step"),
        ({"float[N,4] start": "float[1,4] start"}, "is not the step"),
        ({"on = Identity(c)": "t = ReduceMax<keepdims=0>(v) on = Less(t, one)"}, "all positions"),
    ],
)
def test_what_stays_a_loop(changes: dict[str, str], reason: str) -> None:
    text = LOOP
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    if "c5," in changes.get("Loop(steps,", ""):
        text = text.replace("float[T,N,4] all", "float[5,N,4] all")
    assert_unchanged(RaiseLoops(), text, reason)


LSTM = """(float[N,T,3] x, float[N,4] start) => (float[N,4] last, float[N,4] cell, float[T,N,4] all)
<float[3,16] w, float[4,16] r, float[16] b, bool yes = {1}> {
    size = Shape<start=1, end=2>(x) steps = Squeeze(size)
    begin = Neg(start)
    last, cell, all = Loop(steps, yes, start, begin) <
        body = g (int64 i, bool c, float[N,4] h, float[N,4] m)
            => (bool c, float[N,4] v, float[N,4] k, float[N,4] v) {
            xi = Gather<axis=1>(x, i)
            p = Gemm(xi, w, b) q = MatMul(h, r) a = Add(p, q)
            ai, af, ag, ao = Split<axis=1, num_outputs=4>(a)
            si = Sigmoid(ai) sf = Sigmoid(af) tg = Tanh(ag) s = Sigmoid(ao)
            old = Mul(sf, m) new = Mul(si, tg) k = Add(old, new)
            t = Tanh(k) v = Mul(s, t)
        }
    >
}"""


@pytest.mark.parametrize("out", ["", ", float[T,N,4] all"])
def test_an_lstm(out: str) -> None:
    source = parse(LSTM.replace(", float[T,N,4] all", out, 1))
    graph = source.clone()
    assert RaiseLoops().run(graph, PassContext())
    assert "LSTM" in [node.op for node in graph.nodes]
    for rows, steps in ((1, 1), (3, 5)):
        x = np.linspace(-1, 1, rows * steps * 3, dtype=np.float32).reshape(rows, steps, 3)
        feeds = {"x": x, "start": np.linspace(-1, 1, rows * 4, dtype=np.float32).reshape(rows, 4)}
        found = run_onnxruntime(graph, feeds)
        for name, expected in run_onnxruntime(source, feeds).items():
            np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-6)


def test_an_lstm_that_hands_on_something_else() -> None:
    text = LSTM.replace("float[N,4] k, float[N,4] v)", "float[N,4] new, float[N,4] v)")
    assert_unchanged(RaiseLoops(), text, "is not the step")
