"""Loops that run, and branches in them, against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from graphopt.errors import UnsupportedOpError
from graphopt.testing import Compiled, parse, run_onnxruntime

STEPS = (0, 1, 2, 7)


def ramp(*shape: int) -> np.ndarray:
    return np.linspace(-1, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape)


def agree(text: str, feeds: Iterator[dict[str, np.ndarray]]) -> None:
    """Of a result without rows ONNX Runtime says the other sizes are 0 too; nobody else does."""
    graph = parse(text)
    compiled = Compiled(graph)
    for feed in feeds:
        expected, found = run_onnxruntime(graph, feed), compiled(feed)
        for name, array in expected.items():
            assert found[name].dtype == array.dtype
            assert found[name].size == array.size
            if array.size:
                np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-6)


def sequences(*steps: int) -> Iterator[dict[str, np.ndarray]]:
    return ({"x": ramp(n, t, 2) + o} for n in (1, 3) for t in steps for o in (-2, 2))


SCAN = """g (float[N,T,2] x) => (float[N,2] last, float[N,T,2] all)
<float[2,2] w, int64[1] axis = {1}> {
    start = ReduceSum<keepdims=0>(x, axis)
    last, all = Scan <num_scan_inputs=1, AXES, body = b (float[N,2] s, float[N,2] v)
        => (float[N,2] t, float[N,2] o) { a = MatMul(s, w) t = Add(a, v) o = Mul(t, v) }> (start, x)
}"""


@pytest.mark.parametrize("backwards", [0, 1])
def test_scan_over_a_symbolic_length(backwards: int) -> None:
    axes = "scan_input_axes=[1], scan_output_axes=[1]"
    axes += f", scan_input_directions=[{backwards}], scan_output_directions=[{backwards}]"
    agree(SCAN.replace("AXES", axes), sequences(1, 2, 7))  # ONNX Runtime fails at no steps


def test_scan_of_no_steps() -> None:
    axes = "scan_input_axes=[1], scan_output_axes=[1]"
    found = Compiled(parse(SCAN.replace("AXES", axes)))({"x": ramp(3, 0, 2)})
    np.testing.assert_array_equal(found["last"], np.zeros((3, 2)))
    assert found["all"].shape == (3, 0, 2)


def test_scans_of_several_sequences_of_one_length() -> None:
    text = """g (float[T,2] x, float[U,2] y) => (float[T,2] z) {
        z = Scan <num_scan_inputs=2, body = b (float[2] u, float[2] v)
            => (float[2] w) { w = Sub(u, v) }> (x, y)
    }"""
    compiled = Compiled(parse(text))
    x, y = ramp(3, 2), ramp(3, 2)[::-1].copy()
    np.testing.assert_array_equal(compiled({"x": x, "y": y})["z"], x - y)
    with pytest.raises(Exception, match="scanned together differ in length"):
        compiled({"x": x, "y": ramp(4, 2)})


LOOP = """g (float[N,T,2] x) => (float[N,2] last, float[T,N,2] all)
<float[2,2] w, float zero = {0}, int64[1] axis = {1}, bool go = {1}> {
    start = ReduceSum<keepdims=0>(x, axis)
    shape = Shape<start=1, end=2>(x) steps = Squeeze(shape)
    last, all = Loop <body = b (int64 i, bool c, float[N,2] s)
        => (bool d, float[N,2] t, float[N,2] o)
        { d = Identity(c) v = Gather<axis=1>(x, i) BODY o = Mul(t, v) }> (steps, go, start)
}"""


def test_loop_over_a_symbolic_length() -> None:
    agree(LOOP.replace("BODY", "a = MatMul(s, w) t = Add(a, v)"), sequences(*STEPS))


def test_loops_and_branches_hold_one_another() -> None:
    body = """
        r = Loop <body = e (int64 j, bool f, float[N,2] p) => (bool h, float[N,2] q)
            { h = Identity(f) k = MatMul(p, w) q = Add(k, v) }> (steps, go, s)
        m = ReduceMean<keepdims=0>(r) above = Greater(m, zero)
        t = If (above) <
            then_branch = yes () => (float[N,2] y) { y1 = MatMul(r, w) y = Neg(y1) },
            else_branch = no () => (float[N,2] z) { z = Tanh(r) }>
    """
    agree(LOOP.replace("BODY", body), sequences(*STEPS))


def test_states_that_change_places() -> None:
    agree(
        """g (float[N,T,2] x) => (float[N,2] p, float[N,2] q, float[N,2] r)
        <int64[1] axis = {1}, bool go = {1}> {
            s = ReduceSum<keepdims=0>(x, axis) s2 = Neg(s)
            shape = Shape<start=1, end=2>(x) steps = Squeeze(shape)
            p, q, r = Loop <body = b (int64 i, bool c, float[N,2] u, float[N,2] v, float[N,2] w)
                => (bool d, float[N,2] v2, float[N,2] u2, float[N,2] w)
                { d = Identity(c) y = Gather<axis=1>(x, i) z = Add(y, u) u2 = Add(z, w)
                  v2 = Identity(v) }> (steps, go, s, s2, s)
        }""",
        sequences(*STEPS),
    )


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


def counts() -> Iterator[dict[str, np.ndarray]]:
    for rows in (1, 3):
        for n in (-1, 0, 1, 2, 6):
            for go in (True, False):
                yield {"n": np.array(n), "go": np.array(go), "x": ramp(rows, 2)}


@pytest.mark.parametrize("trips", ["n", ""])
@pytest.mark.parametrize("condition", ["d = Identity(c)", UNTIL])
def test_loops_that_run_time_values_end(condition: str, trips: str) -> None:
    text = COUNTED.replace("CONDITION", condition).replace("TRIPS", trips)
    if trips:
        agree(text, counts())
        agree(stacking(text), counts())
    elif condition is UNTIL:
        agree(text, counts())


@pytest.mark.parametrize("flag", [True, False])
def test_branches_are_one_kernel_of_a_straight_program(flag: bool) -> None:
    text = """g (bool c, float[N,4] x) => (float[N,4] y, float[N,4] z) <float[4,4] w> {
        y, z = If (c) <
            then_branch = t () => (float[N,4] a, float[N,4] b) { a = MatMul(x, w) b = Neg(a) },
            else_branch = e () => (float[N,4] p, float[N,4] p) { p = Identity(x) }>
    }"""
    agree(text, ({"c": np.array(flag), "x": ramp(n, 4)} for n in (1, 3)))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
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
    ],
)
def test_loops_that_are_refused(text: str, reason: str) -> None:
    with pytest.raises(UnsupportedOpError, match=reason) as caught:
        Compiled(parse(text))
    assert caught.value.op == "Loop"
