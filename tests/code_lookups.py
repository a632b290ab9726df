"""Lookups of codes, 0 not being the one that stands for zero, with ids that their tables lack."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, numpy_helper
from onnx_models import model, run

ROWS = 5
IDS = np.array([[0, 4, -1], [-5, 5, -6], [2**62, 3, -(2**63)], [1, 2, 2]])
_VALID = (IDS >= -ROWS) & (IDS < ROWS)
ONE = "float s = {0.1}, uint8 z = {7}"
FORMS = {
    "direct": f"""<{ONE}> {{ g = Gather(t, i) y = DequantizeLinear(g, s, z) }}""",
    "moved": f"""<{ONE}> {{ g = Gather(t, i) f = Flatten(g) c = Concat<axis=1>(f, f)
        y = DequantizeLinear(c, s, z) }}""",
    "restored before": f"""<{ONE}> {{ d = DequantizeLinear(t, s, z) y = Gather(d, i) }}""",
    "rounded again": f"""<{ONE}> {{ d = DequantizeLinear(t, s, z) g = Gather(d, i)
        q = QuantizeLinear(g, s, z) f = Flatten(q) y = DequantizeLinear(f, s, z) }}""",
    "by columns": """<float[3] s = {0.1, 0.2, 0.3}, uint8[3] z = {3, 0, 250}> {
        g = Gather(t, i) y = DequantizeLinear<axis=2>(g, s, z) }""",
    "by columns, in one row": """<float[9] s = {0.1, 0.2, 0.3, 0.1, 0.2, 0.3, 0.1, 0.2, 0.3},
        uint8[9] z = {3, 0, 250, 3, 0, 250, 3, 0, 250}, int64[2] r = {-1, 9}> {
        g = Gather(t, i) f = Reshape(g, r) y = DequantizeLinear<axis=1>(f, s, z) }""",
    "by columns, moved": """<float[3] s = {0.1, 0.2, 0.3}, uint8[3] z = {3, 0, 250},
        int64[1] a = {1}, int64[1] b = {3}, int64[1] c = {0}> {
        g = Gather(t, i) h = Transpose<perm=[2,1,0]>(g)
        p = Slice(h, a, b, c) q = Slice(h, c, a, c, a) e = Concat<axis=0>(q, p)
        x = Transpose<perm=[1,2,0]>(e) n = Transpose<perm=[1,0,2]>(x)
        y = DequantizeLinear<axis=-1>(n, s, z) }""",
    "in parts": """<float[3] s = {0.1, 0.2, 0.3}, uint8[3] z = {3, 0, 250}, float o = {0.1},
        float[2] p = {0.2, 0.3}, uint8 l = {3}, uint8[2] m = {0, 250}, int64[2] k = {1, 2}> {
        g = Gather(t, i) u, v = Split<axis=2>(g, k) a = DequantizeLinear(u, o, l)
        b = DequantizeLinear<axis=2>(v, p, m) y = Concat<axis=2>(a, b) }""",
    "the greatest": f"""<{ONE}, int64[1] k = {{1}}> {{ g = Gather(t, i) m = ReduceMax(g, k)
        y = DequantizeLinear(m, s, z) }}""",
    "two meanings": f"""<{ONE}, uint8 k = {{90}}> {{ g = Gather(t, i) f = Flatten(g)
        a = DequantizeLinear(f, s, z) b = DequantizeLinear(f, s, k) c = DequantizeLinear(f, s)
        y = Concat<axis=1>(a, b, c) }}""",
    "signed": """<float s = {0.1}, int8 z = {-7}, float v = {0.02}, int8 o = {0},
        int8[9,1] w = {1, 2, 3, 4, 5, 6, 7, 8, 9}> {
        d = DequantizeLinear(t, s, z) q = QuantizeLinear(d, v, z) g = Gather(q, i) f = Flatten(g)
        x = DequantizeLinear(f, v, z) c = DequantizeLinear(w, v, o) y = MatMul(x, c) }""",
    "in integers": """<uint8 z = {7}, int8[9,2] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 8, 7, 6, 5, 4, 3,
        2, 1, 0}> { g = Gather(t, i) f = Flatten(g) m = MatMulInteger(f, w, z)
        y = Cast<to=1>(m) }""",
    "elements": f"""<{ONE}> {{ g = GatherElements(t, i) y = DequantizeLinear(g, s, z) }}""",
    "tuples": f"""<{ONE}, int64[1] last = {{2}}> {{ k = Unsqueeze(i, last) g = GatherND(t, k)
        y = DequantizeLinear(g, s, z) }}""",
}


def lookup(form: str, rows: int = ROWS) -> ModelProto:
    """int64[N,3] i -> float y, of a table of at most `ROWS` rows, or one more, which are zeros."""
    signed = form == "signed"
    codes = np.random.default_rng(1).integers(0, 100, (ROWS, 3))
    zeros = [3, 0, 250] if "250" in FORMS[form] else [-7 if signed else 7] * 3
    table = np.append(codes, [zeros], 0)[:rows].astype(np.int8 if signed else np.uint8)
    source = model(f"g (int64[N,3] i) => (float[] y) {FORMS[form]}", opset=21)
    source.graph.initializer.append(numpy_helper.from_array(table, "t"))
    return source


def with_zeros(form: str) -> np.ndarray:
    """What `lookup` has to give for `IDS` where bad ids read rows of zeros, by ONNX Runtime."""
    ids = np.where(_VALID, IDS % ROWS, ROWS)
    found = run(lookup(form, ROWS + 1), {"i": ids})[0]
    if form == "two meanings":  # no code stands for zero in all of them
        found[np.tile(np.repeat(~_VALID, 3, axis=1), 3)] = 0
    return found
