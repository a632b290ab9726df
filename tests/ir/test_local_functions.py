"""Functions of a model are inlined, whichever opset each is written in."""

from __future__ import annotations

import numpy as np
import pytest
from onnx_models import model, run

from graphopt.ir import onnx_io
from graphopt.testing import run_onnxruntime

X = np.linspace(-2, 2, 12, dtype=np.float32).reshape(3, 4)

# What each body computes is valid in its own opset only: axes are attributes before opset 13 and
# 18, Softmax took all axes from one on before 13.
BODIES = {
    7: "u = Unsqueeze<axes=[2]>(x) s = Squeeze<axes=[2]>(u) y = Clip<min=-1.0, max=1.0>(s)",
    11: "s = Softmax<axis=0>(x) r = ReduceSum<axes=[1], keepdims=1>(s) y = Mul(x, r)",
    13: "r = ReduceMax<axes=[1], keepdims=1>(x) y = Sub(x, r)",
    18: "a = Constant<value_ints=[1]>() r = ReduceMax(x, a) y = Sub(x, r)",
    21: "y = Gelu(x)",
}


@pytest.mark.parametrize("opset", BODIES)
@pytest.mark.parametrize("outer", [13, 18])
def test_a_body_is_read_in_its_own_opset(opset: int, outer: int) -> None:
    """As the same nodes are that make up a model."""
    text = f"g (float[N,4] x) => (float[N,4] y) {{ {BODIES[opset]} }}"
    wanted = run(model(text, opset=opset), {"x": X})
    function = (
        f"""<domain: "local", opset_import: ["": {opset}]> f (x) => (y) {{ {BODIES[opset]} }}"""
    )
    called = model("g (float[N,4] x) => (float[N,4] y) { y = local.f(x) }", outer, function)
    before = called.SerializeToString()
    graph = onnx_io.from_proto(called)
    assert called.SerializeToString() == before, "the caller's model was changed"
    np.testing.assert_allclose(run_onnxruntime(graph, {"x": X})["y"], wanted[0], rtol=1e-6)


def test_opsets_differ_within_one_another() -> None:
    """An attribute is handed on, a branch is part of the body, versions of a domain are ignored."""
    functions = """
    <domain: "local", opset_import: ["": 16]> leaky <slope> (x) => (y) {
        y = LeakyRelu <alpha: float = @slope> (x) }
    <domain: "local", opset_import: ["": 11, "local": 5]> layer <slope> (x, c) => (y) {
        u = If (c) <then_branch = t () => (float[] p) { p = ReduceSum<axes=[1]>(x) },
                    else_branch = e () => (float[] q) { q = ReduceMax<axes=[1]>(x) }>
        v = Mul(x, u)
        y = local.leaky <slope: float = @slope> (v) }
    """
    called = model(
        "g (float[N,4] x, bool c) => (float[N,4] y) { y = local.layer<slope=0.5>(x, c) }",
        functions=functions,
    )
    graph = onnx_io.from_proto(called)
    for flag, factor in ((True, X.sum(1, keepdims=True)), (False, X.max(1, keepdims=True))):
        found = run_onnxruntime(graph, {"x": X, "c": np.array(flag)})["y"]
        product = X * factor
        np.testing.assert_allclose(found, np.where(product < 0, product / 2, product), rtol=1e-6)
