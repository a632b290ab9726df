"""A slice of one element that a loop counts to is a Gather, and fails where that does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphopt.passes.canonicalize import Canonicalize
from graphopt.passes.resolve_shapes import ResolveShapes
from graphopt.passes.simplify_slices import SimplifySlices
from graphopt.passes.unify_sizes import UnifySizes
from graphopt.pipeline.base import PassContext
from graphopt.testing import Compiled, assert_unchanged, parse, run_onnxruntime

LOOP = """(float[N,T,2] x, int64 n, int32 k, float[N,2] h0) => (float[] y)
<int32 c0 = {0}, int32 first = {FIRST}, int32 one = {1}, bool yes = {1}> {
    count, y = Loop(n, yes, first, h0) <
        body = b (int64 i, bool go, int32 t, float[N,2] h) => (bool go, int32 next, float[N,2] v)
        <int64[1] a0 = {0}, int64[1] a1 = {1}, int32[1] z = {0}, int32[2] both = {0, 1},
         int32[2] long = {1, 1000000000}, float[2] far = {1000000000, 1000000000},
         bool[2] no = {0, 0}, int32 low = {-1000000000}, int32[1] step = {1}> {
            next = Add(t, one)
            SLICE
            row = Squeeze(part, a1)
            v = Add(h, row)
        }
    >
}"""
# As tf2onnx writes `x[:, t]`; `no` are conditions that a negative step would make true
WITH_MASKS = """from = Unsqueeze(t, a0) start = Concat<axis=0>(z, from)
    to = Unsqueeze(next, a0) end = Concat<axis=0>(z, to) endf = Cast<to=1>(end)
    most = Max(endf, far) mosti = Cast<to=6>(most) eq = Equal(mosti, k) is = And(eq, no)
    ends = Where(is, low, mosti) part = Slice(x, start, ends, both, long)"""
# As a slice `x[:, t:t+1]` is written
ONE_LONG = """start = Unsqueeze(t, a0) end = Unsqueeze(next, a0) axis = Cast<to=6>(a1)
    part = Slice(x, start, end, axis, step)"""
PASSES = (ResolveShapes(), Canonicalize(), SimplifySlices(), UnifySizes())


def loop(steps: str, first: int = 0) -> str:
    return LOOP.replace("SLICE", steps).replace("FIRST", str(first))


def simplified(text: str) -> Any:
    graph = parse(text)
    for step in PASSES:
        step.run(graph, PassContext())
    assert not SimplifySlices().run(graph, PassContext())
    return graph


@pytest.mark.parametrize(("steps", "first"), [(WITH_MASKS, 0), (WITH_MASKS, 2), (ONE_LONG, 1)])
def test_a_counted_column_is_a_gather(steps: str, first: int) -> None:
    source, graph = parse(loop(steps, first)), simplified(loop(steps, first))
    ops = [node.op for node in graph.walk()]
    assert "Gather" in ops
    assert "Slice" not in ops
    assert str(graph.outputs[0].type) == "f32[N, 2]"  # which no step changes
    compiled = Compiled(graph)
    rng = np.random.default_rng(0)
    for batch, length, count in ((3, 5, 3), (1, 4, 2), (2, 1, 0), (3, 4, 4 - first)):
        shapes = (batch, length, 2), (batch, 2)
        x, h0 = (rng.integers(-9, 9, shape).astype(np.float32) for shape in shapes)
        feeds = {"x": x, "n": np.array(count), "k": np.array(9, np.int32), "h0": h0}
        wanted = run_onnxruntime(source, feeds)["y"]
        np.testing.assert_array_equal(wanted, h0 + x[:, first : first + count].sum(1), strict=True)
        np.testing.assert_array_equal(run_onnxruntime(graph, feeds)["y"], wanted)
        np.testing.assert_array_equal(compiled(feeds)["y"], wanted)
    feeds["n"] = np.array(5 - first)  # beyond the end
    for run in (lambda: run_onnxruntime(source, feeds), lambda: run_onnxruntime(graph, feeds)):
        with pytest.raises(Exception, match=r"(?i)squeeze|out of (data )?bounds"):
            run()


TWO_AXES = """from = Unsqueeze(t, a0) start = Concat<axis=0>(z, from)
    to = Unsqueeze(next, a0) end = Concat<axis=0>(size, to)
    part = Slice(x, start, end, both, ones)"""


@pytest.mark.parametrize(
    ("steps", "old", "new", "reason"),
    [
        (ONE_LONG, "first = {0}", "first = {-1}", "does not count"),
        (ONE_LONG, "start = Unsqueeze(t", "start = Unsqueeze(k", "does not count"),
        (ONE_LONG, "end = Unsqueeze(next", "end = Unsqueeze(t", "may take nothing"),
        (ONE_LONG, "end = Unsqueeze(next", "end = Unsqueeze(k", "may take nothing"),
        (ONE_LONG, "next = Add(t, one)", "next = Add(t, k)", "does not count"),
        (ONE_LONG, "step = {1}", "step = {-1}", "walks backwards"),
        (ONE_LONG, "row = Squeeze(part, a1)", "row = Squeeze(part, a0)", "not that axis"),
        (TWO_AXES, "size = {1000000000}", "size = {3}", "a part of other axes"),
    ],
)
def test_others_stay(steps: str, old: str, new: str, reason: str) -> None:
    text = loop(steps.replace("axis = Cast<to=6>(a1)", "").replace("axis, step", "ax, step"))
    more = "int32[1] ax = {1}, int32[2] ones = {1, 1}, int32[1] size = {1000000000}, int32[1] step"
    text = text.replace("int32[1] step", more)
    assert "Gather" in [node.op for node in simplified(text).walk()]
    assert old in text
    assert_unchanged(SimplifySlices(), text.replace(old, new), reason)
