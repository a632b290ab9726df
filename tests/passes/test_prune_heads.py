"""Attention heads that go: which, what makes up for them, and which must stay."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from graphopt.ir.graph import Graph, Node
from graphopt.passes._layer_columns import column_input
from graphopt.passes.prune_heads import PruneHeads
from graphopt.pipeline.base import PassContext, Proposal
from graphopt.testing import (
    Lavish,
    assert_unchanged,
    parse,
    random_inputs,
    run_onnxruntime,
)

# As PyTorch writes nn.MultiheadAttention; one position asks.
JOINED = """(float[64,6,8] x, float[64,1,1,6] mask) => (float[64,5] y)
<float[8,36] w, float[36] b, float[12,5] v, float[5] c,
    int64[1] zero = {0}, int64[1] one = {1}, int64[3] turned = {1, -1, 12}> {
    p = MatMul(x, w)
    h = Add(b, p)
    q = Slice(h, zero, one, one)
    a = graphopt.Attention<columns=[0, 12, 24], dim=3, heads=4, scale=0.6>(q, h, h, mask)
    t = Reshape(a, turned)
    m = MatMul(t, v)
    s = Squeeze(m, zero)
    y = Add(s, c)
}"""

# A layer each for q, k and v, rows flattened for Gemm, ops on columns, a bias for each head.
APART = """(float[64,6,8] x, float[64,3,6,6] other, float[64,6,12] given) => (float[384,5] y)
<float[8,12] wq, float[12] bq, float[12,8] wk, float[12] bk, float[8,12] wv, float[5,12] v,
    float[12,12] square, float[5] c, float[3,6,6] bias, int64[2] flat = {-1, 8},
    int64[3] deep = {64, -1, 12}, int64[2] rows = {-1, 12}, float two = {2}> {
    xr = Reshape(x, flat)
    qr = Gemm(xr, wq, bq)
    q = Reshape(qr, deep)
    kr = Gemm<alpha=0.5, transB=1>(xr, wk, bk)
    ka = Relu(kr)
    k = Reshape(ka, deep)
    vp = MatMul(x, wv)
    vv = Mul(vp, two)
    a = graphopt.Attention<dim=4, heads=3, scale=0.5>(q, k, vv, bias)
    r = Reshape(a, rows)
    y = Gemm<alpha=0.5, beta=2.0, transB=1>(r, v, c)
}"""


LOSS = 1e-3  # mostly less: the ridge of the least squares is 1e-6 of the variance


class Careful(Lavish):
    """Takes what costs nothing."""

    def choose(
        self, graph: Graph, proposals: Sequence[Proposal], share: float = 1.0
    ) -> list[Proposal]:
        return super().choose(graph, [p for p in proposals if p.expected_error < LOSS])


def attentions_of(graph: Graph) -> list[Node]:
    return [node for node in graph.nodes if node.op == "graphopt::Attention"]


def widths(graph: Graph) -> list[int]:
    layers = (node for node in graph.nodes if node.op in ("Gemm", "MatMul"))
    return [layer.output.tensor.dims[-1] for layer in layers]  # type: ignore[misc]


def changed(graph: Graph, change: Callable[[np.ndarray], None], *shapes: object) -> Graph:
    """The graph with `change` made in its weights of some shapes."""
    for value in graph.constants():
        if value.shape in shapes:
            assert value.const is not None
            value.const = value.const.copy()
            change(value.const)
    return graph


def assert_prunes(graph: Graph, heads: int) -> None:
    """Check that the heads that cost nothing go, and that answers stay what they were."""
    feeds = random_inputs(graph)
    wanted = run_onnxruntime(graph, feeds)
    assert PruneHeads().run(graph, PassContext(budget=Careful()))
    assert {attention.attr("heads") for attention in attentions_of(graph)} == {heads}
    found = run_onnxruntime(graph, feeds)
    loss = np.square(found["y"] - wanted["y"]).mean() / wanted["y"].var()
    assert np.sqrt(loss) < 2 * LOSS  # of two attentions


def test_heads_that_the_next_layer_ignores() -> None:
    def ignore(weight: np.ndarray) -> None:
        weight[3:6] = weight[9:] = 0

    graph = changed(parse(JOINED), ignore, (12, 5))
    assert_prunes(graph, 2)
    assert widths(graph) == [18, 5]
    assert attentions_of(graph)[0].attr("columns") == [0, 6, 12]


def test_a_copy_of_a_head() -> None:
    def copy(weight: np.ndarray) -> None:
        for first in (0, 12, 24):
            weight[..., first + 9 : first + 12] = weight[..., first : first + 3]

    assert_prunes(changed(parse(JOINED), copy, (8, 36), (36,)), 3)


def test_a_head_that_always_gives_the_same() -> None:
    def forget(weight: np.ndarray) -> None:
        weight[:, 27:30] = 0

    assert_prunes(changed(parse(JOINED), forget, (8, 36)), 3)
    text = APART.replace("Mul(vp, two)", "Add(vp, two)")
    assert_prunes(changed(parse(text), lambda weight: weight[:, :4].fill(0), (8, 12)), 2)


def ignore_first(weight: np.ndarray) -> None:
    weight[:, :4] = 0


def test_layers_apart() -> None:
    graph = changed(parse(APART), ignore_first, (5, 12))
    assert_prunes(graph, 2)
    assert widths(graph) == [8, 8, 8, 5]
    assert attentions_of(graph)[0].inputs[3].shape == (2, 6, 6)  # type: ignore[union-attr]


TURN = "Transpose<perm=[1, 0, 2]>"


@pytest.mark.parametrize(
    "change",
    [
        ("(q, k, vv, bias)", "(q, k, vv)"),
        ("(q, k, vv, bias)", "(q, k, vv, other)"),
        ("(q, k, vv, bias)", "(k, k, vv, bias)"),
        ("float[3,6,6] bias", "float[1,6,6] bias"),
        ("heads=3, scale=0.5", "guarded=1, heads=3, scale=0.5"),
        ("scale=0.5>(q, k, vv, bias)", 'scale=0.5, activation="silu">(q, k, vv, bias, other)'),
        ("scale=0.5>(q, k, vv, bias)", 'scale=0.5, activation="silu">(q, k, vv, , bias)'),
        ("vv = Mul(vp, two)", f"t = {TURN}(vp)\n u = Mul(t, two)\n vv = {TURN}(u)"),
        ("r = Reshape(a, rows)", "s = Sigmoid(a)\n r = Reshape(s, rows)"),
    ],
)
def test_forms(change: tuple[str, str]) -> None:
    text = APART.replace(*change)
    assert text != APART
    assert_prunes(changed(parse(text), ignore_first, (5, 12)), 2)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("=> (float[384,5] y)", "=> (float[384,5] y, float[64,6,12] k)"), "also read elsewhere"),
        (("=> (float[384,5] y)", "=> (float[384,5] y, float[64,6,12] a)"), "one layer"),
        (("MatMul(x, wv)", "MatMul(k, square)"), "also read elsewhere"),
        (("(q, k, vv, bias)", "(q, k, given, bias)"), "not all columns of layers"),
        (("Mul(vp, two)", "Softmax(vp)"), "not all columns of layers"),
        (("Mul(vp, two)", "Mul(vp, given)"), "not all columns of layers"),
        (("vv = Mul(vp, two)", "t = Reshape(vp, deep)\n vv = Add(t, q)"), "not all columns"),
        (("r = Reshape(a, rows)", "s = Softmax(a)\n r = Reshape(s, rows)"), "one layer"),
        (("[64,3,6,6] other", "[64,H,6,6] other"), None),
        (("heads=3", "columns=[0, 0, 0], heads=1"), None),
    ],
)
def test_left_alone(change: tuple[str, str], reason: str | None) -> None:
    text = APART.replace(*change)
    assert text != APART
    if "H" in change[1]:
        text, reason = text.replace("vv, bias)", "vv, other)"), "differ from head to head, or not"
    assert_unchanged(PruneHeads(), text, reason)


@pytest.mark.parametrize(
    ("op", "keeps"),
    [
        ("Reshape(x, a)", True),
        ("Reshape(x, b)", True),
        ("Reshape(x, c)", False),  # which of its axes are columns, 12 or 12?
        ("Reshape(x, d)", False),
        ("Unsqueeze(x, zero)", True),
        ("Unsqueeze(x, last)", False),
        ("Transpose<perm=[0, 1]>(x)", True),
        ("Transpose(x)", False),
        ("Gather<axis=0>(x, zero)", True),
        ("Gather<axis=-1>(x, all)", False),
        ("GatherND(x, rows)", True),
        ("GatherND<batch_dims=1>(x, rows)", False),
        ("Slice(x, zero, two, zero)", True),
        ("Slice(x, zero, twelve, last)", False),
        ("Add(x, row)", True),
        ("Add(x, column)", False),
        ("Relu(x)", True),
        ("Softmax(x)", False),
    ],
)
def test_ops_that_keep_columns_in_place(op: str, keeps: bool) -> None:
    graph = parse(
        f"""(float[24,12] x) => (float[] y)
        <int64[3] a = {{2, 12, 12}}, int64[3] b = {{0, 1, -1}}, int64[3] c = {{2, 0, 12}},
            int64[2] d = {{-1, 6}}, int64[1] zero = {{0}}, int64[1] last = {{-1}},
            int64[1] two = {{2}}, int64[1] twelve = {{12}}, float[12] row, float[24,1] column,
            int64[12] all = {{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}},
            int64[24,1] rows> {{
            y = {op}
        }}"""
    )
    (node,) = graph.nodes
    assert (column_input(node) == 0) == keeps


def test_q_and_k_that_share_columns_in_part() -> None:
    text = JOINED.replace("columns=[0, 12, 24]", "columns=[0, 6, 24]")
    assert_unchanged(PruneHeads(), text, "share columns in part")


# One layer's columns are the queries, keys and values of the next attention.
CHAIN = """(float[64,6,4] x) => (float[64,6,5] y)
<float[4,36] w, float[12,24] u, float[24] d, float[8,5] v> {
    p = MatMul(x, w)
    a = graphopt.Attention<columns=[0, 12, 24], dim=4, heads=3, scale=0.0>(p, p, p)
    h = MatMul(a, u)
    g = Add(h, d)
    b = graphopt.Attention<columns=[0, 8, 16], dim=4, heads=2, scale=0.0>(g, g, g)
    y = MatMul(b, v)
}"""


def test_attentions_in_a_row() -> None:
    """All positions have about the same share: each head tells the mean, and so the others."""
    graph = parse(CHAIN)
    assert_prunes(graph, 1)
    assert widths(graph) == [12, 12, 5]
