"""What a Loop appends to a sequence is stacked, where all steps append the same shape."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.passes.stack_sequences import StackSequences
from graphopt.pipeline.base import PassContext
from graphopt.testing import Compiled, assert_unchanged, parse, run_onnxruntime

LOOP = """(float[N,T,2] x, int64 k) => (OUT y) <bool yes = {1}, int64[1] axis = {1}> {
    shape = Shape<start=1, end=2>(x)
    n = Squeeze(shape)
    none = SequenceEmpty()
    h0 = ReduceSum<keepdims=0>(x, axis)
    s, h = Loop(n, yes, none, h0) <
        body = b (int64 i, bool c, seq(float) old, float[N,2] u)
            => (bool c2, seq(float) more, float[N,2] v) {
            c2 = Identity(c)
            xi = Gather<axis=1>(x, i)
            v = Add(u, xi)
            w = Unsqueeze(v, axis)
            more = SequenceInsert(old, TENSOR)
        }
    >
    READ
}"""
READERS = [
    ("v", "float[T,N,2]", "y = ConcatFromSequence<axis=0, new_axis=1>(s)"),
    ("v", "float[N,T,2]", "y = ConcatFromSequence<axis=1, new_axis=1>(s)"),
    ("v", "float[N,2,T]", "y = ConcatFromSequence<axis=-1, new_axis=1>(s)"),
    ("w", "float[N,T,2]", "y = ConcatFromSequence<axis=1>(s)"),
    ("v", "float[M,2]", "y = ConcatFromSequence<axis=0>(s)"),
    ("v", "float[N,M]", "y = ConcatFromSequence<axis=-1>(s)"),
    ("v", "float[N,2]", "y = SequenceAt(s, k)"),
    ("v", "int64", "y = SequenceLength(s)"),
]


def loop(tensor: str, out: str, read: str) -> str:
    return LOOP.replace("TENSOR", tensor).replace("OUT", out).replace("READ", read)


@pytest.mark.parametrize(("tensor", "out", "read"), READERS)
def test_it_runs(tensor: str, out: str, read: str) -> None:
    source = parse(loop(tensor, out, read))
    graph = source.clone()
    assert StackSequences().run(graph, PassContext())
    compiled = Compiled(graph)
    for rows in (1, 3):
        for steps in (1, 2, 5):
            x = np.linspace(-1, 1, rows * steps * 2, dtype=np.float32).reshape(rows, steps, 2)
            feeds = {"x": x, "k": np.array(-1)}
            if all(value.name != "k" for value in graph.inputs):
                del feeds["k"]
            expected = run_onnxruntime(source, feeds)["y"]
            np.testing.assert_array_equal(run_onnxruntime(graph, feeds)["y"], expected)
            np.testing.assert_array_equal(compiled(feeds)["y"], expected)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("more = SequenceInsert(old, v)", "more = SequenceInsert(old, v, i)"),
        ("more = SequenceInsert(old, v)", "z = NonZero(v) w2 = Cast<to=1>(z)"
         " more = SequenceInsert(old, w2)"),
        ("y = Concat", "e = SequenceErase(s) y = Concat"),
        ("none = SequenceEmpty()", "none = SequenceConstruct(x)"),
    ],
)  # fmt: skip
def test_what_stays(old: str, new: str) -> None:
    text = loop("v", "float[N,M]", "y = ConcatFromSequence<axis=1>(s)")
    assert old in text
    assert_unchanged(StackSequences(), text.replace(old, new))
