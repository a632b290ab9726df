"""Codes of 8 bits that follow from others by elementwise ops are looked up in a table."""

from __future__ import annotations

import pytest

from graphopt.passes.tabulate_codes import TabulateCodes
from graphopt.testing import assert_keeps_outputs, assert_unchanged, parse

GELU = """g ({dtype}[N,6] q, float[N,6] v) => ({dtype}[N,6] y, float[N,6] o) <
    float s = {{0.05}}, {dtype} z = {{7}}, float t = {{0.008}}, {dtype} u = {{3}},
    float root = {{1.4142135}}, float one = {{1}}> {{
    x = DequantizeLinear(q, s, z)
    h = Div(x, root)
    e = Erf(h)
    a = QuantizeLinear(e, t, u)
    b = DequantizeLinear(a, t, u)
    c = Add(b, one)
    m = Mul(x, c)
    y = QuantizeLinear(m, s, z)
    f = DequantizeLinear(a, t, u)
    o = Mul(f, v)
}}"""


def gelu(dtype: str = "uint8") -> str:
    return GELU.format(dtype=dtype)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_codes_that_others_read_have_a_table_each(dtype: str) -> None:
    """Both the result, and the rounded Erf, whose numbers are multiplied with other ones."""
    graph = parse(gelu(dtype))
    assert_keeps_outputs(TabulateCodes(), graph)
    ops = [node.op for node in graph.nodes]
    assert ops.count("Gather") == 2 and not {"Erf", "QuantizeLinear", "Div"} & set(ops)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (gelu().replace("h = Div(x, root)", "h = Div(x, v)"), None),
        (gelu().replace("float root = {1.4142135}", "float[6] root"), None),
        (gelu().replace("uint8[N,6] q", "float[N,6] q").replace(
            "x = DequantizeLinear(q, s, z)", "x = Identity(q)"), None),
        (gelu().replace("Div(x, root)", "Mul(x, root)").replace("Erf(h)", "Relu(h)"),
         "nothing that takes long"),
    ],
    ids=["two tensors", "a number per column", "floats", "cheap"],
)  # fmt: skip
def test_left_alone(text: str, reason: str | None) -> None:
    assert_unchanged(TabulateCodes(), text, reason)


def test_results_that_are_broadcast_stay() -> None:
    wide = (
        gelu().replace("uint8[N,6] q", "uint8[N,1] q").replace("h = Div(x, root)", "h = Div(x, v)")
    )
    assert_unchanged(TabulateCodes(), wide)
