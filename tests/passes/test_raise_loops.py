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


def changed(text: str, changes: dict[str, str]) -> str:
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    return text


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
    text = changed(LOOP, changes)
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
    text = changed(LOOP, changes)
    if "c5," in changes.get("Loop(steps,", ""):
        text = text.replace("float[T,N,4] all", "float[5,N,4] all")
    assert_unchanged(RaiseLoops(), text, reason)


MASKED = {
    "float[N,4] start) =>": "float[N,4] start, bool[N,T,1] mask) =>",
    "            v = Add(e, f)": """            n2 = Add(e, f)
            mi = Gather<axis=1>(mask, i)
            v = Where(mi, n2, h)""",
}
MULTIPLIED = """o = Cast<to=1>(mi) no = Not(mi) p = Cast<to=1>(no)
            v1 = Mul(o, n2) v2 = Mul(p, h) v = Add(v1, v2)"""


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"v = Where(mi, n2, h)": MULTIPLIED},
        {"Gather<axis=1>(mask, i)": "Gather(turned_mask, i)",
         "some = Less": "turned_mask = Transpose<perm=[1,0,2]>(mask) some = Less"},
        {"=> (float[N,4] last, float[T,N,4] all)": "=> (float[N,4] last)"},
    ],
    ids=["where", "multiplied", "time first", "last"],
)  # fmt: skip
def test_a_mask_that_holds_the_state(changes: dict[str, str]) -> None:
    source = parse(changed(changed(LOOP, MASKED), changes))
    graph = source.clone()
    assert RaiseLoops().run(graph, PassContext())
    assert "GRU" in {node.op.split("::")[-1] for node in graph.nodes}
    rng = np.random.default_rng(0)
    x, start = rng.normal(size=(3, 5, 3)), rng.normal(size=(3, 4))
    for mask in (rng.random((3, 5, 1)) < 0.5, np.zeros((3, 5, 1), bool)):  # also in between
        feeds = {"x": x.astype(np.float32), "start": start.astype(np.float32), "mask": mask}
        found = run_onnxruntime(graph, feeds)
        for name, expected in run_onnxruntime(source, feeds).items():
            np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"(mask, i)": "(mask, k)", "start, c0)": "start, c1)"}, "all positions"),
        ({"bool[N,T,1] mask": "bool[N,T,4] mask"}, "one flag"),
        ({"bool[N,T,1] mask": "bool[1,T,1] mask"}, "one flag"),
        ({"Where(mi, n2, h)": "Where(mi, h, n2)"}, "is not the step"),
        ({"Where(mi, n2, h)": "Where(mi, n2, f)"}, "is not the step"),
        ({"v = Where(mi, n2, h)": MULTIPLIED.replace("(no)", "(mi)")}, "is not the step"),
        ({"k2, float[N,4] v)": "k2, float[N,4] n2)"}, "not its states"),
    ],
)
def test_a_masked_loop_that_stays(changes: dict[str, str], reason: str) -> None:
    assert_unchanged(RaiseLoops(), changed(changed(LOOP, MASKED), changes), reason)


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
