"""Transposes that cancel out go, whatever harmless lies in between; others stay."""

from __future__ import annotations

import pytest

from graphopt.passes.cancel_transposes import CancelTransposes
from graphopt.testing import assert_keeps_outputs, assert_rewrites, assert_unchanged, parse

TEXT = """(float[N,5,4] x, float[N,5,4] z, float[M] m) => (float[] y)
    <float[4,1] s, float[1,5] each, float[5] along, float[4,5] both, float[4] flat, float[5,1] tall,
     float[5,4] turned, float one = {1}, float[4,6] w, float[1,4,1] full,
     int64[3] some = {3, 0, 1}, int64 one_of = {2}, int64[1] zero = {0}> { BODY }"""
T = "Transpose<perm=[0, 2, 1]>"
S = "Transpose<perm=[1, 0, 2]>"


@pytest.mark.parametrize(
    ("body", "after"),
    [
        (f"t = {T}(x) r = Relu(t) y = {T}(r)", "y = Relu(x)"),
        (f"t = {T}(x) r = Sub(one, t) y = {T}(r)", "y = Sub(one, x)"),
        (f"t = {T}(x) r = Mul(t, s) y = {T}(r)", "y = Mul(x, flat)"),
        (f"t = {T}(x) r = Mul(full, t) y = {T}(r)", "y = Mul(flat, x)"),
        (f"t = {T}(x) r = Add(t, along) y = {T}(r)", "y = Add(x, tall)"),
        (f"t = {T}(x) r = Add(t, each) y = {T}(r)", "y = Add(x, tall)"),
        (f"t = {T}(x) r = Add(t, both) y = {T}(r)", "y = Add(x, turned)"),
        (f"t = {T}(x) u = {T}(z) r = Add(t, u) y = {T}(r)", "y = Add(x, z)"),
        (
            f"t = {S}(x) h = MatMul(t, w) r = Relu(h) y = {S}(r)",
            "h = MatMul(x, w) y = Relu(h)",
        ),
        (
            f"t = {T}(x) a = Sigmoid(t) b = Mul(a, t) c = Sub(one, a) d = Mul(c, b) y = {T}(d)",
            "a = Sigmoid(x) c = Sub(one, a) b = Mul(a, x) y = Mul(c, b)",
        ),
        (
            f"t = {S}(x) g = Gather<axis=0>(t, some) r = Neg(g) y = {S}(r)",
            "g = Gather<axis=1>(x, some) y = Neg(g)",
        ),
        (
            f"t = {S}(x) g = Gather<axis=-1>(t, some) y = {S}(g)",
            "y = Gather<axis=2>(x, some)",
        ),
    ],
)
def test_they_go(body: str, after: str) -> None:
    assert_rewrites(CancelTransposes(), TEXT.replace("BODY", body), TEXT.replace("BODY", after))


PARTS = """(float[N,5,4] x, float[N,5,4] z) => (float[] y, float[] q)
    <int64[2] two = {2, 3}, int64[1] zero = {0}, int64[1] one = {1}, int64[1] last = {-1},
     int64[1] three = {3}, int64[2] ends = {3, 9}, int64[2] both = {0, 1}> { BODY q = Neg(z) }"""


@pytest.mark.parametrize(
    ("body", "after"),
    [
        (
            f"t = {T}(x) s = Slice(t, zero, three, last) r = Relu(s) y = {T}(r)",
            "s = Slice(x, zero, three, one) y = Relu(s)",
        ),
        (
            f"t = {T}(x) s = Slice(t, both, ends) y = {T}(s)",
            "y = Slice(x, both, ends, swapped)",
        ),
        (
            f"t = {T}(x) u = {T}(z) c = Concat<axis=-1>(t, u) y = {T}(c)",
            "y = Concat<axis=1>(x, z)",
        ),
        (
            f"t = {T}(x) a, b = Split<axis=2>(t, two) s = Relu(b) y = {T}(s)",
            "a, b = Split<axis=1>(x, two) y = Relu(b)",
        ),
        (f"t = {T}(x) y = ReduceSum<keepdims=0>(t, one)", "y = ReduceSum<keepdims=0>(x, two_)"),
        (f"t = {T}(x) y = ReduceMax<keepdims=0>(t, last)", "y = ReduceMax<keepdims=0>(x, one)"),
        (
            f"t = {T}(x) r = Relu(t) y = GlobalMaxPool(r)",
            "r = Relu(x) m = ReduceMax<keepdims=0>(r, one) y = Unsqueeze(m, two_)",
        ),
        (
            f"t = {T}(x) y = GlobalAveragePool(t)",
            "m = ReduceMean<keepdims=0>(x, one) y = Unsqueeze(m, two_)",
        ),
        (
            f"t = {T}(x) u = {T}(z) c = Concat<axis=1>(t, u) r = Tanh(c)"
            " y = ReduceMean<keepdims=0>(r, one)",
            "c = Concat<axis=2>(x, z) r = Tanh(c) y = ReduceMean<keepdims=0>(r, two_)",
        ),
    ],
)
def test_parts_and_reductions_do_not_mind(body: str, after: str) -> None:
    more = "int64[2] swapped = {0, 2}, int64[1] two_ = {2}, int64[1] zero"
    before = PARTS.replace("BODY", body)
    assert_rewrites(
        CancelTransposes(), before, PARTS.replace("BODY", after).replace("int64[1] zero", more)
    )


def test_a_part_that_is_read_elsewhere_is_transposed_for_that() -> None:
    body = f"t = {T}(x) a, b = Split<axis=2>(t, two) y = {T}(b) e = Exp(a) f = Neg(e)"
    after = f"a, y = Split<axis=1>(x, two) t = {T}(a) e = Exp(t) f = Neg(e)"
    texts = [
        PARTS.replace("BODY", t).replace("float[] q", "float[] q, float[] f") for t in (body, after)
    ]
    assert_rewrites(CancelTransposes(), *texts)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (f"t = {S}(x) y = ReduceSum<keepdims=0>(t, last)", "another order"),
        (f"t = {T}(x) y = ReduceSum<keepdims=1>(t, one)", None),
        (f"t = {S}(x) y = GlobalMaxPool(t)", "another order"),
        (f"t = {T}(x) y = ReduceSum<keepdims=0>(t)", None),
        (f"t = {T}(x) c = Softmax(t) y = ReduceSum<keepdims=0>(c, one)", None),
        (f"t = {T}(x) c = Concat<axis=1>(t, z5) y = {T}(c)", "no transposes"),
        (f"t = {T}(x) a, b = Split<axis=2>(t, two) c = Exp(a) d = Exp(b) e = {T}(a) f = {T}(b)"
         " g = Add(e, e) h = Add(f, f) i = Concat<axis=1>(g, h) k = Concat<axis=2>(c, d)"
         f" l = {T}(k) m = Concat<axis=1>(i, l) y = Softmax(m)", None),
    ],
)  # fmt: skip
def test_parts_and_reductions_that_do_mind(body: str, reason: str | None) -> None:
    text = PARTS.replace("BODY", body).replace(
        "float[N,5,4] z)", "float[N,5,4] z, float[N,4,5] z5)"
    )
    if "h = Add" in body:
        assert_keeps_outputs(CancelTransposes(), parse(text))
    else:
        assert_unchanged(CancelTransposes(), text, reason)


def test_what_else_is_read_in_between_is_transposed_for_that() -> None:
    text = TEXT.replace("(float[] y)", "(float[] y, float[] z1)")
    before = f"t = {S}(x) h = MatMul(t, w) z1 = Softmax(h) y = {S}(h)"
    after = f"y = MatMul(x, w) t = {S}(y) z1 = Softmax(t)"
    assert_rewrites(CancelTransposes(), text.replace("BODY", before), text.replace("BODY", after))


def test_a_transpose_that_is_read_elsewhere_too_stays_for_that() -> None:
    text = TEXT.replace("(float[] y)", "(float[] y, float[] z1)")
    before = f"t = {T}(x) r = Relu(t) y = {T}(r) z1 = Neg(t)"
    after = f"t = {T}(x) y = Relu(x) z1 = Neg(t)"
    assert_rewrites(CancelTransposes(), text.replace("BODY", before), text.replace("BODY", after))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (f"r = Relu(x) y = {T}(r)", "takes no transposes back"),
        (f"t = {S}(x) r = Relu(t) y = {T}(r)", "in between"),
        (f"t = {T}(x) r = Softmax(t) y = {T}(r)", "in between"),
        (f"t = {T}(x) r = MatMul(t, tall) y = {T}(r)", "in between"),
        (f"t = {S}(x) g = Gather(t, one_of) u = Unsqueeze(g, zero) y = {S}(u)", "in between"),
        (f"t = {T}(x) r = Add(t, m) y = {T}(r)", "in between"),
        (
            f"t = {T}(x) r = Relu(t) q = Neg(r) y = {T}(q) z1 = Exp(r) z2 = Exp(q)",
            "read elsewhere",
        ),
    ],
)
def test_others_stay(body: str, reason: str) -> None:
    outputs = ", ".join(f"float[] {name}" for name in ("y", "z1", "z2") if f"{name} =" in body)
    text = TEXT.replace("(float[] y)", f"({outputs})").replace("BODY", body)
    assert_unchanged(CancelTransposes(), text, reason)


ROWS = """(float[N,5,32] x) => (OUTPUTS)
    <int64[4] heads = {-1, 5, 4, 8}, int64[3] samples = {-1, 5, 8}, int64[3] steps = {5, -1, 32},
     int64[3] rows = {-1, 5, 32}, int64[2] flat = {-1, 32}, int64[3] halves = {-1, 10, 16},
     float half = {0.5}> { BODY }"""
APART = """a = Reshape(x, heads) t = Transpose<perm=[0, 2, 1, 3]>(a) s = Reshape(t, samples)
    u = Transpose<perm=[1, 0, 2]>(s) """


@pytest.mark.parametrize(
    ("body", "after"),
    [
        (APART + "y = Reshape(u, steps)", "y = Transpose<perm=[1, 0, 2]>(x)"),
        (
            APART + "v = Reshape(u, flat) y = Neg(v)",
            "w = Transpose<perm=[1, 0, 2]>(x) v = Reshape(w, flat) y = Neg(v)",
        ),
        (APART + "v = Reshape(u, steps) y = Transpose<perm=[1, 0, 2]>(v)", "y = Identity(x)"),
        (
            "a = Reshape(x, heads) t = Transpose<perm=[1, 0, 2, 3]>(a) y = Reshape(t, steps)",
            "y = Transpose<perm=[1, 0, 2]>(x)",
        ),
    ],
)
def test_transposes_in_a_row_become_one(body: str, after: str) -> None:
    texts = [ROWS.replace("OUTPUTS", "float[] y").replace("BODY", text) for text in (body, after)]
    assert_keeps_outputs(CancelTransposes(), graph := parse(texts[0]))
    found = [node for node in graph.nodes if node.op == "Transpose"]
    assert len(found) == texts[1].count("Transpose")
    assert all(node.inputs[0] is graph.inputs[0] for node in found)


@pytest.mark.parametrize(
    "body",
    [
        "t = Transpose<perm=[1, 0, 2]>(x) y = Reshape(t, flat)",
        """a = Reshape(x, heads) t = Transpose<perm=[0, 2, 1, 3]>(a) s = Reshape(t, halves)
           y = Transpose<perm=[0, 2, 1]>(s)""",
        APART + "v = Reshape(u, rows) y = Neg(v) z = Neg(s)",
        "t = Transpose<perm=[1, 0, 2]>(x) r = Reshape(t, halves) y = Transpose<perm=[1, 0, 2]>(r)",
        "t = Transpose<perm=[1, 0, 2]>(x) m = Mul(t, half) y = Transpose<perm=[0, 2, 1]>(m)",
    ],
)
def test_transposes_that_do_not_come_to_one_stay(body: str) -> None:
    outputs = "float[] y, float[] z" if "z = " in body else "float[] y"
    assert_unchanged(CancelTransposes(), ROWS.replace("OUTPUTS", outputs).replace("BODY", body))


def test_rounding_to_codes_does_not_mind() -> None:
    quantized = """(float[N,2,3] x) => (float[N,2,3] y) <{s} s, uint8 z> {{
        t = Transpose<perm=[0,2,1]>(x) q = QuantizeLinear(t, s, z) d = DequantizeLinear(q, s, z)
        y = Transpose<perm=[0,2,1]>(d)
    }}"""
    after = """(float[N,2,3] x) => (float[N,2,3] y) <float s, uint8 z> {
        q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)
    }"""
    assert_rewrites(CancelTransposes(), quantized.format(s="float"), after)
    assert_unchanged(
        CancelTransposes(), quantized.format(s="float[3]").replace("uint8 z", "uint8[3] z")
    )
