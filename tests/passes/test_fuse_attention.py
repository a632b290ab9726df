"""Attention in the layouts that frameworks export becomes one op; others stay."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.ir.graph import Node
from graphopt.ops.attention_body import POINTWISE
from graphopt.passes.fuse_attention import FuseAttention
from graphopt.pipeline.base import PassContext
from graphopt.testing import (
    assert_keeps_outputs,
    assert_unchanged,
    parse,
    random_inputs,
    run_compiled,
    run_onnxruntime,
)

TEXT = """(float[N,5,8] x, float[N,5,24] qkv, float[5,N,24] tqkv, float[N,1,5,5] mask,
     float[1,5,5] mask3, float[N,5,5] maskn, float[2,1,5,5] maskh, float[M,2,5,5] wide,
     bool[N,1,1,5] pad,
     bool[N,1,5] pad3, float size) => (float[] y)
    <int64[4] heads = {-1, 5, 2, 4}, int64[4] theads = {5, -1, 2, 4},
     int64[5] three = {0, 0, 3, 2, 4}, float half = {0.5}, float one0 = {1}, float two = {2},
     int64[3] rows = {-1, 5, 8},
     float least = {-inf}, float low = {-1e9}, float less = {-1e4}, float zerof = {0},
     bool[1,1,5,5] later = {0,1,1,1,1, 0,0,1,1,1, 0,0,0,1,1, 0,0,0,0,1, 0,0,0,0,0},
     int64[4] wider = {1, 2, 1, 1}, int64[3] folded = {-1, 1, 5},
     int64[3] merged = {5, -1, 4}, int64 zero = {0}, int64 one = {1}, int64 second = {2},
     int64[1] at0 = {0}, int64[1] at8 = {8}, int64[1] at16 = {16}, int64[1] at24 = {24},
     int64[1] last = {2}, int64[4] wrong = {-1, 2, 5, 4}, float[8,8] w, float[1,6,8] slots,
     int64[3] bh = {-1, 5, 4}> {
    BODY
}"""

TAIL = "t = Transpose<perm=[0, 2, 1, 3]>(o) y = Reshape(t, rows)"
SPLIT = """qs, ks, vs = Split<axis=2, num_outputs=3>(qkv)
    q1 = Reshape(qs, heads) q = Transpose<perm=[0, 2, 1, 3]>(q1)
    k1 = Reshape(ks, heads) k = Transpose<perm=[0, 2, 3, 1]>(k1)
    v1 = Reshape(vs, heads) v = Transpose<perm=[0, 2, 1, 3]>(v1) """
STACKED = SPLIT.replace("perm=[0, 2,", "perm=[2, 0,")
STACKED_TAIL = "t = Transpose<perm=[1, 2, 0, 3]>(o) y = Reshape(t, rows)"
FORMS = {
    "merged and split": SPLIT + "s = MatMul(q, k) a = Softmax(s) o = MatMul(a, v)" + TAIL,
    "merged and sliced": """qs = Slice(qkv, at0, at8, last) ks = Slice(qkv, at8, at16, last)
        vs = Slice(qkv, at16, at24, last)"""
    + SPLIT.split("\n", 1)[1]
    + "s = MatMul(q, k) m = Add(mask, s) a = Softmax(m) o = MatMul(a, v)"
    + TAIL,
    "scaled on both sides": SPLIT
    + """q2 = Mul(q, half) k2 = Div(k, two) s = MatMul(q2, k2) m = Add(s, mask)
         a = Softmax<axis=3>(m) o = MatMul(a, v)"""
    + TAIL,
    "stacked": """f = Reshape(qkv, three) g = Transpose<perm=[2, 0, 3, 1, 4]>(f)
        q = Gather(g, zero) k1 = Gather(g, one) v = Gather(g, second)
        k = Transpose<perm=[0, 1, 3, 2]>(k1) s = MatMul(q, k) d = Mul(half, s) m = Add(d, mask)
        a = Softmax(m) o = MatMul(a, v) """
    + TAIL,
    "time first, heads as samples": """
        qs, ks, vs = Split<axis=2, num_outputs=3>(tqkv)
        q1 = Reshape(qs, merged) q = Transpose<perm=[1, 0, 2]>(q1)
        k1 = Reshape(ks, merged) k = Transpose<perm=[1, 2, 0]>(k1)
        v1 = Reshape(vs, merged) v = Transpose<perm=[1, 0, 2]>(v1)
        s = MatMul(q, k) d = Mul(s, half) m = Add(d, mask3) a = Softmax(m) o = MatMul(a, v)
        y = Transpose<perm=[1, 0, 2]>(o)""",
    "masked by a constant": SPLIT
    + "s = MatMul(q, k) d = Div(s, two) m = Where(later, least, d) a = Softmax(m) o = MatMul(a, v)"
    + TAIL,
    "masked padding, also all of it": SPLIT
    + """s = MatMul(q, k) d = Mul(s, half) real = Not(pad) m = Where(real, d, low) a = Softmax(m)
         o = MatMul(a, v)"""
    + TAIL,
    "masked before the scale": SPLIT
    + "s = MatMul(q, k) m = Where(pad, least, s) d = Mul(m, half) a = Softmax(d) o = MatMul(a, v)"
    + TAIL,
    "added to and masked": SPLIT
    + """s = MatMul(q, k) b = Add(s, mask) m = Where(later, least, b) a = Softmax(m)
         o = MatMul(a, v)"""
    + TAIL,
    "masked by booleans": SPLIT
    + """b = Where(pad, least, zerof) s = MatMul(q, k) d = Mul(s, half) m = Add(d, b)
         p = Softmax(m) n = IsNaN(p) a = Where(n, zerof, p) o = MatMul(a, v)"""
    + TAIL,
    "a mask for heads as samples": """
        qs, ks, vs = Split<axis=2, num_outputs=3>(tqkv)
        q1 = Reshape(qs, merged) q = Transpose<perm=[1, 0, 2]>(q1)
        k1 = Reshape(ks, merged) k = Transpose<perm=[1, 2, 0]>(k1)
        v1 = Reshape(vs, merged) v = Transpose<perm=[1, 0, 2]>(v1)
        b = Where(pad, low, zerof) w2 = Expand(b, wider) m3 = Reshape(w2, folded)
        s = MatMul(q, k) d = Mul(s, half) m = Add(m3, d) a = Softmax(m) o = MatMul(a, v)
        y = Transpose<perm=[1, 0, 2]>(o)""",
    "stacked on the first axis": STACKED
    + "s = MatMul(q, k) d = Div(s, two) m = Add(d, maskn) a = Softmax(m) o = MatMul(a, v)"
    + STACKED_TAIL,
    "parts stacked on the first axis": """
        qs, ks, vs = Split<axis=2, num_outputs=3>(qkv)
        qa, qb = Split<axis=2, num_outputs=2>(qs) qc = Unsqueeze(qa, at0) qd = Unsqueeze(qb, at0)
        q = Concat<axis=0>(qc, qd)
        ka, kb = Split<axis=2, num_outputs=2>(ks) kc = Unsqueeze(ka, at0) kd = Unsqueeze(kb, at0)
        k1 = Concat<axis=0>(kc, kd) k = Transpose<perm=[0, 1, 3, 2]>(k1)
        va, vb = Split<axis=2, num_outputs=2>(vs) vc = Unsqueeze(va, at0) vd = Unsqueeze(vb, at0)
        v = Concat<axis=0>(vc, vd) s = MatMul(q, k) a = Softmax(s) o = MatMul(a, v)"""
    + STACKED_TAIL,
    "stacked, with a bias for each head": STACKED
    + "s = MatMul(q, k) m = Add(s, maskh) a = Softmax(m) o = MatMul(a, v)"
    + STACKED_TAIL,
    "silu, then a mask": SPLIT
    + """s = MatMul(q, k) d = Mul(s, half) b = Add(d, mask) g = Sigmoid(b) u = Mul(b, g)
         n = Div(u, two) a = Mul(n, mask3) o = MatMul(a, v)"""
    + TAIL,
    "silu, divided by what is computed": SPLIT
    + """s = MatMul(q, k) m = Where(pad, low, s) g = Sigmoid(m) u = Mul(g, m) c = Abs(size)
         n = Div(u, c) o = MatMul(n, v)"""
    + TAIL,
    "relu, and 0 instead of others": SPLIT
    + "s = MatMul(q, k) r = Relu(s) a = Where(later, zerof, r) o = MatMul(a, v)"
    + TAIL,
    "sigmoid, stacked, and kept in places": STACKED
    + "s = MatMul(q, k) g = Sigmoid(s) a = Where(pad3, g, zerof) o = MatMul(a, v)"
    + STACKED_TAIL,
    "relu alone": SPLIT + "s = MatMul(q, k) a = Relu(s) o = MatMul(a, v)" + TAIL,
    "one head": """k = Transpose<perm=[0, 2, 1]>(x) s = MatMul(x, k) d = Div(s, two)
        m = Add(d, maskn) a = Softmax(m) y = MatMul(a, x)""",
}


def text(body: str) -> str:
    return TEXT.replace("BODY", body)


def attentions(graph) -> list[Node]:  # type: ignore[no-untyped-def]
    return [node for node in graph.nodes if node.op == "graphopt::Attention"]


@pytest.mark.parametrize("form", FORMS)
def test_forms(form: str) -> None:
    graph = parse(text(FORMS[form]))
    source = graph.clone()
    assert_keeps_outputs(FuseAttention(), graph)
    (node,) = attentions(graph)
    assert not any(other.op == "Softmax" for other in graph.nodes)
    assert node.attr("heads") == (1 if form == "one head" else 2)
    assert node.attr("guarded", 0) == ("booleans" in form)
    kinds = [kind for kind in POINTWISE if form.startswith(kind)]
    assert node.attr("activation", "softmax") == (kinds or ["softmax"])[0]
    feeds = random_inputs(source, {"N": 4, "M": 4})
    feeds["pad"][0] = True
    wanted = run_onnxruntime(source, feeds)["y"]
    for found in [run_onnxruntime(graph, feeds), *([run_compiled(graph, feeds)] if kinds else [])]:
        np.testing.assert_allclose(found["y"], wanted, rtol=1e-4, atol=1e-5)


def test_merged_columns_are_read_in_place() -> None:
    graph = parse(text(FORMS["merged and split"]))
    assert_keeps_outputs(FuseAttention(), graph)
    (node,) = attentions(graph)
    assert {value.name for value in node.inputs if value is not None} == {"qkv"}
    assert node.attr("columns") == [0, 8, 16]


def test_columns_cut_out_before_are_read_in_place() -> None:
    body = """c = Slice(qkv, at8, at16, last) y = graphopt.Attention<heads=2, dim=4>(c, x, c)"""
    graph = parse(text(body))
    assert_keeps_outputs(FuseAttention(), graph)
    (node,) = attentions(graph)
    assert [value.name for value in node.inputs if value is not None] == ["qkv", "x", "qkv"]
    assert node.attr("columns") == [8, 0, 8]


def test_an_expanded_bias_is_read_as_it_was() -> None:
    graph = parse(
        text("e = Expand(mask, wider) y = graphopt.Attention<heads=2, dim=4>(x, x, x, e)")
    )
    assert_keeps_outputs(FuseAttention(), graph)
    (node,) = attentions(graph)
    assert node.inputs[3] is not None
    assert node.inputs[3].name == "mask"


SCORES = SPLIT + "s = MatMul(q, k)"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (SCORES + "m = Where(later, less, s) a = Softmax(m) o = MatMul(a, v)" + TAIL,
         "one of -1e9 or less"),
        (SCORES + "p = Softmax(s) n = IsNaN(p) a = Where(n, half, p) o = MatMul(a, v)" + TAIL,
         "another number than 0"),
        (SPLIT + "p = Relu(q) n = IsNaN(p) a = Where(n, zerof, p) o = MatMul(a, k)" + TAIL,
         "no softmax"),
        (SCORES + "m = Where(later, s, s) a = Softmax(m) o = MatMul(a, v)" + TAIL,
         "one of -1e9 or less"),
        (SCORES + "m = Where(later, low, s) n = Where(pad, low, m) a = Softmax(n) o = MatMul(a, v)"
         + TAIL, "one of -1e9 or less, once"),
        (SCORES + "a = Softmax<axis=2>(s) o = MatMul(a, v)" + TAIL, "another axis"),
        (SCORES + "a = Softmax(s) o = MatMul(a, v)" + TAIL + " z = Relu(a)", "also read elsewhere"),
        (SCORES + "a = Softmax(s) o = MatMul(a, v)" + TAIL + " z = Relu(s)", "read only there"),
        (SCORES + "m = Add(s, mask) d = Mul(m, half) a = Softmax(d) o = MatMul(a, v)" + TAIL,
         "more than scaled and added to once"),
        ("m = Add(one0, wide) a = Softmax(m) y = MatMul(a, a)", "larger than"),
        (SCORES + "r = Relu(s) a = Softmax(r) o = MatMul(a, v)" + TAIL, "no product"),
        (SPLIT.replace("k1 = Reshape(ks, heads)", "k0 = Reshape(ks, wrong) k1 = Relu(k0)").replace(
            "k = Transpose<perm=[0, 2, 3, 1]>", "k = Transpose<perm=[0, 1, 3, 2]>")
         + "s = MatMul(q, k) a = Softmax(s) o = MatMul(a, v)" + TAIL, "not columns of rows"),
        (SCORES + "a = Relu(s) o = MatMul(a, v)" + TAIL + " z = Neg(a)", "also read elsewhere"),
        (SCORES + "g = Sigmoid(s) a = Mul(s, g) o = MatMul(a, v)" + TAIL + " z = Neg(s)",
         "read only there"),
        (SCORES + "g = Sigmoid(s) a = Mul(s, g) o = MatMul(a, v)" + TAIL + " z = Neg(g)",
         None),
        (SCORES + "r = Neg(s) a = Relu(r) o = MatMul(a, v)" + TAIL, "no product"),
        (SCORES + "r = Relu(s) a = Where(later, low, r) o = MatMul(a, v)" + TAIL, None),
        (SCORES + "r = Relu(s) a = Div(half, r) o = MatMul(a, v)" + TAIL, None),
        ("m = Relu(wide) a = Add(m, one0) y = MatMul(a, a)", None),
        ("c = Relu(w) y = MatMul(x, c)", None),
        ("""k = Transpose<perm=[0, 2, 1]>(slots) s = MatMul(x, k) a = Softmax(s)
            y = MatMul(a, slots)""", "differ in their batch"),
        ("""f = Reshape(qkv, three) g = Transpose<perm=[2, 0, 3, 1, 4]>(f) q = Gather(g, zero)
            h = Reshape(x, wrong) k = Transpose<perm=[0, 1, 3, 2]>(h) v = Gather(g, second)
            s = MatMul(q, k) a = Softmax(s) o = MatMul(a, v) """ + TAIL, "not columns of rows"),
    ],
)  # fmt: skip
def test_others_stay(body: str, reason: str | None) -> None:
    source = text(body)
    if "z = " in body:
        source = source.replace("=> (float[] y)", "=> (float[] y, float[] z)")
    assert_unchanged(FuseAttention(), source, reason)


STANDARD = """(float[N,5,8] a, float[N,5,8] b, float[N,5,8] c, float[N,1,5,5] open,
     float[N,1,5,4] one) => (float[] y)
    <int64[4] heads = {-1, 5, 2, 4}, float[5,5] bias,
     bool[5,5] seen = {1,0,0,0,0, 1,1,0,0,0, 0,1,1,0,0, 0,1,1,1,0, 0,0,1,1,1},
     bool[5,5] none = {1,1,1,1,1, 0,0,0,0,0, 1,1,1,1,1, 1,1,1,1,1, 1,1,1,1,1},
     bool[5,4] short = {1,1,1,1, 1,1,1,1, 1,1,1,1, 1,1,1,1, 1,1,1,1}> {
    a1 = Reshape(a, heads) q = Transpose<perm=[0, 2, 1, 3]>(a1)
    b1 = Reshape(b, heads) k = Transpose<perm=[0, 2, 1, 3]>(b1)
    c1 = Reshape(c, heads) v = Transpose<perm=[0, 2, 1, 3]>(c1)
    y = BODY
}"""


@pytest.mark.parametrize(
    "body",
    [
        "Attention(q, k, v)",
        "Attention<scale=0.3>(q, k, v)",
        "Attention(q, k, v, seen)",
        "Attention(q, k, v, bias)",
        "Attention<is_causal=1>(q, k, v)",
    ],
)
def test_the_op_of_onnx(body: str) -> None:
    graph = parse(STANDARD.replace("BODY", body), opset=23)
    ctx = assert_keeps_outputs(FuseAttention(), graph)
    assert ctx.stats.hits["standard_to_products"] == ctx.stats.hits["products_to_attention"] == 1


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("Attention(q, k, v, open)", "only at run time"),
        ("Attention(q, k, v, none)", "hides all keys"),
        ("Attention(q, k, v, short)", "not as long"),
        ("Attention(q, one, one)", "share heads"),
        ("Attention<softcap=2.0>(q, k, v)", "bends"),
        ("Attention(q, k, v, , k, v)", "earlier calls"),
    ],
)
def test_the_op_of_onnx_as_it_is(body: str, reason: str) -> None:
    graph = parse(STANDARD.replace("BODY", body), opset=23)
    ctx = PassContext()
    assert not FuseAttention().run(graph, ctx)
    assert any(reason in why for _, _, why in ctx.stats.refusals), ctx.stats.refusals
