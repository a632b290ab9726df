"""Dynamic quantization: products of bytes that are scaled at run time have a kernel."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.targets.cpu.legalize import legalize
from graphopt.targets.cpu.target import CpuTarget
from graphopt.targets.relax.expand import expand_functions
from graphopt.testing import Compiled, parse, run_onnxruntime

LAYER = """g (float[N,{k}] x) => (float[N,5] y) <
    int8[{k},5] w, int8 wz = {{0}}, float ws = {{0.02}}, float[5] b> {{
    q, s, z = DynamicQuantizeLinear(x)
    p = MatMulInteger(q, w, z, wz)
    f = Cast<to=1>(p)
    t = Mul(s, ws)
    m = Mul(f, t)
    y = Add(m, b)
}}"""
PLAIN = LAYER.format(k=24)
PER_COLUMN = PLAIN.replace("float ws = {0.02}", "float[5] ws").replace(
    "int8 wz = {0}", "int8[5] wz"
)
UNSIGNED = PLAIN.replace("int8[24,5] w, int8 wz", "uint8[24,5] w, uint8 wz")
FEW = LAYER.format(k=22)


def ops(text: str, in_bytes: bool = True) -> list[str]:
    graph = parse(text)
    expand_functions(graph)
    legalize(graph, lanes=16, in_bytes=in_bytes)
    return [node.op_type for node in graph.nodes]


def test_scale_and_bias_are_the_kernel_s() -> None:
    for text in (PLAIN, PER_COLUMN):
        found = ops(text)
        assert found.count("IntegerProduct") == 1 and found.count("Limit") == 2
        assert not {"MatMulInteger", "ReduceMax", "ReduceMin", "Add"} & set(found)


def test_rows_are_filled_up_to_whole_groups_once() -> None:
    twice = FEW.replace("=> (float[N,5] y)", "=> (float[N,5] y, float[N,5] v)").replace(
        "y = Add(m, b)",
        "y = Add(m, b) p2 = MatMulInteger(q, w2, z) f2 = Cast<to=1>(p2) v = Mul(f2, s)",
    )
    twice = twice.replace("float[5] b>", "float[5] b, int8[22,5] w2>")
    for text, count in ((FEW, 1), (twice, 2), (PLAIN, 1)):
        found = ops(text)
        assert found.count("IntegerProduct") == count
        assert found.count("Grouped") == (text is not PLAIN)


@pytest.mark.parametrize(
    ("text", "in_bytes", "why"),
    [
        (PLAIN, False, "it has no such instruction"),
        (UNSIGNED.replace("wz = {0}", "wz = {250}"), True, "weights down to -250"),
    ],
)
def test_else_floats_are_multiplied(text: str, in_bytes: bool, why: str) -> None:
    found = ops(text, in_bytes)
    assert "IntegerProduct" not in found and "MatMulInteger" not in found and "Dense" in found, why


@pytest.mark.parametrize(
    "text",
    [
        PLAIN.replace("int8[24,5] w, ", "").replace("24] x)", "24] x, int8[24,5] w)"),
        PLAIN.replace("Cast<to=1>", "Cast<to=11>").replace("float ws", "double ws").replace(
            "t = Mul(s, ws)", "sd = Cast<to=11>(s) t = Mul(sd, ws)").replace(
            "y = Add(m, b)", "m1 = Cast<to=1>(m) y = Add(m1, b)"),
    ],
    ids=["computed weights", "double"],
)  # fmt: skip
def test_left_alone(text: str) -> None:
    assert "MatMulInteger" in ops(text)


@pytest.mark.parametrize("text", [PLAIN, PER_COLUMN, UNSIGNED, FEW])
@pytest.mark.parametrize("in_bytes", [True, False])
def test_answers(text: str, in_bytes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As ONNX Runtime's; sums of 24 products of bytes are exact in float32 too."""
    if in_bytes and not CpuTarget.parse("").multiplies_bytes:
        pytest.skip("this CPU multiplies no bytes")
    if not in_bytes:
        monkeypatch.setattr(CpuTarget, "multiplies_bytes", property(lambda self: False))
    graph = parse(text)
    compiled = Compiled(graph)
    for rows in (1, 7, 130):
        shape = (rows, int(graph.inputs[0].tensor.dims[1]))
        x = np.random.default_rng(rows).normal(size=shape).astype(np.float32)
        for feed in ({"x": x}, {"x": np.zeros_like(x)}, {"x": -np.abs(x)}):
            got, expected = compiled(feed), run_onnxruntime(graph, feed)
            np.testing.assert_allclose(got["y"], expected["y"], rtol=1e-5, atol=1e-5)
