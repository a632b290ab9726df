"""Ids are followed from the inputs to the tables that they index."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphopt.analysis.ids import id_ranges, inexact_ids
from graphopt.api import optimize
from graphopt.ir.dims import Sym
from graphopt.pipeline.report import Report
from graphopt.testing import parse, random_inputs, run_onnxruntime

N, K = Sym.named("N"), Sym.named("K")
WEIGHTS = """<float[7,4] t, float[5,4] u, int64 i1 = {1}, int64 i10 = {10}, int64[1] v0 = {0},
    int64[1] v1 = {1}, int64[1] v2 = {2}, int64[1] v3 = {3}, int64[1] m1 = {-1},
    int64[3] offsets = {0, 2, 4}, int64[3] sizes = {1, 1, 1}, int64[2] pair = {0, 1},
    int64[2] on_off = {0, 1}>"""


def found(signature: str, body: str) -> list[Any]:
    """`(input, region, low, high)` of every range."""
    graph = parse(f"{signature} => (float[] y) {WEIGHTS} {{ {body} }}")
    ranges = id_ranges(graph)
    return [(name, ids.region, ids.low, ids.high) for name in ranges for ids in ranges[name]]


VECTOR, MATRIX = "(int64[N] x)", "(int64[N,3] x)"
ALL: tuple[Any, ...] = ()


@pytest.mark.parametrize(
    ("signature", "body", "wanted"),
    [
        (VECTOR, "y = Gather(t, x)", [("x", ALL, 0, 7)]),
        ("(float[N] x)", "i = Cast<to=7>(x) y = Gather(t, i)", [("x", ALL, 0, 7)]),
        ("(int32[N] x)", "i = Unsqueeze(x, v1) y = Gather(t, i)", [("x", ALL, 0, 7)]),
        (MATRIX, "c = Slice(x, v1, v2, v1) y = Gather(t, c)", [("x", ((1, 1, 2),), 0, 7)]),
        (MATRIX, "c = Gather<axis=1>(x, i1) y = Gather(t, c)", [("x", ((1, 1, 2),), 0, 7)]),
        (MATRIX, "c = Gather<axis=1>(x, m1) y = Gather(t, c)", [("x", ((1, 2, 3),), 0, 7)]),
        (MATRIX, "c = Gather<axis=1>(x, pair) y = Gather(t, c)", [("x", ((1, 0, 2),), 0, 7)]),
        (
            MATRIX,
            "s = Slice(x, v1, v3, v1) c = Slice(s, v1, v2, v1) y = Gather(t, c)",
            [("x", ((1, 2, 3),), 0, 7)],
        ),
        (
            MATRIX,
            "a, b, c = Split<axis=1>(x, sizes) p = Gather(t, b) q = Gather(u, c) y = Add(p, q)",
            [("x", ((1, 1, 2),), 0, 7), ("x", ((1, 2, 3),), 0, 5)],
        ),
        (
            MATRIX,
            "r = Transpose(x) c = Gather(r, i1) y = Gather(t, c)",
            [("x", ((1, 1, 2),), 0, 7)],
        ),
        (
            MATRIX,
            "c = Gather<axis=1>(x, i1) r = Unsqueeze(c, v1) e = Slice(r, v0, v1, v1) "
            "y = Gather(t, e)",
            [("x", ((1, 1, 2),), 0, 7)],
        ),
        (VECTOR, "a = Sub(x, i1) y = Gather(t, a)", [("x", ALL, 1, 8)]),
        (VECTOR, "a = Add(i1, x) y = Gather(t, a)", [("x", ALL, -1, 6)]),
        (MATRIX, "a = Add(x, offsets) y = Gather(t, a)", [("x", ALL, 0, 3)]),
        (VECTOR, "f = Unsqueeze(x, v1) y = GatherElements<axis=1>(u, f)", [("x", ALL, 0, 4)]),
        (VECTOR, "f = Unsqueeze(x, v1) y = GatherND(t, f)", [("x", ALL, 0, 7)]),
        (
            "(int64[7,1] x)",
            "y = GatherND<batch_dims=1>(t, x)",
            [("x", ALL, 0, 4)],
        ),
        (
            "(int64[N] x, int64[N] z)",
            "a = Unsqueeze(z, v1) b = Unsqueeze(x, v1) c = Concat<axis=1>(a, b) y = GatherND(t, c)",
            [("z", ALL, 0, 7), ("x", ALL, 0, 4)],
        ),
        ("(int64[N,2] x)", "y = GatherND(t, x)", []),
        (VECTOR, "o = OneHot(x, i10, on_off) y = Cast<to=1>(o)", [("x", ALL, 0, 10)]),
        (
            VECTOR,
            "p = Gather(t, x) q = Gather(u, x) y = Add(p, q)",
            [("x", ALL, 0, 7), ("x", ALL, 0, 5)],
        ),
        ("(int64[N] x, float[K,4] z)", "y = Gather(z, x)", [("x", ALL, 0, K)]),
        (
            "(int64[N] x, bool[N] m, int64[N] o)",
            "o2 = Sub(i1, i1) w = Where(m, x, o2) y = Gather(t, w)",
            [("x", ALL, 0, 7)],
        ),
        (
            "(int64[N] ids, int64[K] bags)",
            'y = graphopt.EmbeddingBag<mode = "sum", empty = 0.0>(t, ids, bags)',
            [("ids", ALL, 0, 7), ("bags", ALL, 0, N + 1)],
        ),
        (VECTOR, "r = Mod(x, i1) y = Gather(t, r)", []),
        (VECTOR, "f = Cast<to=1>(x) y = Relu(f)", []),
    ],
)
def test_followed(signature: str, body: str, wanted: list[Any]) -> None:
    assert found(signature, body) == wanted


def test_each_range_names_what_looks_the_ids_up() -> None:
    graph = parse(f"{VECTOR} => (float[] y) {WEIGHTS} {{ y = Gather(t, x) }}")
    (node,) = graph.nodes
    node.origin = ("item_embedding/Gather",)
    (ids,) = id_ranges(graph)["x"]
    assert ids.node == ("item_embedding/Gather",) and ids.sorted_axis is None


LOOP = """(int64[B] offsets, int64[K] ids) => (float[] y) <float[7,4] t, bool yes = {1},
    int64[1] v0 = {0}, int64 i1 = {1}> {
    all = Concat<axis=0>(offsets, v0)
    trips0 = Size(offsets)
    trips = Sub(trips0, i1)
    y = Loop(trips, yes) <
        body = b (int64 i, bool c) => (bool c2, float[4] row) {
            c2 = Identity(c)
            j = Add(i, i1)
            s = Gather(all, i)
            e = Gather(all, j)
            s1 = Unsqueeze(s, v0)
            e1 = Unsqueeze(e, v0)
            bag = Slice(ids, s1, e1)
            rows = Gather(t, bag)
            row = ReduceSum<keepdims=0>(rows, v0)
        }
    >
}"""


def test_offsets_of_exported_bags_do_not_decrease() -> None:
    graph = parse(LOOP)
    ranges = id_ranges(graph)
    (offsets,), (ids,) = ranges["offsets"], ranges["ids"]
    assert (offsets.sorted_axis, offsets.low, offsets.high) == (0, 0, K + 1)
    assert (ids.low, ids.high) == (0, 7)
    for seed in range(5):
        feeds = random_inputs(graph, {"B": 4, "K": 9}, seed)
        assert feeds["offsets"][0] == 0 and np.all(np.diff(feeds["offsets"]) >= 0)
        assert feeds["offsets"].max() <= 9 and feeds["ids"].max() < 7
        run_onnxruntime(graph, feeds)


def test_scanned_ids_are_followed_into_the_body() -> None:
    graph = parse("""(int64[N,3] ids, float[3,4] s) => (float[] y) <float[7,4] t> {
        y = Scan(s, ids) <
            num_scan_inputs = 1,
            body = b (float[3,4] u, int64[3] row) => (float[3,4] v) {
                e = Gather(t, row)
                v = Add(u, e)
            }
        >
    }""")
    (ids,) = id_ranges(graph)["ids"]
    assert (ids.low, ids.high) == (0, 7)


@pytest.mark.parametrize(
    ("dtype", "rows", "lost"),
    [
        ("float", 2**24 + 1, None),
        ("float", 2**24 + 2, 2**24 + 1),
        ("float16", 2**11 + 2, 2**11 + 1),
        ("double", 2**24 + 2, None),
        ("int64", 2**24 + 2, None),
    ],
)
def test_floats_too_narrow_for_their_ids(dtype: str, rows: int, lost: int | None) -> None:
    text = f"({dtype}[N] x, float[{rows},1] t) => (float[N,1] y)"
    (found,) = inexact_ids(parse(text + "{ i = Cast<to=7>(x) y = Gather(t, i) }")) or [None]
    assert (found and found[2]) == lost


def test_narrow_ids_are_warned_of() -> None:
    report = Report()
    text = "(float16[N,2] x, float[4000,1] t) => (float[N,1] y) <int64 k = {1}>"
    text += "{ c = Gather<axis=1>(x, k) i = Cast<to=7>(c) y = Gather(t, i) }"
    optimize(parse(text), report=report)
    (warning,) = report.warnings
    assert warning.startswith(
        "input 'x'[axis 1, 1:2] carries ids of y as float16, which has no 2049"
    )


def test_stacked_tables_have_ranges_by_column() -> None:
    graph = parse("""(float[N,3] x) => (float[] y)
    <float[12,4] t, int64[2] rows = {7, 5}, int64[2] starts = {0, 7}, int64[1] one = {1},
     int64[1] three = {3}> {
        c = Slice(x, one, three, one)
        i = Cast<to=7>(c)
        r = graphopt.TableRows(i, rows, starts)
        y = Gather(t, r)
    }""")
    ranges = [(ids.region, ids.low, ids.high) for ids in id_ranges(graph)["x"]]
    assert ranges == [(((1, 1, 2),), 0, 7), (((1, 2, 3),), 0, 5)]


@pytest.mark.parametrize("joined", [False, True])
def test_bags_of_several_fields(joined: bool) -> None:
    given = "int64[B] o, int64[B] p" if joined else "int64[2,B] offsets"
    made = "v = Concat<axis=0>(o, p) offsets = Reshape(v, shape)" if joined else ""
    graph = parse(f"""({given}, int64[n] i, int64[m] j) => (float[] y)
    <float[12,4] t, int64[2] rows = {{7, 5}}, int64[2] starts = {{0, 7}},
     int64[2] shape = {{2, -1}}> {{
        {made}
        y = graphopt.EmbeddingBags<mode="sum">(t, rows, starts, offsets, i, j)
    }}""")
    ranges = id_ranges(graph)
    assert [(ids.low, ids.high) for name in "ij" for ids in ranges[name]] == [(0, 7), (0, 5)]
    names = ["o", "p"] if joined else ["offsets"]
    found = [(r.region, r.high, r.sorted_axis) for name in names for r in ranges[name]]
    n, m = Sym.named("n") + 1, Sym.named("m") + 1
    if joined:
        assert found == [((), n, 0), ((), m, 0)]
    else:
        assert found == [(((0, 0, 1),), n, 1), (((0, 1, 2),), m, 1)]
    assert run_onnxruntime(graph, random_inputs(graph))["y"].shape == (3, 2, 4)
