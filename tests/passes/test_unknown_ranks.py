"""Passes leave alone what they know too little of: here not even the rank."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt import optimize
from graphopt.analysis.ids import id_ranges
from graphopt.ir.verifier import verify
from graphopt.pipeline.base import PassContext
from graphopt.pipeline.registry import passes
from graphopt.testing import Lavish, assert_keeps_outputs, parse, run_onnxruntime

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


# Not even the ranks of inputs are declared; that ops need them says nothing to a pass.
BARE = """(int64[] ids, float[] x, float[] pairs)
=> (float[] y, float[] z, float[] m, float[] c, float[] l)
<
    float[9,4] table, float[4,4] w, float[6,3] v, float[3] b, float[2,6,1] kernel,
    float[14,3] deep, float[3,3] again, int64[2] row = {-1, 4},
    int64 i1 = {1}, int64[1] v1 = {1}, int64[1] three = {3}, int64[3] flat = {-1, 6, 4}
> {
    column = Gather<axis=1>(ids, i1)
    other = Gather<axis=1>(ids, v1)
    rows = Gather(table, column)
    more = Gather(table, other)
    squeezed = Squeeze(more, v1)
    n = Shape<end=1>(x)
    s = Concat<axis=0>(n, three)
    zeros = ConstantOfShape(s)
    wide = Concat<axis=1>(zeros, rows, squeezed, x)
    joined = Concat<axis=1>(x, zeros)
    hidden = Gemm(joined, v, b)
    active = Relu(hidden)
    reached = Gemm(active, again)
    beside = Gemm(wide, deep, b)
    cut = Relu(beside)
    depths = Gemm(cut, again)
    z = Concat<axis=1>(reached, depths, wide)
    lane0 = Reshape(rows, row)
    lane1 = Reshape(more, row)
    lanes = Concat<axis=1>(lane0, lane1)
    l = Neg(lanes)
    y = MatMul(rows, w)
    mixed = Concat<axis=2>(pairs, pairs)
    m = MatMul(mixed, pairs)
    products = Mul(pairs, pairs)
    ordered = Reshape(products, flat)
    c = Conv(ordered, kernel)
}"""


@pytest.mark.parametrize("name", [None, *passes()])
def test_inputs_of_unknown_rank(name: str | None) -> None:
    graph = parse(BARE)
    assert all(value.rank is None for value in graph.inputs)
    rng = np.random.default_rng(1)
    feeds = {
        "ids": rng.integers(0, 9, (5, 3)),
        "x": rng.standard_normal((5, 3)).astype(np.float32),
        "pairs": rng.standard_normal((12, 2, 1)).astype(np.float32),
    }
    wanted = run_onnxruntime(graph, feeds)
    id_ranges(graph)
    if name is None:
        graph = optimize(graph)
    else:
        passes()[name]().run(graph, PassContext(budget=Lavish()))
        verify(graph)
    for output, array in run_onnxruntime(graph, feeds).items():
        np.testing.assert_allclose(array, wanted[output], rtol=1e-5, atol=1e-6)
