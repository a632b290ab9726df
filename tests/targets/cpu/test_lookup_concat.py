"""Rows that are looked up to be concatenated go straight to their place."""

from __future__ import annotations

import numpy as np
import pytest
from agreement import agree

from graphopt.errors import IdError
from graphopt.ir.graph import Graph
from graphopt.targets.cpu.legalize import legalize
from graphopt.testing import Compiled, parse, random_inputs, run_onnxruntime

TABLES = "float[7,4] t, float[5,3] u"
GIVEN = "int64[N] i, int32[N] j, float[N,2] d"
LOOKUPS = f"({GIVEN}) => (float[] y) <{TABLES}> {{ a = Gather(t, i) b = Gather(u, j) "
TWO = LOOKUPS + "y = Concat<axis=1>(a, d, b) }"
MATRIX = f"""(int64[N,2] m, float[N,1,4] d) => (float[] y) <{TABLES}> {{
    a = Gather(t, m) y = Concat<axis=1>(d, a) }}"""
SEQUENCES = f"""(int64[N,L] m, int64[N,L] n) => (float[] y) <{TABLES}> {{
    a = Gather(t, m) b = Gather(u, n) y = Concat<axis=-1>(a, b) }}"""
LARGE = "(int64[N] i, float[N,2] d) => (float[] y) <float[9000,40] t> { a = Gather(t, i) "
LARGE += "y = Concat<axis=1>(a, d) }"
# While a row of one table is read, memory is asked for that of another, and of later samples.
BOTH = "(int64[N] i, int64[N,2] j) => (float[] y) <float[9000,40] t, float[7000,50] u> { "
BOTH += "a = Gather(t, i) b = Gather(u, j) s = Constant<value_ints = [0, -1]>() "
BOTH += "c = Reshape(b, s) y = Concat<axis=1>(a, c) }"


EIGHT = """(int64[N] i, int32[N] j, float[N,2] d) => (float[] y)
    <int8[7,20] t, float16[7] s, int8[5,3] u, float[5] v> {
    a = graphopt.QuantizedLookup<bits=8>(t, s, i)
    b = graphopt.QuantizedLookup<bits=8>(u, v, j)
    y = Concat<axis=1>(a, d, b) }"""
FOUR = """(int64[N,3] i, float[N,3,2] d) => (float[] y) <uint8[7,9] t, float[7] s> {
    a = graphopt.QuantizedLookup<bits=4>(t, s, i)
    y = Concat<axis=-1>(a, d) }"""
HALVES = """(int64[N] i, int64[N,3] j, int64[N,2] k, float[N,2] d) => (float[] y)
    <float16[7,20] t, bfloat16[70,16] u, float16[9,5] v> {
    r = Gather(t, i)
    a = Cast<to=1>(r)
    s = Gather(u, j)
    w = Constant<value_ints = [-1, 48]>()
    e = Cast<to=1>(s)
    b = Reshape(e, w)
    p = graphopt.EmbeddingBag<mode="mean">(v, k)
    c = Cast<to=1>(p)
    y = Concat<axis=1>(a, d, b, c) }"""
BF16_BAGS = """(int64[N,3] i, int64[N,2] k, float[N,2] d) => (float[] y)
    <bfloat16[70,16] u, bfloat16[9,5] v> {
    q = graphopt.EmbeddingBag<mode="sum">(u, i)
    a = Cast<to=1>(q)
    p = graphopt.EmbeddingBag<mode="mean">(v, k)
    c = Cast<to=1>(p)
    y = Concat<axis=1>(a, d, c) }"""
ALONE = """(int64[N,3] i) => (float[] y) <bfloat16[70000,33] t> {
    r = Gather(t, i)
    y = Cast<to=1>(r) }"""
# One row a sample, made a feature of its own: ids of a large table, and of a float one.
FEATURES = """(int64[N] i, int64[N] j, float[N,1,16] d) => (float[] y)
    <int8[70000,16] t, float[70000] s, float[5,16] u> {
    a = graphopt.QuantizedLookup<bits=8>(t, s, i)
    shape = Constant<value_ints = [-1, 1, 16]>()
    c = Reshape(a, shape)
    b = Gather(u, j)
    e = Reshape(b, shape)
    y = Concat<axis=1>(c, d, e) }"""


def ops(graph: Graph) -> list[str]:
    legalize(graph, lanes=8)
    return [node.op_type for node in graph.nodes]


@pytest.mark.parametrize(
    "text",
    [TWO, MATRIX, SEQUENCES, LARGE, BOTH, EIGHT, FOUR, FEATURES, HALVES, BF16_BAGS, ALONE],
)
def test_rows_are_those_of_the_tables(text: str) -> None:
    assert [op for op in ops(parse(text)) if op != "Reshape"] == ["LookupConcat"]
    agree(text, *(random_inputs(parse(text), {"N": batch, "L": 3}) for batch in (1, 20)))


@pytest.mark.parametrize(
    "body",
    [
        "c = Concat<axis=1>(a, b) s = ReduceSum(a) r = ReduceSum(b) q = Add(s, r) y = Add(c, q) }",
        "y = Concat<axis=0>(a, a) }",
        "f = Cast<to=11>(a) g = Cast<to=11>(b) y = Concat<axis=1>(f, g) }",
        "f = Cast<to=10>(a) g = Cast<to=1>(f) h = Cast<to=10>(b) k = Cast<to=1>(h) "
        "y = Concat<axis=1>(g, k) }",
    ],
)
def test_lookups_that_are_read_otherwise_stay(body: str) -> None:
    assert "LookupConcat" not in ops(parse(LOOKUPS + body))


def test_elements_that_are_reshaped_otherwise_stay() -> None:
    """Halves of rows are no rows of the table."""
    graph = parse("""(int64[N] i, float[M,2] d) => (float[] y) <float[7,4] t> {
        a = Gather(t, i)
        s = Constant<value_ints = [-1, 2]>()
        h = Reshape(a, s)
        y = Concat<axis=1>(h, h) }""")
    assert "LookupConcat" not in ops(graph)


@pytest.mark.parametrize("text", [EIGHT, FOUR, HALVES])
def test_codes_and_halves_of_ids_outside(text: str) -> None:
    graph = parse(text)
    feeds = random_inputs(graph, {"N": 3})
    wanted = run_onnxruntime(graph, feeds)["y"]
    width = {EIGHT: 20, FOUR: 18, HALVES: 20}[text]
    feeds["i"][1] = 7
    with pytest.raises(IdError, match="id is out of range"):
        Compiled(graph)(feeds)
    wanted[1, ..., :width] = 0
    np.testing.assert_array_equal(Compiled(graph, "zero")(feeds)["y"], wanted)


@pytest.fixture(scope="module")
def policies() -> dict[str, Compiled]:
    return {
        "error": Compiled(parse(TWO)),
        "clamp": Compiled(parse(TWO), "clamp"),
        "zero": Compiled(parse(TWO), "zero"),
    }


FAR = np.iinfo(np.int64)


@pytest.mark.parametrize(("name", "stray"), [("i", FAR.max), ("i", FAR.min), ("j", 5), ("j", -6)])
def test_ids_outside(policies: dict[str, Compiled], name: str, stray: int) -> None:
    graph = parse(TWO)
    feeds = random_inputs(graph, {"N": 3})
    feeds[name][1] = stray
    with pytest.raises(IdError, match="id is out of range: Gather"):
        policies["error"](feeds)
    size = 7 if name == "i" else 5
    feeds[name][1] = min(max(stray, -size), size - 1)
    wanted = run_onnxruntime(graph, feeds)["y"]
    feeds[name][1] = stray
    np.testing.assert_array_equal(policies["clamp"](feeds)["y"], wanted)
    wanted[1, slice(0, 4) if name == "i" else slice(6, 9)] = 0
    np.testing.assert_array_equal(policies["zero"](feeds)["y"], wanted)
