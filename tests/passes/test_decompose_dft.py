"""Short Fourier transforms are products; others stay."""

from __future__ import annotations

import pytest

from graphopt.passes.decompose_dft import DecomposeDft
from graphopt.testing import assert_keeps_outputs, assert_unchanged, parse


@pytest.mark.parametrize(
    ("opset", "shape", "attrs", "operands"),
    [
        (18, "N,5,4,1", "<axis=1>", "x"),
        (18, "N,5,4,1", "<axis=1, onesided=1>", "x"),
        (18, "N,6,4,2", "<axis=1, inverse=1>", "x"),
        (18, "N,3,6,2", "<axis=2>", "x"),
        (18, "N,5,4,1", "<axis=1, onesided=1>", "x, eight"),
        (18, "N,5,4,1", "<axis=1>", "x, three"),
        (20, "N,4,5,1", "<onesided=1>", "x"),
        (20, "N,5,4,1", "<onesided=1>", "x, , one"),
    ],
)
def test_they_become_products(opset: int, shape: str, attrs: str, operands: str) -> None:
    text = f"""(float[{shape}] x) => (float[] y)
    <int64 three = {{3}}, int64 eight = {{8}}, int64 one = {{1}}>
    {{ y = DFT{attrs}({operands}) }}"""
    graph = parse(text, opset)
    assert_keeps_outputs(DecomposeDft(), graph)
    assert "DFT" not in [node.op for node in graph.nodes]


def test_half_of_a_spectrum_becomes_real_numbers() -> None:
    """As torch.fft.irfft is exported."""
    graph = parse(
        """(float[N,6,4,1] x) => (float[] y) <int64 one = {1}, int64 six = {6}> {
        f = DFT<onesided=1>(x, six, one)
        g = Mul(f, f)
        y = DFT<onesided=1, inverse=1>(g, six, one) }""",
        20,
    )
    assert_keeps_outputs(DecomposeDft(), graph)
    assert "DFT" not in [node.op for node in graph.nodes]


@pytest.mark.parametrize(
    ("shape", "reason"), [("N,300,4,1", "long"), ("N,K,4,1", "length is not known")]
)
def test_others_stay(shape: str, reason: str) -> None:
    text = f"(float[{shape}] x) => (float[] y) {{ y = DFT<axis=1>(x) }}"
    assert_unchanged(DecomposeDft(), text, reason)
