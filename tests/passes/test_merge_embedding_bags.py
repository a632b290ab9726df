"""Embedding bags that are concatenated become one op."""

from __future__ import annotations

import pytest

from graphopt.passes.merge_embedding_bags import MergeEmbeddingBags
from graphopt.testing import assert_rewrites, assert_unchanged

PASS = MergeEmbeddingBags(min_fields=2)
INPUTS = "int64[B] o, int64[B] p, int64[n] i, int64[m] j, float[B,3] d"
TABLES = "float[7,3] t, float[5,3] u"
BAGS = """a = graphopt.EmbeddingBag<{0}>(t, i, o)
    b = graphopt.EmbeddingBag<{0}>(u, j, p)"""
WHOLE = """float[12,3] tu, int64[2] rows = {7, 5}, int64[2] starts = {0, 7},
    int64[2] fields = {2, -1}, int64[2] shape = {-1, 6}"""
MERGED = """c = Concat<axis=0>(o, p) offsets = Reshape(c, fields)
    ab = graphopt.EmbeddingBags<{}>(tu, rows, starts, offsets, i, j) w = Reshape(ab, shape)"""


def before(joined: str, attrs: str = 'mode="sum"') -> str:
    return f"({INPUTS}) => (float[] y) <{TABLES}> {{ {BAGS.format(attrs)} {joined} }}"


def test_neighbours_among_other_operands() -> None:
    wanted = MERGED.format('mode="sum"') + " y = Concat<axis=1>(d, w, d)"
    after = f"({INPUTS}) => (float[] y) <{WHOLE}> {{ {wanted} }}"
    assert_rewrites(PASS, before("y = Concat<axis=1>(d, a, b, d)"), after)


def test_mean() -> None:
    body = MERGED.format('mode="mean"').replace("w = ", "y = ")
    after = f"({INPUTS}) => (float[] y) <{WHOLE}> {{ {body} }}"
    assert_rewrites(PASS, before("y = Concat<axis=1>(a, b)", 'mode="mean"'), after)


def test_bags_with_ends() -> None:
    signature = INPUTS.replace("[B] o", "[C] o").replace("[B] p", "[C] p").replace("[B,3]", "[2,3]")
    attrs = 'mode="sum", include_last_offset=1'
    body = MERGED.format(attrs).replace("w = ", "y = ")
    joined = before("y = Concat<axis=1>(a, b)", attrs).replace(INPUTS, signature)
    after = f"({signature}) => (float[] y) <{WHOLE}> {{ {body} }}"
    assert_rewrites(PASS, joined, after)


@pytest.mark.parametrize(
    ("order", "rows"),
    [(("o", "p"), "int64[2]"), (("p", "o"), "int64[2]"), (("o", "p"), "int64[3]")],
)
def test_rows_of_a_matrix_of_offsets(order: tuple[str, str], rows: str) -> None:
    """Taken apart by a Split; they are that matrix again only in its own order, and all of them."""
    sizes = "int64[2] one = {1, 1}" if rows == "int64[2]" else "int64[3] one = {1, 1, 1}"
    parts = "r, s" if rows == "int64[2]" else "r, s, z"
    taken = f"{parts} = Split<axis=0>(m, one) o = Reshape(r, flat) p = Reshape(s, flat)"
    o, p = order
    bags = f"""a = graphopt.EmbeddingBag<mode="sum">(t, i, {o})
        b = graphopt.EmbeddingBag<mode="sum">(u, j, {p}) y = Concat<axis=1>(a, b)"""
    count = rows[6:7]
    given = f"(int64[{count},B] m, int64[n] i, int64[k] j) => (float[] y)"
    text = f"{given} <{TABLES}, {sizes}, int64[1] flat = {{-1}}> {{ {taken} {bags} }}"
    merged = """ab = graphopt.EmbeddingBags<mode="sum">(tu, rows, starts, m, i, j)
        y = Reshape(ab, shape)"""
    if order == ("o", "p") and count == "2":
        whole = WHOLE.replace("int64[2] fields = {2, -1}, ", "")
        assert_rewrites(PASS, text, f"{given} <{whole}> {{ {merged} }}")
    else:
        joined = f"{taken} c = Concat<axis=0>({o}, {p}) offsets = Reshape(c, fields)"
        merged = merged.replace(" m,", " offsets,")
        weights = f"{WHOLE}, {sizes}, int64[1] flat = {{-1}}"
        assert_rewrites(PASS, text, f"{given} <{weights}> {{ {joined} {merged} }}")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (before("y = Concat<axis=0>(a, b)"), None),
        (before("y = Concat<axis=1>(a, d, b)"), None),
        (before("y = Concat<axis=1>(a, b)", 'mode="max"'), None),
        (before("y = Concat<axis=1>(a, b)", 'mode="sum", padding_idx=0'), None),
        (before("y = Concat<axis=1>(a, b)", 'mode="sum", empty=1.0'), None),
        (before("y = Concat<axis=1>(a, b)").replace("u, j, p", "u, j, o"), "too few to pay"),
        (before("z = Concat<axis=1>(a, b) y = Add(z, z)"), "too few to pay"),
    ],
)
def test_refusals(text: str, reason: str | None) -> None:
    assert_unchanged(MergeEmbeddingBags(), text, reason)


def test_a_bag_that_is_read_elsewhere_stays() -> None:
    text = before("z = Concat<axis=1>(a, b) q = Concat<axis=1>(a, d) y = Add(z, q)")
    assert_unchanged(PASS, text, "also read elsewhere")
    output = before("y = Concat<axis=1>(a, b)").replace("(float[] y)", "(float[] y, float[] b)")
    assert_unchanged(PASS, output, "also read elsewhere")


def test_tables_may_not_grow_without_bound() -> None:
    text = before("z = Concat<axis=1>(a, b) s = ReduceSum(t) y = Add(z, s)")
    assert_unchanged(MergeEmbeddingBags(2, max_bytes=100), text, "take 144 bytes")
    assert_unchanged(MergeEmbeddingBags(2, max_growth=50), text, "would grow by 84 bytes")
