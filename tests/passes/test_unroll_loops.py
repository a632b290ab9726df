"""Loops are written out where every iteration is known to run."""

from __future__ import annotations

import pytest

from graphopt.passes.unroll_loops import UnrollLoops
from graphopt.passes.unroll_scans import UnrollScans
from graphopt.pipeline.base import PassContext
from graphopt.testing import (
    assert_keeps_outputs,
    assert_unchanged,
    dump,
    parse,
)

LOOP = """(float[N,4] x, int64 n, bool flag) => (float[] y, float[] rows)
    <int64 trips = {{{trips}}}, int64 one = {{1}}, int64 limit = {{5}}, float flimit = {{3}},
     bool yes = {{1}}, bool no = {{0}}, int64 zero = {{0}}> {{
    y, rows = Loop({operands}, x) <
        body = b (int64 i, bool c, float[N,4] u) => (bool c2, float[N,4] v, float[N,4] r) {{
            f = Cast<to=1>(i)
            v = Add(u, f)
            r = Neg(v)
            {condition}
        }}
    >
}}"""
ALWAYS = "c2 = Identity(c)"
COUNTING = "j = Add(i, one) c2 = Less(j, limit)"
COUNTING_IN_FLOAT = "g = Cast<to=1>(i) c2 = Less(g, flimit)"


def loop(operands: str, condition: str = ALWAYS, trips: int = 3) -> str:
    """An operand left out is written as nothing between commas."""
    operands = ", ".join(operand.strip() or '""' for operand in operands.split(","))
    return LOOP.format(operands=operands, condition=condition, trips=trips)


@pytest.mark.parametrize(
    ("operands", "condition", "iterations"),
    [
        ("trips, yes", ALWAYS, 3),
        ("trips, ", ALWAYS, 3),
        ("trips, yes", "c2 = Identity(no)", 1),
        (", yes", COUNTING, 5),
        ("trips, yes", COUNTING, 3),
        (", yes", COUNTING_IN_FLOAT, 4),
        ("one, yes", ALWAYS, 1),
    ],
)
def test_known_iterations_are_written_out(operands: str, condition: str, iterations: int) -> None:
    text = loop(operands, condition).replace("Loop(, yes, x)", 'Loop("", yes, x)')
    graph = parse(text.replace("trips, , x", 'trips, "", x'))
    ctx = assert_keeps_outputs(UnrollLoops(), graph)
    assert ctx.stats.hits["unroll_loop"] == 1
    operations = [node.op for node in graph.nodes]
    assert "Loop" not in operations
    assert operations.count("Neg") == operations.count("Unsqueeze") == iterations
    assert operations.count("Concat") == 1


def test_a_counting_condition_leaves_nothing_behind() -> None:
    text = loop(", yes", COUNTING)
    graph = parse(text)
    UnrollLoops().run(graph, PassContext())
    assert "Less" not in dump(graph)


@pytest.mark.parametrize(
    ("operands", "condition", "reason"),
    [
        ("n, yes", ALWAYS, "trip count"),
        ("trips, flag", ALWAYS, "condition"),
        (", yes", ALWAYS, "more than 32 times"),
        ("trips, yes", "s = ReduceMax<keepdims=0>(v) c2 = Less(s, flimit)", "condition"),
        ("n, yes", COUNTING, "trip count"),
    ],
)
def test_iterations_known_at_run_time_only_stay(operands: str, condition: str, reason: str) -> None:
    text = loop(operands, condition)
    assert_unchanged(UnrollLoops(), text, reason)


def test_the_number_of_iterations_is_bounded() -> None:
    assert_unchanged(UnrollLoops(), loop("trips, yes", trips=33), "more than 32 times")
    assert_unchanged(UnrollLoops(max_unroll=2), loop("trips, yes"), "more than 2 times")
    assert UnrollLoops().run(parse(loop("trips, yes", trips=32)), PassContext())


def test_a_loop_that_never_runs_gives_what_it_was_given() -> None:
    text = loop("zero, yes").replace("float[N,4]", "float[3,4]")
    graph = parse(text)
    assert_keeps_outputs(UnrollLoops(), graph)
    assert len(graph) == 0 and graph.outputs[1].const is not None
    assert graph.outputs[1].const.shape == (0, 3, 4)
    assert_unchanged(UnrollLoops(), loop("zero, yes"), "shape of its empty result")


def test_loops_within_loops() -> None:
    text = """(float[N] x) => (float[N] y) <int64 two = {2}, int64 three = {3}, bool yes = {1}> {
        y = Loop(two, yes, x) <
            body = b (int64 i, bool c, float[N] u) => (bool c2, float[N] v) {
                c2 = Identity(c)
                v = Loop(three, yes, u) <
                    body = d (int64 k, bool e, float[N] p) => (bool e2, float[N] q) {
                        e2 = Identity(e)
                        q = Exp(p)
                    }
                >
            }
        >
    }"""
    graph = parse(text)
    while UnrollLoops().run(graph, PassContext()):
        pass
    assert [node.op for node in graph.nodes] == ["Exp"] * 6


SCAN = """(float[2] s, float[3,2] x, float[2,3] z) => (float[2] t, float[] rows) {
    t, rows = Scan(s, x, z) <
        num_scan_inputs = 2, %s
        body = b (float[2] u, float[2] v, float[2] w) => (float[2] p, float[2] r) {
            a = Add(u, v)
            p = Mul(a, w)
            r = Neg(p)
        }
    >
}"""


@pytest.mark.parametrize(
    "attributes",
    [
        "scan_input_axes = [0, 1],",
        "scan_input_axes = [0, 1], scan_input_directions = [1, 0],",
        "scan_input_axes = [0, 1], scan_output_directions = [1],",
        "scan_input_axes = [0, 1], scan_output_axes = [1],",
    ],
)
def test_scans_are_written_out(attributes: str) -> None:
    graph = parse(SCAN % attributes)
    ctx = assert_keeps_outputs(UnrollScans(), graph)
    assert ctx.stats.hits["unroll_scan"] == 1
    assert "Scan" not in [node.op for node in graph.nodes]


def test_scans_of_unknown_or_great_length_stay() -> None:
    text = """(float[2] s, float[N,2] x) => (float[2] t) {
        t = Scan(s, x) <
            num_scan_inputs = 1,
            body = b (float[2] u, float[2] v) => (float[2] p) { p = Add(u, v) }
        >
    }"""
    assert_unchanged(UnrollScans(), text, "only at run time")
    assert_unchanged(UnrollScans(max_unroll=4), text.replace("N", "5"), "more than 4 times")
