"""Loops and branches that data decides, launched by the host, against ONNX Runtime."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import gpu_emulator
import numpy as np
import pytest

import graphopt
from graphopt.errors import UnsupportedOpError
from graphopt.targets.relax.ops import control
from graphopt.testing import parse, run_onnxruntime

from .conftest import THOROUGH, Runner, assert_close

Feeds = dict[str, np.ndarray]
PLAIN = gpu_emulator.Mode(races=True)  # programs are straight lines, in memory that is planned


def ramp(*shape: int) -> np.ndarray:
    return np.linspace(-1, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape)


def agree(run_model: Runner, text: str, feeds: Sequence[Feeds]) -> None:
    """Of a result without rows ONNX Runtime says the other sizes are 0 too; nobody else does."""
    graph = parse(text)
    wanted = [run_onnxruntime(graph, feed) for feed in feeds]
    for mode in (PLAIN, THOROUGH):
        for found, expected in zip(run_model(graph, *feeds, mode=mode), wanted, strict=True):
            for name, array in expected.items():
                assert found[name].dtype == array.dtype
                assert found[name].size == array.size
                if array.size:
                    np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-6)


def sequences(*steps: int) -> list[Feeds]:
    """Of which a branch on the sign of the mean takes either side."""
    pairs = itertools.product(zip((1, 7, 64), itertools.cycle((1, -1))), steps)
    return [{"x": ramp(n, t, 2) + sign * 2} for (n, sign), t in pairs]


SCAN = """g (float[N,T,2] x) => (float[N,2] last, float[N,T,2] all)
<float[2,2] w, int64[1] axis = {1}> {
    start = ReduceSum<keepdims=0>(x, axis)
    last, all = Scan <num_scan_inputs=1, AXES, body = b (float[N,2] s, float[N,2] v)
        => (float[N,2] t, float[N,2] o) { a = MatMul(s, w) t = Add(a, v) o = Mul(t, v) }> (start, x)
}"""


@pytest.mark.parametrize("backwards", [0, 1])
def test_scan_over_a_symbolic_length(run_model: Runner, backwards: int) -> None:
    axes = "scan_input_axes=[1], scan_output_axes=[1]"
    axes += f", scan_input_directions=[{backwards}], scan_output_directions=[{backwards}]"
    agree(run_model, SCAN.replace("AXES", axes), sequences(1, 3))  # ONNX Runtime fails at no steps


LOOP = """g (float[N,T,2] x) => (float[N,2] last, float[T,N,2] all)
<float[2,2] w, float zero = {0}, int64[1] axis = {1}, bool go = {1}> {
    start = ReduceSum<keepdims=0>(x, axis)
    shape = Shape<start=1, end=2>(x) steps = Squeeze(shape)
    last, all = Loop <body = b (int64 i, bool c, float[N,2] s)
        => (bool d, float[N,2] t, float[N,2] o)
        { d = Identity(c) v = Gather<axis=1>(x, i) BODY o = Mul(t, v) }> (steps, go, start)
}"""


def test_loops_and_branches_hold_one_another(run_model: Runner) -> None:
    body = """
        r = Loop <body = e (int64 j, bool f, float[N,2] p) => (bool h, float[N,2] q)
            { h = Identity(f) k = MatMul(p, w) q = Add(k, v) }> (steps, go, s)
        m = ReduceMean<keepdims=0>(r) above = Greater(m, zero)
        t = If (above) <
            then_branch = yes () => (float[N,2] y) { y1 = MatMul(r, w) y = Neg(y1) },
            else_branch = no () => (float[N,2] z) { z = Tanh(r) }>
    """
    agree(run_model, LOOP.replace("BODY", body), sequences(0, 1, 4))


def test_states_that_change_places(run_model: Runner) -> None:
    agree(
        run_model,
        """g (float[N,T,2] x) => (float[N,2] p, float[N,2] q, float[N,2] r)
        <int64[1] axis = {1}, bool go = {1}> {
            s = ReduceSum<keepdims=0>(x, axis) s2 = Neg(s)
            shape = Shape<start=1, end=2>(x) steps = Squeeze(shape)
            p, q, r = Loop <body = b (int64 i, bool c, float[N,2] u, float[N,2] v, float[N,2] w)
                => (bool d, float[N,2] v2, float[N,2] u2, float[N,2] w)
                { d = Identity(c) y = Gather<axis=1>(x, i) z = Add(y, u) u2 = Add(z, w)
                  v2 = Identity(v) }> (steps, go, s, s2, s)
        }""",
        sequences(0, 1, 2, 3),
    )


GRU = """g (float[N,T,5] x, float[N,5] context)
    => (float[N,5] last, float[N,T,5] all, float[N,T,3] odd)
<float[5,10] wg, float[5,10] ug, float[10] bg, float[5,5] w, float[5,5] u, float[5,3] h,
    float one = {1}, int64[1] second = {1}, int64[1] third = {2}> {
    zero = Sub(context, context) asked = Softmax(context)
    last, all, odd = Scan <num_scan_inputs=1, scan_input_axes=[1], scan_output_axes=[1, 1],
        body = b (float[N,5] s, float[N,5] v) => (float[N,5] t, float[N,5] o, float[N,3] d) {
            a = MatMul(v, wg) b = MatMul(s, ug) ab = Add(a, b) abc = Add(ab, bg)
            gates = Sigmoid(abc) r, z = Split<axis=1, num_outputs=2>(gates)
            rs = Mul(r, s) n = Softmax(v) p = MatMul(n, w) q = MatMul(rs, u) pq = Add(p, q)
            c = Tanh(pq) k = Sub(one, z) kc = Mul(k, c) zs = Mul(z, s) t = Add(kc, zs)
            row = Unsqueeze(v, second) column = Unsqueeze(t, third) like = MatMul(row, column)
            alike = Squeeze(like, third) ow = Mul(t, asked) o = Add(ow, alike)
            d = MatMul(t, h) }> (zero, x)
}"""


def test_a_cell_by_hand(run_model: Runner) -> None:
    sizes = ((1, 4), (7, 1), (64, 2), (7, 3))
    agree(run_model, GRU, [{"x": ramp(n, t, 5), "context": ramp(n, 5)} for n, t in sizes])


def test_layers_of_rows_that_begin_anywhere(run_model: Runner) -> None:
    """Tiles copy 16 bytes at once, from where a multiple of these begins."""
    feed, graph = {"x": ramp(71, 2, 5), "context": ramp(71, 5)}, parse(GRU)
    found = run_model(graph, feed, mode=PLAIN, precision="tf32")  # 11 bits
    assert_close(found, [run_onnxruntime(graph, feed)], rtol=1e-2, atol=2e-3)


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


def counts() -> list[Feeds]:
    return [
        {"n": np.array(n), "go": np.array(go), "x": ramp(rows, 2)}
        for rows in (1, 7)
        for n in (-1, 0, 1, 6)
        for go in (True, False)
    ]


@pytest.mark.parametrize("condition", ["d = Identity(c)", UNTIL])
def test_loops_that_run_time_values_end(run_model: Runner, condition: str) -> None:
    text = COUNTED.replace("CONDITION", condition)
    agree(run_model, text.replace("TRIPS", "n"), counts())
    agree(run_model, stacking(text.replace("TRIPS", "n")), counts())
    if condition is UNTIL:
        agree(run_model, text.replace("TRIPS", ""), counts())


def test_branches(run_model: Runner) -> None:
    text = """g (bool c, float[N,4] x) => (float[N,4] y, float[N,4] z) <float[4,4] w> {
        y, z = If (c) <
            then_branch = t () => (float[N,4] a, float[N,4] b) { a = MatMul(x, w) b = Neg(a) },
            else_branch = e () => (float[N,4] p, float[N,4] p) { p = Identity(x) }>
    }"""
    flags = (np.array(flag) for flag in (True, False))
    agree(run_model, text, [{"c": c, "x": ramp(n, 4)} for c in flags for n in (1, 7, 64)])


def test_sequences_of_different_length(run_model: Runner) -> None:
    text = """g (float[T,2] x, float[U,2] y) => (float[T,2] z) {
        z = Scan <num_scan_inputs=2, body = b (float[2] u, float[2] v)
            => (float[2] w) { w = Sub(u, v) }> (x, y)
    }"""
    agree(run_model, text, [{"x": ramp(3, 2), "y": ramp(3, 2)[::-1].copy()}])
    for mode in (PLAIN, THOROUGH):
        with pytest.raises(gpu_emulator.LaunchError, match=r"^InputError: .*differ in length"):
            run_model(parse(text), {"x": ramp(3, 2), "y": ramp(4, 2)}, mode=mode)


LOOKUPS = """g (int64[T,N] ids, bool c) => (float[N,3] last, float[T,N,3] rows)
<bool go = {1}, float[5,3] table, float[N,3] zeros> {
    shape = Shape<end=1>(ids) steps = Squeeze(shape) size = Shape<start=1, end=2>(ids)
    three = Constant<value_ints=[3]>() both = Concat<axis=0>(size, three)
    start = ConstantOfShape(both)
    last, rows = Loop <body = b (int64 i, bool g, float[N,3] s)
        => (bool d, float[N,3] t, float[N,3] r) {
            d = Identity(g) own = Gather<axis=0>(ids, i)
            r = If (c) <
                then_branch = yes () => (float[N,3] y) { y = Gather<axis=0>(table, own) },
                else_branch = no () => (float[N,3] z) { z = Identity(s) }>
            t = Add(s, r) }> (steps, go, start)
}"""


def test_ids_in_a_body_are_checked_in_every_step(run_model: Runner) -> None:
    text = LOOKUPS.replace(", float[N,3] zeros", "")
    good = np.arange(21).reshape(3, 7) % 5
    bad = np.where(np.arange(3)[:, None] == 1, 9, good)  # in neither the first nor the last step
    feeds = [{"ids": ids, "c": np.array(c)} for ids, c in ((good, True), (good, False))]
    agree(run_model, text, feeds)
    for mode in (PLAIN, THOROUGH):
        run_model(parse(text), {"ids": bad, "c": np.array(False)}, mode=mode)  # nobody reads them
        with pytest.raises(gpu_emulator.LaunchError, match=r"^IdError: .*Gather"):
            run_model(parse(text), {"ids": bad, "c": np.array(True)}, mode=mode)


def test_ids_in_branches_of_different_size_are_checked(run_model: Runner) -> None:
    """Those of the branch that is taken, computed there or not."""
    text = """g (int64[N] ids, bool c) => (float[M,3] y) <float[5,3] table, int64 two = {2}> {
        y = If (c) <
            then_branch = yes () => (float[N,3] a) { a = Gather<axis=0>(table, ids) },
            else_branch = no () => (float[K,3] b) {
                half = Div(ids, two) d = Gather<axis=0>(table, half) b = Concat<axis=0>(d, d) }>
    }"""
    feeds = [{"ids": np.arange(4), "c": np.array(c)} for c in (True, False)]
    agree(run_model, text, [*feeds, {"ids": np.array([1, 9, 2]), "c": np.array(False)}])
    for ids, flag in (([1, 9, 2], True), ([1, 10, 2], False)):
        with pytest.raises(gpu_emulator.LaunchError, match=r"^IdError: .*Gather"):
            run_model(parse(text), {"ids": np.array(ids), "c": np.array(flag)})


KNOWN = """g (float[N,2] x) => (float[N,2] last, float[6,N,2] all)
<int64 trip = {6}, bool go = {1}> {
    last, all = Loop <body = b (int64 i, bool c, float[N,2] s)
        => (bool d, float[N,2] t, float[N,2] o)
        { d = Identity(c) k = Cast<to=1>(i) t = Add(s, k) o = Mul(t, x) }> (trip, go, x)
}"""


@pytest.mark.parametrize("most", [0, control.MAX_OPS])
def test_a_known_number_of_steps(
    run_model: Runner, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(control, "MAX_OPS", most)
    agree(run_model, KNOWN, [{"x": ramp(n, 2)} for n in (1, 7)])
    axes = "scan_input_axes=[1], scan_output_axes=[1], scan_output_directions=[1]"
    scan = SCAN.replace("AXES", axes).replace("T,2]", "3,2]")
    agree(run_model, scan, [{"x": ramp(n, 3, 2)} for n in (1, 7)])


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
def test_loops_that_are_refused(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(UnsupportedOpError, match=reason) as caught:
        graphopt.compile(parse(text), "cuda", output=tmp_path / "m.gopt", passes="O0", verify=False)
    assert caught.value.op == "Loop" and "\n" not in str(caught.value)
