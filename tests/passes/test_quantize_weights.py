"""Weights in 8 bits: of which layers, along which axis."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from graphopt.ir.graph import Graph
from graphopt.passes.fold_constants import FoldConstants
from graphopt.passes.quantize_weights import QuantizeWeights
from graphopt.pipeline.base import PassContext, Proposal
from graphopt.testing import (
    Lavish,
    assert_rewrites,
    assert_unchanged,
    parse,
    random_inputs,
    run_compiled,
    run_onnxruntime,
)

TWO_LAYERS = """(float[N,32] x) => (float[N,24] y) <float[32,24] w, float[24,24] v> {
    u = MatMul(x, w)
    r = Relu(u)
    y = MatMul(r, v)
}"""


def test_a_scale_for_every_output() -> None:
    assert_rewrites(
        QuantizeWeights(),
        """(float[N,32] x) => (float[N,16] y) <float[16,32] w> { y = Gemm<transB=1>(x, w) }""",
        """(float[N,32] x) => (float[N,16] y) <uint8[16,16] c, float16[16,1] s> {
            w = graphopt.StoredWeights<bits=4, columns=32>(c, s)
            y = Gemm<transB=1>(x, w)
        }""",
    )


def test_matrices_of_a_batch() -> None:
    assert_rewrites(
        QuantizeWeights(),
        """(float[3,N,32] x) => (float[3,N,16] y) <float[3,32,16] w> { y = MatMul(x, w) }""",
        """(float[3,N,32] x) => (float[3,N,16] y) <int8[3,32,16] c, float[16] s> {
            w = graphopt.StoredWeights<bits=8, axis=2>(c, s)
            y = MatMul(x, w)
        }""",
    )


def test_recurrent_weights() -> None:
    assert_rewrites(
        QuantizeWeights(),
        """(float[T,N,16] x) => (float[1,N,16] h) <float[1,48,16] w, float[1,48,16] r> {
            y, h = GRU<hidden_size=16>(x, w, r)
        }""",
        """(float[T,N,16] x) => (float[1,N,16] h)
        <int8[1,48,16] cw, float[48] sw, int8[1,48,16] cr, float[48] sr> {
            w = graphopt.StoredWeights<bits=8, axis=1>(cw, sw)
            r = graphopt.StoredWeights<bits=8, axis=1>(cr, sr)
            y, h = GRU<hidden_size=16>(x, w, r)
        }""",
    )


def test_a_weight_of_two_layers_is_stored_once() -> None:
    assert_rewrites(
        QuantizeWeights(),
        """(float[N,32] a, float[N,32] b) => (float[N,16] y, float[N,16] z) <float[32,16] w> {
            y = MatMul(a, w)
            z = MatMul(b, w)
        }""",
        """(float[N,32] a, float[N,32] b) => (float[N,16] y, float[N,16] z)
        <int8[32,16] c, float[16] s> {
            w = graphopt.StoredWeights<bits=8, axis=1>(c, s)
            y = MatMul(a, w)
            z = MatMul(b, w)
        }""",
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("(float[N,8] x) => (float[N,8] y) <float[8,8] w> { y = MatMul(x, w) }", "small"),
        ("(int64[N] ids) => (float[N,8] y) <float[99,8] w> { y = Gather(w, ids) }", None),
        ("(float[N,32] x) => (float[32,32] y) <float[32,32] w> { y = Add(w, w) }", None),
        (
            """(float[N,32] x) => (float[N,32] y, float[N,32] z) <float[32,32] w> {
                y = MatMul(x, w)
                z = Gemm<transB=1>(x, w)
            }""",
            None,
        ),
        ("(double[N,32] x) => (double[N,32] y) <double[32,32] w> { y = MatMul(x, w) }", None),
    ],
)
def test_left_alone(text: str, reason: str | None) -> None:
    assert_unchanged(QuantizeWeights(), text, reason)


def test_weights_that_are_not_all_numbers() -> None:
    graph = parse("(float[N,32] x) => (float[N,32] y) <float[32,32] w> { y = MatMul(x, w) }")
    (weight,) = graph.constants()
    weight.const = np.full((32, 32), np.nan, np.float32)
    ctx = PassContext(budget=Lavish())
    assert not QuantizeWeights().run(graph, ctx)
    assert any("not all numbers" in why for _, _, why in ctx.stats.refusals)


class OfBits(Lavish):
    """A budget that takes only proposals of one kind."""

    def __init__(self, what: str) -> None:
        self.what = what

    def choose(
        self, graph: Graph, proposals: Sequence[Proposal], share: float = 1.0
    ) -> list[Proposal]:
        return [proposal for proposal in proposals if proposal.what == self.what]


@pytest.mark.parametrize(("what", "worst"), [("float16", 0.002), ("int8", 0.02), ("int4", 0.3)])
def test_what_is_lost(what: str, worst: float) -> None:
    """A weight loses half a step at most: of 1/127, or 1/7, of the largest that share its scale."""
    graph = parse(TWO_LAYERS)
    feeds = random_inputs(graph)
    before = run_onnxruntime(graph, feeds)["y"]
    assert QuantizeWeights().run(graph, PassContext(budget=OfBits(what)))
    after = run_onnxruntime(graph, feeds)["y"]
    assert 0 < np.abs(after - before).max() < worst * np.abs(before).max()
    compiled = run_compiled(graph, feeds)["y"]
    # Sums of 32 and 24 terms in another order.
    np.testing.assert_allclose(compiled, after, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("inputs", "stored"), [(24, (16, 16)), (32, (16, 16)), (50, (16, 32)), (640, (16, 320))]
)
def test_inputs_in_groups_of_32(inputs: int, stored: tuple[int, int]) -> None:
    """The last group is filled up with zeros, which nothing reads."""
    graph = parse(
        f"""(float[N,{inputs}] x) => (float[N,16] y) <float[{inputs},16] w> {{
            y = MatMul(x, w)
        }}"""
    )
    feeds = random_inputs(graph)
    before = run_onnxruntime(graph, feeds)["y"]
    assert QuantizeWeights().run(graph, PassContext(budget=OfBits("int4")))
    codes, scales = graph.constants()
    assert (codes.shape, scales.shape) == (stored, (16, stored[1] // 16))
    after = run_onnxruntime(graph, feeds)["y"]
    assert np.abs(after - before).mean() < 0.2 * np.abs(before).mean()
    np.testing.assert_allclose(run_compiled(graph, feeds)["y"], after, rtol=1e-4, atol=1e-4)


def test_folding_does_not_unpack_what_was_packed() -> None:
    graph = parse(TWO_LAYERS)
    QuantizeWeights().run(graph, PassContext(budget=Lavish()))
    ctx = PassContext()
    assert not FoldConstants().run(graph, ctx)
    assert any("few bits" in why for _, _, why in ctx.stats.refusals)
