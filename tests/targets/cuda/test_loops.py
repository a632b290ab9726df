"""Loops and branches that data decides, launched by the host, against ONNX Runtime."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import gpu_emulator
import numpy as np
import pytest
from loop_models import (
    BRANCHES,
    COUNTED,
    NESTED,
    PAIR,
    PLACES,
    REFUSED,
    SCAN,
    UNTIL,
    assert_found,
    ramp,
    stacking,
)

import graphopt
from graphopt.errors import UnsupportedOpError
from graphopt.targets.relax.ops import control
from graphopt.testing import parse, run_onnxruntime

from .conftest import THOROUGH, Runner, assert_close

Feeds = dict[str, np.ndarray]
PLAIN = gpu_emulator.Mode(races=True)  # programs are straight lines, in memory that is planned


def agree(run_model: Runner, text: str, feeds: Sequence[Feeds]) -> None:
    graph = parse(text)
    wanted = [run_onnxruntime(graph, feed) for feed in feeds]
    for mode in (PLAIN, THOROUGH):
        for found, expected in zip(run_model(graph, *feeds, mode=mode), wanted, strict=True):
            assert_found(found, expected)


def sequences(*steps: int) -> list[Feeds]:
    """Of which a branch on the sign of the mean takes either side."""
    pairs = itertools.product(zip((1, 7, 64), itertools.cycle((1, -1))), steps)
    return [{"x": ramp(n, t, 2) + sign * 2} for (n, sign), t in pairs]


@pytest.mark.parametrize("backwards", [0, 1])
def test_scan_over_a_symbolic_length(run_model: Runner, backwards: int) -> None:
    axes = "scan_input_axes=[1], scan_output_axes=[1]"
    axes += f", scan_input_directions=[{backwards}], scan_output_directions=[{backwards}]"
    agree(run_model, SCAN.replace("AXES", axes), sequences(1, 3))  # ONNX Runtime fails at no steps


def test_loops_and_branches_hold_one_another(run_model: Runner) -> None:
    agree(run_model, NESTED, sequences(0, 1, 4))


def test_states_that_change_places(run_model: Runner) -> None:
    agree(
        run_model,
        PLACES,
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
    flags = (np.array(flag) for flag in (True, False))
    agree(run_model, BRANCHES, [{"c": c, "x": ramp(n, 4)} for c in flags for n in (1, 7, 64)])


def test_sequences_of_different_length(run_model: Runner) -> None:
    agree(run_model, PAIR, [{"x": ramp(3, 2), "y": ramp(3, 2)[::-1].copy()}])
    for mode in (PLAIN, THOROUGH):
        with pytest.raises(gpu_emulator.LaunchError, match=r"^InputError: .*differ in length"):
            run_model(parse(PAIR), {"x": ramp(3, 2), "y": ramp(4, 2)}, mode=mode)


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
    REFUSED,
)
def test_loops_that_are_refused(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(UnsupportedOpError, match=reason) as caught:
        graphopt.compile(parse(text), "cuda", output=tmp_path / "m.gopt", passes="O0", verify=False)
    assert caught.value.op == "Loop" and "\n" not in str(caught.value)
