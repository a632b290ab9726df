"""float16 is computed with in float32, and rounded where it is stored."""

from __future__ import annotations

import numpy as np

from graphopt.targets.relax.narrow_floats import widen_float16
from graphopt.testing import parse, random_inputs, run_onnxruntime


def test_layers_of_float16_multiply_float32() -> None:
    graph = parse("""(float16[N,8] x, int64[N] ids) => (float16[N,4] y, float16[N,12] z)
    <float16[5,4] t, float16[12,6] w, float16[6] b, float16[6,4] v> {
        e = Gather(t, ids)
        z = Concat<axis=1>(x, e)
        h = Gemm(z, w, b)
        r = Relu(h)
        y = MatMul(r, v)
    }""")
    feeds = random_inputs(graph, {"N": 7})
    expected = run_onnxruntime(graph, feeds)
    widen_float16(graph)
    assert [node.op for node in graph.nodes] == ["Gather", "Concat", "Cast", "Gemm", "Relu"] + [
        "MatMul",
        "Cast",
    ]
    for node in graph.nodes:
        if node.op in ("Gemm", "MatMul"):
            assert all(value.dtype == "float32" for value in node.inputs if value is not None)
    for name, found in run_onnxruntime(graph, feeds).items():
        assert found.dtype == np.float16
        np.testing.assert_allclose(found, expected[name], 4e-3, 4e-3)
