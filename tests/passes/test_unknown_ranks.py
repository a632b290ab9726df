"""Passes leave alone what they know too little of: here not even the rank."""

from __future__ import annotations

import pytest

from graphopt.pipeline.registry import passes
from graphopt.testing import assert_keeps_outputs, parse

# r has rank 2 or 3, as the flag says.
TEXT = """(float[N,4] x, bool flag) => (float[] y) <
    int64[1] v0 = {{0}}, int64[1] v1 = {{1}}, int64 i0 = {{0}}, int64[1] one = {{1}},
    int64[2] flat = {{-1, 4}}, float c = {{2}}, bool yes = {{1}}, float[4] w, float[8,4] g
> {{
    r = If(flag) <
        then_branch = t () => (float[] p) {{ p = Relu(x) }},
        else_branch = e () => (float[] q) {{ u = Relu(x) q = Unsqueeze(u, v1) }}
    >
    {}
    y = Sigmoid(h)
}}"""


@pytest.mark.parametrize(
    "body",
    [
        "a = Transpose(r) h = Transpose(a)",
        "a = Concat<axis=0>(r, r) h = Concat<axis=0>(a, r)",
        "a = Concat<axis=-1>(r, r) h = Slice(a, v0, v1, v0)",
        "a = Concat<axis=0>(r, r) h = Gather(a, i0)",
        "a = Concat<axis=0>(r) h = Identity(a)",
        "a = Slice(r, v0, v1) b = Slice(a, v0, v1) h = Neg(b)",
        "a = Split<axis=0, num_outputs=1>(r) h = Neg(a)",
        "a = Flatten(r) h = Neg(a)",
        "a = Squeeze(r) h = Neg(a)",
        "a = Unsqueeze(r, v0) b = Squeeze(a, v0) h = Neg(b)",
        "a = Reshape(r, flat) h = Neg(a)",
        "a = Shape(r) b = Size(a) d = Cast<to=1>(b) h = Mul(r, d)",
        "a = Shape(r) b = ConstantOfShape(a) h = Add(r, b)",
        "a = Shape(r) b = Expand(c, a) h = Mul(r, b)",
        "a = Expand(r, one) b = Expand(a, one) h = Mul(b, c)",
        "a = Neg(r) b = Neg(a) d = Mul(b, c) h = Where(yes, d, r)",
        "a = Clip(r, c) h = Max(a, r)",
        "a = Gather(r, v0) h = Neg(a)",
        "a = MatMul(r, w) h = Add(a, c)",
        "a = Concat<axis=1>(x, r) b = Gemm(a, g, w) h = Neg(b)",  # r has two axes in this case
        "s = SequenceConstruct(r, r) h = ConcatFromSequence<axis=0>(s)",
        "s = SequenceConstruct(r, r) h = SequenceAt(s, i0)",
    ],
)
@pytest.mark.parametrize("name", passes())
def test_outputs_stay(name: str, body: str) -> None:
    # The flag is drawn with the other inputs: some cases run with one rank, some with the other.
    assert_keeps_outputs(passes()[name](), parse(TEXT.format(body)), seed=len(body) % 3)
