"""What is read of a sequence at one position is computed at that position."""

from __future__ import annotations

import pytest

from graphopt.passes.hoist_selections import HoistSelections
from graphopt.testing import assert_keeps_outputs, assert_rewrites, assert_unchanged, parse

TEXT = """(float[N,5,4] x, int64[N] at) => (float[] y)
    <float[4,4] w, float[4] b, float[4,8] v, float[4] g, float[1,5,4] pos, float[5,1] each,
     int64 last = {-1}, int64 second = {1}, int64[1] two = {2}, int64[1] three = {3},
     int64[1] five = {5}, int64[1] axis1 = {1}, int64[1] head = {0}, int64[2] some = {0, 2},
     int64[4] heads = {-1, 5, 2, 2}, int64[3] merged = {-1, 5, 4}, int64[2] flat = {-1, 4},
     int64[3] column = {-1, 1, 1}, int64[3] wide = {1, 1, 4}, int64[3] sums = {-1, 4, 5},
     int64[2] rows = {-1, 1}, float half = {0.5}, float[4,4] u, float[5,5] m> { BODY }"""


def text(body: str) -> str:
    return TEXT.replace("BODY", body)


ATTENTION = """
    q1 = MatMul(x, w) q2 = Reshape(q1, heads) q = Transpose<perm=[0, 2, 1, 3]>(q2)
    k1 = MatMul(x, u) k2 = Reshape(k1, heads) k = Transpose<perm=[0, 2, 3, 1]>(k2)
    s1 = MatMul(q, k) s2 = Mul(s1, half) s = Softmax(s2)
    v2 = Reshape(x, heads) vv = Transpose<perm=[0, 2, 1, 3]>(v2)
    o1 = MatMul(s, vv) o2 = Transpose<perm=[0, 2, 1, 3]>(o1) o = Reshape(o2, merged)
    r = Add(o, x) n = LayerNormalization(r, g, b)
    h1 = MatMul(n, w) h2 = Add(h1, b) h3 = Mul(h2, half) h4 = Erf(h2) h = Mul(h3, h4)
"""


@pytest.mark.parametrize(
    "select",
    [
        "y = Gather<axis=1>(h, last)",
        "y = Gather<axis=-2>(h, second)",
        "y = Gather<axis=1>(h, two)",
        "y = Slice(h, two, three, axis1)",
        "c = Reshape(at, column) e = Expand(c, wide) y = GatherElements<axis=1>(h, e)",
        "m = Mod(at, five) c = Reshape(m, rows) y = GatherND<batch_dims=1>(h, c)",
    ],
)
def test_attention_gets_one_query(select: str) -> None:
    graph = parse(text(ATTENTION + select))
    ctx = assert_keeps_outputs(HoistSelections(), graph)
    assert ctx.stats.hits["select_first"] == 1
    scores = next(node for node in graph.nodes if node.op == "Softmax")
    assert scores.output.tensor.dims[1:] == (2, 1, 5)
    assert [n.output.tensor.dims[-2] for n in graph.nodes if n.op == "LayerNormalization"] == [1]
    assert sum(5 in n.output.tensor.dims for n in graph.nodes if n.op == "MatMul") == 2


@pytest.mark.parametrize(
    ("body", "after"),
    [
        (
            "h = MatMul(x, w) a = Add(h, pos) y = Gather<axis=1>(a, last)",
            """s = Gather<axis=1>(x, lastof) h = MatMul(s, w) p = Gather<axis=1>(pos, lastof)
               a = Add(h, p) y = Reshape(a, flat)""",
        ),
        (
            "h = MatMul(x, w) a = Mul(h, each) y = Gather<axis=1>(a, head)",
            "s = Gather<axis=1>(x, head) h = MatMul(s, w) p = Gather(each, head) y = Mul(h, p)",
        ),
        (
            "c = Concat<axis=2>(x, x) h = Softmax(c) y = Gather<axis=1>(h, head)",
            "s = Gather<axis=1>(x, head) c = Concat<axis=2>(s, s) y = Softmax(c)",
        ),
        (
            "t = Transpose<perm=[1, 0, 2]>(x) y = Gather<axis=0>(t, head)",
            "s = Gather<axis=1>(x, head) y = Transpose<perm=[1, 0, 2]>(s)",
        ),
        (
            "a = graphopt.Attention<heads=2, dim=2>(x, x, x, m) y = Gather<axis=1>(a, head)",
            """s = Gather<axis=1>(x, head) n = Gather(m, head)
               y = graphopt.Attention<heads=2, dim=2>(s, x, x, n)""",
        ),
        (
            "f = Reshape(x, flat) h = Gemm(f, w, b) y = Gather<axis=0>(h, head)",
            "f = Reshape(x, flat) s = Gather(f, head) y = Gemm(s, w, b)",
        ),
    ],
)
def test_moves_up(body: str, after: str) -> None:
    before, wanted = text(body), text(after).replace("int64 last = {-1}", "int64[1] lastof = {-1}")
    assert_rewrites(HoistSelections(), before, wanted)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("h = MatMul(x, w) y = Gather<axis=1>(h, some)", None),
        ("h = Relu(x) y = Gather<axis=1>(h, last)", "nothing costly"),
        ("h = MatMul(x, w) z = Relu(h) y = Gather<axis=1>(h, last)", "nothing costly"),
        ("h = Softmax<axis=1>(x) y = Gather<axis=1>(h, last)", "nothing costly"),
        ("h = MatMul(x, w) y = Gather<axis=2>(h, last)", "nothing costly"),
        ("h = LayerNormalization<axis=1>(x, lg) y = Gather<axis=1>(h, last)", "nothing costly"),
        ("f = MatMul(x, w) h = Reshape(f, sums) y = Gather<axis=2>(h, last)", "nothing costly"),
        ("h = MatMul(x, w) y = Slice(h, two, five, axis1)", None),
        (  # the positions of one row are no positions of a table that all rows share
            """h = Softmax(pos) a = Add(h, x) c = Reshape(at, column) e = Expand(c, wide)
               y = GatherElements<axis=1>(a, e)""",
            "nothing costly",
        ),
    ],
)
def test_stays(body: str, reason: str | None) -> None:
    source = text(body).replace("float half", "float[5,4] lg, float half")
    if "z = " in body:
        source = source.replace("=> (float[] y)", "=> (float[] y, float[] z)")
    assert_unchanged(HoistSelections(), source, reason)


def test_a_value_read_whole_too_is_computed_whole() -> None:
    graph = parse(
        text(
            """a = MatMul(x, w) t = Transpose<perm=[0, 2, 1]>(a) s = MatMul(a, t) p = Softmax(s)
               y = Gather<axis=1>(p, last)"""
        )
    )
    assert_keeps_outputs(HoistSelections(), graph)
    first = next(node for node in graph.nodes if node.op == "MatMul")
    assert first.output.tensor.dims[1] == 5
    assert graph.outputs[0].producer.inputs[0].tensor.dims[1] == 1  # type: ignore[union-attr]


def test_names_of_the_source_are_kept() -> None:
    graph = parse(text("h = MatMul(x, w) a = Relu(h) y = Gather<axis=1>(a, last)"))
    names = {node.op: node.origin for node in graph.nodes}
    assert_keeps_outputs(HoistSelections(), graph)
    assert next(n.origin for n in graph.nodes if n.op == "MatMul") == names["MatMul"]


PAIRS = """(int64[N,3] ids) => (float[] y) <float[9,4] t, float[9,4] u, int64 first = {0},
    int64 second = {1}, int64[1] third = {2}, int64[2] shape = {-1, 4}> { BODY }"""


def test_ids_whose_rows_are_read_one_by_one_are_taken_apart() -> None:
    before = """a = Gather(t, ids) b = Gather(u, ids) c = Gather<axis=1>(a, second)
        d = Gather<axis=1>(b, first) e = Gather<axis=1>(a, third) f = Reshape(e, shape)
        p = Mul(c, d) y = Mul(p, f)"""
    after = """i = Gather<axis=1>(ids, second) c = Gather(t, i) j = Gather<axis=1>(ids, first)
        d = Gather(u, j) k = Gather<axis=1>(ids, third) e = Gather(t, k) f = Reshape(e, shape)
        p = Mul(c, d) y = Mul(p, f)"""
    assert_rewrites(HoistSelections(), PAIRS.replace("BODY", before), PAIRS.replace("BODY", after))


@pytest.mark.parametrize(
    "body",
    [
        "a = Gather(t, ids) c = Gather<axis=1>(a, second) s = ReduceSum(a) y = Add(c, s)",
        "a = Gather(t, ids) c = Gather<axis=2>(a, second) y = Neg(c)",
        "a = Gather<axis=1>(t, ids) c = Gather<axis=1>(a, second) y = Neg(c)",
    ],
)
def test_ids_whose_rows_are_read_together_stay(body: str) -> None:
    assert_unchanged(HoistSelections(), PAIRS.replace("BODY", body))


def test_products_of_bytes_move_up_with_what_rounds() -> None:
    """As a feed-forward layer has them after dynamic quantization."""
    before = """(float[N,5,4] x, float s, uint8 z) => (float[N,1,8] y)
        <int8[4,8] w, int64[1] a = {4}, int64[1] e = {5}, int64[1] one = {1}> {
        q = QuantizeLinear(x, s, z) p = MatMulInteger(q, w, z) f = Cast<to=1>(p) m = Mul(f, s)
        y = Slice(m, a, e, one)
    }"""
    after = """(float[N,5,4] x, float s, uint8 z) => (float[N,1,8] y)
        <int8[4,8] w, int64[1] a = {4}> {
        c = Gather<axis=1>(x, a) q = QuantizeLinear(c, s, z) p = MatMulInteger(q, w, z)
        f = Cast<to=1>(p) y = Mul(f, s)
    }"""
    assert_rewrites(HoistSelections(), before, after)
    each = before.replace("uint8 z)", "uint8[5,1] z)")
    each = each.replace("QuantizeLinear(x, s, z)", "Cast<to=2>(x)")
    assert_unchanged(HoistSelections(), each)
    columns = [t.replace("w, int64[1] a", "w, int8[8] wz, int64[1] a") for t in (before, after)]
    columns = [t.replace("MatMulInteger(q, w, z)", "MatMulInteger(q, w, z, wz)") for t in columns]
    assert_rewrites(HoistSelections(), *columns)
