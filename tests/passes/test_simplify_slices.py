"""Slices merge where that takes the same elements for every batch."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.passes.simplify_slices import SimplifySlices
from graphopt.testing import (
    assert_keeps_outputs,
    assert_rewrites,
    assert_unchanged,
    dump,
    parse,
    random_inputs,
    run_onnxruntime,
)

MAX = 2**63 - 1


def sliced(*bounds: tuple[int, int, int], shape: str = "N,8", step: int | None = None) -> str:
    """A chain of slices, each `(start, end, axis)`."""
    weights, steps = [], []
    for k, (start, end, axis) in enumerate(bounds):
        weights += [f"int64[1] s{k} = {{{start}}}", f"int64[1] e{k} = {{{end}}}"]
        weights += [f"int64[1] a{k} = {{{axis}}}", f"int64[1] p{k} = {{{step}}}"][
            : 2 if step else 1
        ]
        operands = f"s{k}, e{k}, a{k}" + (f", p{k}" if step else "")
        steps.append(f"v{k + 1} = Slice(v{k}, {operands})")
    declared = f"<{', '.join(weights)}>" if weights else ""
    body = " ".join(steps)
    return (
        f"(float[{shape}] x) => (float[] y) {declared} "
        f"{{ v0 = Relu(x) {body} y = Neg(v{len(bounds)}) }}"
    )


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ([(0, 8, 1)], []),
        ([(0, MAX, 0)], []),
        ([(-8, 2**31 - 1, 1)], []),
        ([(0, 100, 1)], []),
        ([(2, 6, 1), (1, 3, 1)], [(3, 5, 1)]),
        ([(2, MAX, 0), (1, MAX, 0)], [(3, MAX, 0)]),
        ([(1, 9, 0), (2, 100, 0)], [(3, 9, 0)]),
        ([(0, -1, 1)], [(0, 7, 1)]),
        ([(2, 6, -1)], [(2, 6, 1)]),
        ([(1, -2, 0), (1, MAX, 0)], [(2, -2, 0)]),
        ([(5, 2, 1)], [(5, 5, 1)]),
    ],
)
def test_slices_merge(given: list[tuple[int, int, int]], left: list[tuple[int, int, int]]) -> None:
    for batch in (1, 3, 12):
        assert_rewrites(SimplifySlices(), sliced(*given), sliced(*left), sizes={"N": batch})


@pytest.mark.parametrize(
    "bounds",
    [
        [(0, -1, 0), (0, -1, 0)],
        [(-3, MAX, 0), (1, MAX, 0)],
        [(1, MAX, 0), (-1, MAX, 0)],
        [(1, MAX, 0), (0, -1, 0)],
        [(0, -1, 0), (0, 2, 0)],
    ],
)
def test_slices_counted_from_an_unknown_end_stay(bounds: list[tuple[int, int, int]]) -> None:
    assert_unchanged(SimplifySlices(), sliced(*bounds), "axis of unknown size")


def test_slices_of_two_axes_become_one() -> None:
    both = """(float[N,8] x) => (float[] y)
    <int64[2] s = {1, 2}, int64[2] e = {3, 6}, int64[2] a = {0, 1}> {
        v0 = Relu(x)
        v = Slice(v0, s, e, a)
        y = Neg(v)
    }"""
    assert_rewrites(SimplifySlices(), sliced((2, 6, 1), (1, 3, 0)), both)


def test_steps_stay() -> None:
    assert_unchanged(SimplifySlices(), sliced((0, 8, 1), step=2), "not 1")
    assert_rewrites(SimplifySlices(), sliced((1, 5, 1), step=1), sliced((1, 5, 1)))


def test_bounds_known_at_run_time_only_stay() -> None:
    text = "(float[N,8] x, int64[1] s, int64[1] e) => (float[] y) { h = Slice(x, s, e) y = Neg(h) }"
    assert_unchanged(SimplifySlices(), text, "not constants")


def test_a_slice_that_others_read_stays_for_them() -> None:
    text = """(float[N,8] x) => (float[N,4] h, float[N,2] y)
    <int64[1] s = {2}, int64[1] e = {6}, int64[1] t = {1}, int64[1] f = {3}, int64[1] a = {1}> {
        h = Slice(x, s, e, a)
        g = Slice(h, t, f, a)
        y = Neg(g)
    }"""
    graph = parse(text)
    assert_keeps_outputs(SimplifySlices(), graph)
    assert [node.inputs[0] for node in graph.nodes][:2] == [graph.inputs[0]] * 2


@pytest.mark.parametrize(
    ("indices", "bounds"),
    [("2, 3, 4", (2, 5, 1)), ("-2, -1", (6, 8, 1)), ("5", (5, 6, 1))],
)
def test_neighbouring_columns_are_a_slice(indices: str, bounds: tuple[int, int, int]) -> None:
    count = indices.count(",") + 1
    text = f"""(float[N,8] x) => (float[] y) <int64[{count}] i = {{{indices}}}> {{
        v0 = Relu(x)
        h = Gather<axis=1>(v0, i)
        y = Neg(h)
    }}"""
    assert_rewrites(SimplifySlices(), text, sliced(bounds))


@pytest.mark.parametrize(
    ("indices", "axis", "reason"),
    [
        ("0, 2", 1, "not consecutive"),
        ("1, 0", 1, "not consecutive"),
        ("7, 8", 1, "out of range"),
        ("0, 1", 0, "out of range"),
    ],
)
def test_other_columns_stay(indices: str, axis: int, reason: str) -> None:
    text = f"""(float[N,8] x) => (float[] y) <int64[2] i = {{{indices}}}> {{
        h = Gather<axis={axis}>(x, i)
        y = Neg(h)
    }}"""
    assert_unchanged(SimplifySlices(), text, reason)


def test_a_column_without_its_axis_is_a_gather() -> None:
    text = """(float[N,8] x) => (float[N] y)
    <int64[1] s = {3}, int64[1] e = {4}, int64[1] a = {1}, int64[1] flat = {-1}> {
        h = Slice(x, s, e, a)
        g = Reshape(h, flat)
        y = Neg(g)
    }"""
    after = "(float[N,8] x) => (float[N] y) <int64 i = {3}> { g = Gather<axis=1>(x, i) y = Neg(g) }"
    assert_rewrites(SimplifySlices(), text, after)
    assert_unchanged(SimplifySlices(), text.replace("{4}", "{6}"), "not known to take one element")
    assert_unchanged(
        SimplifySlices(), text.replace("[1] flat = {-1}", "[2] flat = {1, -1}"), "does more"
    )


def test_split_into_one_and_pad_by_nothing() -> None:
    before = """(float[N,8] x) => (float[N,8] y)
    <int64[1] all = {8}, int64[4] pads = {0, 0, 0, 0}> {
        a = Split<axis=1>(x, all)
        b = Pad(a, pads)
        y = Neg(b)
    }"""
    assert_rewrites(SimplifySlices(), before, "(float[N,8] x) => (float[N,8] y) { y = Neg(x) }")
    assert_unchanged(
        SimplifySlices(),
        "(float[N,8] x) => (float[] y) <int64[4] p = {0, 1, 0, 0}> { h = Pad(x, p) y = Neg(h) }",
        "it pads",
    )


def test_known_bounds_become_constants_whatever_computed_them() -> None:
    graph = parse("""(float[N,8] x) => (float[N,4] y) <int64[1] two = {2}, int64[1] a = {1}> {
        s = Shape<start=1>(x)
        half = Div(s, two)
        h = Slice(x, half, s, a)
        y = Neg(h)
    }""")
    feeds = random_inputs(graph)
    wanted = run_onnxruntime(graph, feeds)["y"]
    np.testing.assert_array_equal(wanted, -feeds["x"][:, 4:])
    assert_keeps_outputs(SimplifySlices(), graph)
    assert "Slice(%x, [4], [8], [1])" in dump(graph)


@pytest.mark.parametrize("index", ["constant", "input"])
def test_rows_taken_by_gather_nd_are_a_gather(index: str) -> None:
    """As the dynamo exporter writes `x[positions]`."""
    text = """(float[5,3] x, int64[N,2,1] ids) => (float[] y) <int64[2,2,1] known = {4, -1, 0, 2}> {
        h = GatherND(x, INDEX)
        y = Neg(h)
    }""".replace("INDEX", "known" if index == "constant" else "ids")
    assert_keeps_outputs(SimplifySlices(), graph := parse(text))
    assert [node.op for node in graph.nodes if node.op != "Reshape"] == ["Gather", "Neg"]


@pytest.mark.parametrize(
    "text",
    [
        """(float[5,3] x) => (float[] y) <int64[2,2] i = {4, 1, 0, 2}> {
            h = GatherND(x, i) y = Neg(h) }""",
        """(float[2,3] x) => (float[] y) <int64[2,1] i = {2, 1}> {
            h = GatherND<batch_dims=1>(x, i) y = Neg(h) }""",
    ],
)
def test_other_elements_taken_by_gather_nd_stay(text: str) -> None:
    assert_unchanged(SimplifySlices(), text, "several axes")
