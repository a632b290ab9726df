"""Loops whose conditions count run as many steps as before, and stack what they did not."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.passes.count_steps import RULE, CountSteps
from graphopt.pipeline.base import PassContext
from graphopt.testing import Compiled, assert_unchanged, parse, run_onnxruntime

LOOP = """(float[N,T,2] x, int64 k, bool flag) => (int64 count, float[N,2] last, float[M,N,2] all)
<int64 c0 = {0}, int64 c1 = {1}, int64 c2 = {2}, float f0 = {0}, int64 most = {9223372036854775807},
 int32 most32 = {2147483647}, bool yes = {1}, int64[1] axis = {1}> {
    size = Shape<start=1, end=2>(x) n = Squeeze(size) fn = Cast<to=1>(n) n32 = Cast<to=6>(n)
    h0 = ReduceSum<keepdims=0>(x, axis)
    start = START
    count, last, all = Loop(TRIPS, start, FROM, h0) <
        body = b (int64 i, bool go, int64 t, float[N,2] h)
            => (bool on, int64 next, float[N,2] v, float[N,2] w) {
            v = Add(h, h) w = Neg(v)
            next = Add(t, c1) f = Cast<to=1>(next) next32 = Cast<to=6>(next)
            on = CONDITION
        }
    >
}"""
# What starts it, its trip count, what the counter is first, what goes on, and what is left of these
CASES = [
    ("Less(c0, n)", '""', "c0", "Less(next, n)", True),
    ("Less(c0, n)", "most", "c0", "Greater(n, next)", True),
    ("Less(f0, fn)", '""', "c0", "Less(f, fn)", True),
    ("Less(c2, n)", '""', "c2", "Less(next, n)", True),
    ("LessOrEqual(c1, n)", '""', "c1", "LessOrEqual(next, n)", True),
    ("Less(c0, n)", '""', "c0", "GreaterOrEqual(n, t)", False),
    ("Identity(yes)", '""', "c0", "Less(next, n)", True),
    ("Identity(yes)", '""', "c2", "Less(t, n)", True),
    ("Identity(flag)", '""', "c0", "Less(next, n)", False),
    ("Less(c2, n)", '""', "c0", "Less(next, n)", False),
    ("Less(c0, n)", "k", "c0", "Less(next, n)", True),
    ("Less(c0, k)", '""', "c0", "Less(next, k)", True),
    ("Less(c0, n)", '""', "c0", "Less(next32, n32)", True),
]
JOINED = [
    ("p = Less(next, n) q = Less(i, n) on = And(p, q)", True),
    ("p = Less(next, n) q = Less(next, k) on = And(p, q)", True),
    ("p = Less(next, n) q = And(p, go) on = Identity(q)", True),
    ("p = Less(next, n) m = ReduceMax<keepdims=0>(v) q = Less(m, fn) on = And(q, p)", False),
]


def loop(start: str, trips: str, first: str, condition: str) -> str:
    text = LOOP.replace("START", start).replace("TRIPS", trips).replace("FROM", first)
    return text.replace("on = CONDITION", condition)


def runs_alike(text: str, no_condition: bool) -> None:
    source = parse(text)
    graph, ctx = source.clone(), PassContext()
    assert CountSteps().run(graph, ctx)
    assert ctx.stats.hits[RULE] == 1
    assert not CountSteps().run(graph, PassContext())
    (node,) = [node for node in graph.nodes if node.op == "Loop"]
    body = node.attrs["body"]
    always = body.outputs[0] is body.inputs[1] and node.const(1) is not None
    assert always == no_condition
    compiled = Compiled(graph)
    for steps in (0, 1, 2, 3, 5):
        for k in (-1, 0, 1, 4):
            x = np.linspace(-1, 1, 6 * steps, dtype=np.float32).reshape(3, steps, 2)
            feeds = {"x": x, "k": np.array(k), "flag": np.array(k > 0)}
            feeds = {value.name: feeds[value.name] for value in source.inputs}
            expected = run_onnxruntime(source, feeds)
            for found in (run_onnxruntime(graph, feeds), compiled(feeds)):
                for name, array in expected.items():
                    assert found[name].size == array.size
                    if array.size:
                        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize(("start", "trips", "first", "condition", "gone"), CASES)
def test_conditions_that_count(
    start: str, trips: str, first: str, condition: str, gone: bool
) -> None:
    runs_alike(loop(start, trips, first, f"on = {condition}"), gone)


@pytest.mark.parametrize(("condition", "gone"), JOINED)
def test_joined_conditions(condition: str, gone: bool) -> None:
    runs_alike(loop("Less(c0, n)", '""', "c0", condition), gone)


@pytest.mark.parametrize(
    ("first", "condition"),
    [
        ("c0", "on = Less(n, next)"),
        ("c0", "m = Mul(next, c2) on = Less(m, n)"),
        ("c0", "m = Add(n, i) on = Less(next, m)"),
        ("k", "on = Less(next, n)"),
        ("c0", "p = Less(next, n) q = Less(next, k) on = Or(p, q)"),
        ("c0", "m = Cast<to=3>(next) p = Cast<to=3>(n) on = Less(m, p)"),
    ],
)
def test_what_does_not_count_up_stays(first: str, condition: str) -> None:
    assert_unchanged(CountSteps(), loop("Less(c0, n)", '""', first, condition))


def test_a_limit_that_the_loop_carries() -> None:
    text = loop("Less(c0, n)", '""', "c0, n", "on = Less(next, limit) MORE")
    text = text.replace("int64 t, float", "int64 t, int64 limit, float")
    text = text.replace("count, last, all =", "count, same, last, all =")
    text = text.replace("int64 next, float", "int64 next, int64 after, float")
    runs_alike(text.replace("int64 after", "int64 limit").replace("MORE", ""), True)
    assert_unchanged(CountSteps(), text.replace("MORE", "after = Add(limit, c2)"))
