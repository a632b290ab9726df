"""Products of pairs of features, however exporters write them, are one op."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from graphopt.ir.dims import Sym
from graphopt.ir.graph import Graph, Value
from graphopt.ir.types import TensorType
from graphopt.passes.fuse_pair_products import FusePairProducts
from graphopt.pipeline.base import PassContext
from graphopt.testing import assert_keeps_outputs, assert_rewrites

F, D = 5, 3
PAIRS = list(combinations(range(F), 2))
LEFT, RIGHT = (list(side) for side in zip(*PAIRS))
POSITIONS = [i * F + j for i, j in PAIRS]
RNG = np.random.default_rng(1)


class Model:
    """A graph of features x [N, F, D], and what forms of products are written with."""

    def __init__(self, dtype: str = "float32") -> None:
        self.graph = Graph(opsets={"": 18})
        self.x = self.graph.add_input("x", TensorType(dtype, (Sym.named("N"), F, D)))

    def op(self, op_type: str, *inputs: Value | list[int], **attrs: object) -> Value:
        values = [
            self.graph.constant(np.array(v, np.int64)) if isinstance(v, list) else v for v in inputs
        ]
        return self.graph.insert(op_type, values, dict(attrs)).output  # type: ignore[arg-type]

    def weights(self, *shape: int) -> Value:
        return self.graph.constant(RNG.standard_normal(shape).astype(np.float32))

    def parts(self) -> list[Value]:
        split = self.graph.insert("Split", [self.x], {"axis": 1, "num_outputs": F}, outputs=F)
        return list(split.outputs)

    def fused(self, result: Value) -> dict[str, object]:
        """The attributes of the only op of ours that is left of the graph."""
        self.graph.set_outputs([result], ["y"])
        assert_keeps_outputs(FusePairProducts(), self.graph)
        ours = [node for node in self.graph.nodes if node.domain == "graphopt"]
        (node,) = ours
        assert not any(n.op in ("Mul", "MatMul", "ReduceSum") for n in self.graph.nodes)
        return node.attrs


def joined(m: Model) -> Value:
    parts = m.parts()
    sides = [m.op("Concat", *(parts[k] for k in side), axis=1) for side in (LEFT, RIGHT)]
    return m.op("Mul", *sides)


def gathered(m: Model) -> Value:
    return m.op("Mul", *(m.op("Gather", m.x, side, axis=1) for side in (LEFT, RIGHT)))


def one_by_one(m: Model) -> Value:
    rows = [m.op("Reshape", part, [-1, D]) for part in m.parts()]
    products = [m.op("Mul", rows[i], rows[j]) for i, j in PAIRS]
    return m.op("Concat", *products, axis=1)


def stacked(m: Model) -> Value:
    rows = [m.op("Slice", m.x, [k], [k + 1], [1]) for k in range(F)]
    flat = [m.op("Reshape", row, [-1, D]) for row in rows]
    products = [m.op("Mul", flat[i], flat[j]) for i, j in PAIRS]
    return m.op("Concat", *(m.op("Reshape", p, [-1, 1, D]) for p in products), axis=1)


def columns(m: Model) -> Value:
    flat = m.op("Reshape", m.x, [-1, F * D])
    rows = [m.op("Slice", flat, [k * D], [k * D + D], [1]) for k in range(F)]
    return m.op("Concat", *(m.op("Mul", rows[i], rows[j]) for i, j in PAIRS), axis=-1)


@pytest.mark.parametrize(
    ("form", "is_gathered"),
    [(joined, 0), (gathered, 1), (one_by_one, 0), (stacked, 0), (columns, 0)],
)
def test_forms_without_matrices(form, is_gathered: int) -> None:
    m = Model()
    assert m.fused(form(m)) == {"pairs": POSITIONS, "gathered": is_gathered}


def one_for_all(m: Model) -> tuple[Value, list[int], int]:
    w, parts = m.weights(D, D), m.parts()
    products = [m.op("Mul", m.op("MatMul", parts[i], w), parts[j]) for i, j in PAIRS]
    return m.op("Concat", *products, axis=1), [0] * len(PAIRS), 0


def one_for_each(m: Model) -> tuple[Value, list[int], int]:
    parts = m.parts()
    own = [m.op("MatMul", part, m.weights(D, D)) for part in parts[:-1]]
    products = [m.op("Mul", parts[j], own[i]) for i, j in PAIRS]
    return m.op("Concat", *products, axis=1), LEFT, 0


def one_a_pair(m: Model) -> tuple[Value, list[int], int]:
    parts = m.parts()
    left = [m.op("MatMul", parts[i], m.weights(D, D)) for i in LEFT]
    products = [m.op("Mul", own, parts[j]) for own, j in zip(left, RIGHT)]
    return m.op("Concat", *products, axis=1), list(range(len(PAIRS))), 0


def gathered_one_for_all(m: Model) -> tuple[Value, list[int], int]:
    left = m.op("Gather", m.op("MatMul", m.x, m.weights(D, D)), LEFT, axis=1)
    return m.op("Mul", left, m.op("Gather", m.x, RIGHT, axis=1)), [0] * len(PAIRS), 1


def gathered_one_for_each(m: Model) -> tuple[Value, list[int], int]:
    tall = m.op("Reshape", m.x, [-1, F, 1, D])
    own = m.op("Reshape", m.op("MatMul", tall, m.weights(F, D, D)), [-1, F, D])
    left = m.op("Gather", own, LEFT, axis=1)
    return m.op("Mul", left, m.op("Gather", m.x, RIGHT, axis=1)), LEFT, 1


def outer_products(m: Model) -> tuple[Value, list[int], int]:
    p, q = (m.op("Gather", m.x, side, axis=1) for side in (LEFT, RIGHT))
    wide = m.op("Mul", m.op("Reshape", p, [-1, 1, 10, D]), m.weights(D, 10, D))
    sums = m.op("ReduceSum", wide, [-1], keepdims=0)
    turned = m.op("Transpose", sums, perm=[0, 2, 1])
    return m.op("Mul", turned, q), list(range(len(PAIRS))), 1


@pytest.mark.parametrize(
    "form",
    [
        one_for_all,
        one_for_each,
        one_a_pair,
        gathered_one_for_all,
        gathered_one_for_each,
        outer_products,
    ],
)
def test_forms_with_matrices(form) -> None:
    m = Model()
    result, matrices, is_gathered = form(m)
    wanted = {"pairs": POSITIONS, "gathered": is_gathered, "matrices": matrices}
    assert m.fused(result) == wanted


def test_features_of_several_values_are_joined() -> None:
    text = """(float[N,2] a, float[N,2] b, float[N,2,2] c, float[N,1,2] z) => (float[] y)
        <int64[1] o = {0}, int64[1] i = {1}, int64[1] t = {2}, int64[2] row = {-1, 2},
        int64[3] up = {-1, 1, 2}, int64[2] four = {-1, 4}, int64[3] whole = {-1, 4, 2},
        int64[3] six = {-1, 6, 2}> {"""
    one_by_one = """
        s = Slice(c, o, i, i) cs = Reshape(s, row) u = Slice(c, i, t, i) ct = Reshape(u, row)
        p = Mul(a, b) q = Mul(a, cs) r = Mul(a, ct) v = Mul(cs, b) w = Mul(b, ct) x = Mul(cs, ct)
        p1 = Reshape(p, up) q1 = Reshape(q, up) r1 = Reshape(r, up)
        v1 = Reshape(v, up) w1 = Reshape(w, up) x1 = Reshape(x, up)
        y = Concat<axis=1>(z, p1, q1, r1, v1, w1, x1) }"""
    at_once = """
        d = Reshape(c, four) f = Concat<axis=1>(a, b, d) g = Reshape(f, whole)
        h = graphopt.PairProducts<pairs=[1, 2, 3, 9, 7, 11], gathered=0>(g)
        y = Concat<axis=1>(z, h) }"""
    assert_rewrites(FusePairProducts(), text + one_by_one, text + at_once)


def few(m: Model) -> Value:
    return m.op("Mul", *(m.op("Gather", m.x, side, axis=1) for side in ([0, 1, 2], [1, 2, 3])))


def whole(m: Model) -> Value:
    return m.op("Mul", m.x, m.op("Exp", m.x))


def partly_weighted(m: Model) -> Value:
    parts, w = m.parts(), m.weights(D, D)
    left = [m.op("MatMul", parts[i], w) if i else parts[i] for i in LEFT]
    products = [m.op("Mul", own, parts[j]) for own, j in zip(left, RIGHT)]
    return m.op("Concat", *products, axis=1)


def both_weighted(m: Model) -> Value:
    own, w = m.op("MatMul", m.x, m.weights(D, D)), m.weights(D, D)
    right = m.op("Gather", m.op("MatMul", m.x, w), RIGHT, axis=1)
    return m.op("Mul", m.op("Gather", own, LEFT, axis=1), right)


def along_columns(m: Model) -> Value:
    parts = m.parts()
    stacked_columns = [
        m.op("Reshape", m.op("Mul", parts[i], parts[j]), [-1, D, 1]) for i, j in PAIRS
    ]
    return m.op("Concat", *stacked_columns, axis=2)


def of_samples(m: Model) -> Value:
    return m.op("Mul", m.op("Gather", m.x, [0, 0, 0], axis=0), m.op("Gather", m.x, [0], axis=0))


def of_a_sequence(m: Model) -> Value:
    parts = m.op("SplitToSequence", m.x, axis=1)
    return m.op("Concat", *(m.op("SequenceAt", parts, [k]) for k in range(3)), axis=1)


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        (few, "less than 3 pairs"),
        (of_a_sequence, None),
        (whole, None),
        (partly_weighted, "only some of the left features"),
        (both_weighted, None),
        (along_columns, None),
        (of_samples, None),
    ],
)
def test_others_stay(form, reason: str | None) -> None:
    m, ctx = Model(), PassContext()
    m.graph.set_outputs([form(m)], ["y"])
    assert not FusePairProducts().run(m.graph, ctx)
    assert reason is None or any(reason in why for _, _, why in ctx.stats.refusals)


def test_other_dtypes_stay() -> None:
    m, ctx = Model("double"), PassContext()
    m.graph.set_outputs([gathered(m)], ["y"])
    assert not FusePairProducts().run(m.graph, ctx)
