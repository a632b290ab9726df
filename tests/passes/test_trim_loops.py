"""Loops carry neither what no step changes nor anything twice."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.passes.trim_loops import TrimLoops
from graphopt.pipeline.base import PassContext
from graphopt.testing import Compiled, assert_unchanged, parse, run_onnxruntime

HEAD = """(float[N,2] x, float[2,2] w, int64 n) => (float[N,2] y, float[N,2] z)
<bool yes = {1}, float two = {2}, int64[1] first = {0}> {"""
LOOP = (
    HEAD
    + """
    y, z = Loop(n, yes, STARTS) <
        body = b (int64 i, bool c, float[N,2] p, float[N,2] q)
            => (bool c, float[N,2] p2, float[N,2] q2) { STEP }
    >
}"""
)
WEIGHTS = (
    HEAD
    + """
    y, same = Loop(n, yes, x, w) <
        body = b (int64 i, bool c, float[N,2] p, float[2,2] k)
            => (bool c, float[N,2] v, float[2,2] k) { v = MatMul(p, k) }
    >
    z = MatMul(y, same)
}"""
)
SCAN = """(float[T,N,2] s, float[2,2] w, float[N,2] x) => (float[N,2] y, float[T,N,2] z) {
    y, same, z = Scan(x, w, s) <
        num_scan_inputs = 1, body = b (float[N,2] p, float[2,2] k, float[N,2] row)
            => (float[N,2] v, float[2,2] k, float[N,2] v) { m = MatMul(p, k) v = Add(m, row) }
    >
}"""
STOPS = (
    HEAD
    + """
    total = ReduceSum<keepdims=0>(x) some = Less(total, two)
    y, same, z2 = Loop(n, some, x, w, x) <
        body = b (int64 i, bool c, float[N,2] p, float[2,2] k, float[N,2] q)
            => (bool on, float[N,2] v, float[2,2] k, float[N,2] u) {
            v = MatMul(p, k) u = MatMul(q, k) t = ReduceSum<keepdims=0>(v) on = Less(t, two)
        }
    >
    z = MatMul(z2, same)
}"""
)
HANDED_OVER = (
    HEAD
    + """
    y, same, rows = Loop(n, yes, x, x) <
        body = b (int64 i, bool c, float[N,2] p, float[N,2] q)
            => (bool c, float[N,2] q, float[N,2] q, float[N,2] q) { }
    >
    z = ReduceSum<keepdims=0>(rows, first)
}"""
)
NESTED = (
    HEAD
    + """
    y, same = Loop(n, yes, x, w) <
        body = b (int64 i, bool c, float[N,2] p, float[2,2] k)
            => (bool c, float[N,2] v, float[2,2] k) {
            v, k2 = Loop(n, yes, p, k) <
                body = d (int64 j, bool e, float[N,2] r, float[2,2] m)
                    => (bool e, float[N,2] o, float[2,2] m) { o = MatMul(r, m) }
            >
        }
    >
    z = MatMul(y, same)
}"""
)


def two(step: str, starts: str = "x, x") -> str:
    return LOOP.replace("STARTS", starts).replace("STEP", step)


@pytest.mark.parametrize(
    ("text", "fewest"),
    [
        (WEIGHTS, 0),
        (SCAN, 1),
        (STOPS, 0),
        (NESTED, 0),
        (HANDED_OVER, 1),
        (two("a = Mul(p, two) p2 = Sin(a) b = Mul(two, q) q2 = Sin(b)"), 0),
        (two("p2 = Sin(q) q2 = Sin(p)"), 0),
        (two("q2 = Sin(p)").replace("float[N,2] p2,", "float[N,2] p,"), 0),
    ],
    ids=["weights", "scan", "stops", "nested", "handed over", "twice", "crossed", "one of two"],
)
def test_what_goes(text: str, fewest: int) -> None:
    """Without steps ONNX Runtime stacks no rows of no samples, or refuses to."""
    source = parse(text)
    graph = source.clone()
    assert TrimLoops().run(graph, PassContext())
    while TrimLoops().run(graph, PassContext()):
        pass  # the loops in a loop that is replaced come next
    for node in graph.walk():
        if node.op in ("Loop", "Scan"):
            assert len(node.inputs) - 1 - (node.op == "Loop") == 1
    compiled = Compiled(graph)
    w = np.array([[0.5, -0.25], [1, 0.75]], np.float32)
    for rows, steps in ((1, fewest), (2, 1), (3, 4)):
        x = np.linspace(-1, 1.5, rows * 2, dtype=np.float32).reshape(rows, 2)
        feeds = {"x": x, "w": w, "n": np.array(steps)}
        feeds["s"] = np.linspace(-1, 1, steps * rows * 2, dtype=np.float32).reshape(steps, rows, 2)
        feeds = {value.name: feeds[value.name] for value in source.inputs}
        expected = run_onnxruntime(source, feeds)
        for got in (run_onnxruntime(graph, feeds), compiled(feeds)):
            for name, array in expected.items():
                np.testing.assert_allclose(got[name], array, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("step", "starts"),
    [
        ("p2 = Sin(p) q2 = Sin(q)", "x, other"),
        ("p2 = Sin(p) q2 = Cos(q)", "x, x"),
        ("p2 = Sin(p) q2 = Sin(p2)", "x, x"),
        ("p2 = Sub(p, two) q2 = Sub(two, q)", "x, x"),
        ("r = RandomNormalLike(p) p2 = Add(p, r) s = RandomNormalLike(q) q2 = Add(q, s)", "x, x"),
        ("p2 = Sin(q) q2 = Cos(p)", "x, x"),
    ],
    ids=["starts", "ops", "a step apart", "operands", "random", "crossed"],
)
def test_what_stays(step: str, starts: str) -> None:
    text = two(step, starts).replace("y, z = Loop", "other = Neg(x) y, z = Loop")
    assert_unchanged(TrimLoops(), text)


def test_three_that_part_one_after_the_other() -> None:
    """p and q are equal as long as they are given equal values, which r ends after a step."""
    assert_unchanged(
        TrimLoops(),
        HEAD
        + """
        y, z, more = Loop(n, yes, x, x, x) <
            body = b (int64 i, bool c, float[N,2] p, float[N,2] q, float[N,2] r)
                => (bool c, float[N,2] p2, float[N,2] q2, float[N,2] r2) {
                p2 = Sin(p) q2 = Sin(r) r2 = Cos(r)
            }
        >
        }""",
    )
