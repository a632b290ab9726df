"""Which constants are embedding tables, and what indexes them."""

from __future__ import annotations

import pytest

from graphopt.analysis.tables import find_tables
from graphopt.testing import parse

PAIR = """(int64[N,3] ids) => (float[N,8] y)
<float[100,8] users, float[50,8] items, int64 first = {0}, int64 last = {2}> {
    u = Gather<axis=1>(ids, first)  i = Gather<axis=1>(ids, last)
    eu = Gather(users, u)  ei = Gather(items, i)  y = Mul(eu, ei)
}"""


def test_tables_and_who_indexes_them() -> None:
    users, items = find_tables(parse(PAIR))
    assert (users.name, users.rows, users.dim, users.dtype) == ("users", 100, 8, "float32")
    assert (users.bytes, users.indexed_by, users.lookups) == (3200, ("ids[:, 0]",), 1)
    assert (items.name, items.indexed_by) == ("items", ("ids[:, 2]",))


def test_a_table_that_several_lookups_share_is_one() -> None:
    (table,) = find_tables(
        parse("""(int64[N] a, int64[N,5] b) => (float[N,8] p, float[N,5,8] q) <float[9,8] t> {
            p = Gather(t, a)  q = Gather(t, b)
        }""")
    )
    assert (table.lookups, table.indexed_by) == (2, ("a", "b"))


def test_ids_that_are_computed() -> None:
    (table,) = find_tables(
        parse("""(float[N,4] x) => (float[N,8] y) <float[4,8] t> {
            k = ArgMax<axis=1, keepdims=0>(x)  y = Gather(t, k)
        }""")
    )
    assert table.indexed_by == ()


def test_one_hot_products_are_lookups() -> None:
    (table,) = find_tables(
        parse("""(int64[N] a) => (float[N,8] y)
        <int64 depth = {5}, float[2] values = {0, 1}, float[5,8] t> {
            h = OneHot(a, depth, values)  y = MatMul(h, t)
        }""")
    )
    assert (table.name, table.rows, table.indexed_by) == ("t", 5, ("a",))


def test_bags_are_lookups() -> None:
    (table,) = find_tables(
        parse("""(int64[I] a, int64[N] o) => (float[N,8] y) <float[9,8] t> {
            y = graphopt.EmbeddingBag<mode="mean">(t, a, o)
        }""")
    )
    assert (table.rows, table.indexed_by) == (9, ("a",))


@pytest.mark.parametrize(
    "body",
    [
        "y = Gather(t, k)",  # constant positions
        "y = Gather<axis=1>(t, a)",  # columns
        "y = MatMul(x, t)",
    ],
)
def test_what_is_no_table(body: str) -> None:
    graph = parse(
        f"(int64[N] a, float[N,4] x) => (float y)<float[4,8] t, int64[2] k = {{0, 1}}> {{ {body} }}"
    )
    assert find_tables(graph) == []
