"""Lookups by columns of one matrix become one."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from graphopt.ir.verifier import verify
from graphopt.passes.fuse_lookups import FuseLookups
from graphopt.pipeline.base import PassContext
from graphopt.testing import assert_rewrites, assert_unchanged, parse, run_onnxruntime

PASS = FuseLookups(min_fields=3)
TABLES = "float[7,4] t, float[5,4] u"
SLICED = "i = Slice(x, c1, c2, c1) j = Slice(x, c2, c3, c1) k = Slice(x, c3, c4, c1)"
COLUMNS = "int64[1] c1 = {1}, int64[1] c2 = {2}, int64[1] c3 = {3}, int64[1] c4 = {4}"
SCALARS = "int64 c1 = {1}, int64 c2 = {2}, int64 c3 = {-2}"
NUMBERS = "int64[3] rows = {7, 5, 7}, int64[3] starts = {0, 7, 0}"
WHOLE = f"float[12,4] tu, {NUMBERS}, int64[1] c1 = {{1}}, int64[1] c4 = {{4}}"
TAKEN = "ids = Slice(x, c1, c4, c1) n = graphopt.TableRows(ids, rows, starts) y = Gather(tu, n)"
GATHERS = "a = Gather(t, i) b = Gather(u, j) c = Gather(t, k)"


def sliced(body: str, weights: str = f"{TABLES}, {COLUMNS}") -> str:
    return f"(int64[N,5] x) => (float[] y) <{weights}> {{ {SLICED} {GATHERS} {body} }}"


def test_columns_with_their_axis() -> None:
    after = f"(int64[N,5] x) => (float[] y) <{WHOLE}> {{ {TAKEN} }}"
    assert_rewrites(PASS, sliced("y = Concat<axis=1>(a, b, c)"), after)
    taken = TAKEN.replace("y = ", "f = ") + " y = Reshape(f, s)"
    after = f"(int64[N,5] x) => (float[] y) <{WHOLE}, int64[3] s = {{-1, 1, 12}}> {{ {taken} }}"
    assert_rewrites(PASS, sliced("y = Concat<axis=-1>(a, b, c)"), after)


def test_columns_without_their_axis() -> None:
    taken = "i = Gather<axis=1>(x, c1) j = Gather<axis=1>(x, c2) k = Gather<axis=-1>(x, c3)"
    body = f"{taken} {GATHERS} y = Concat<axis=1>(a, b, c)"
    before = f"(int64[N,5] x) => (float[] y) <{TABLES}, {SCALARS}> {{ {body} }}"
    taken = TAKEN.replace("y = ", "f = ") + " y = Reshape(f, s)"
    after = f"(int64[N,5] x) => (float[] y) <{WHOLE}, int64[2] s = {{-1, 12}}> {{ {taken} }}"
    assert_rewrites(PASS, before, after)


def test_what_lies_between_columns_stays() -> None:
    before = sliced("z = Gather(u, j) y = Concat<axis=1>(a, b, c, d, z)").replace(
        "int64[N,5] x)", "int64[N,5] x, float[N,1,4] d)"
    )
    taken = TAKEN.replace("y = ", "f = ") + " j = Slice(x, c2, c3, c1) z = Gather(u, j)"
    weights = f"{WHOLE}, float[5,4] u, int64[1] c2 = {{2}}, int64[1] c3 = {{3}}"
    after = f"""(int64[N,5] x, float[N,1,4] d) => (float[] y) <{weights}>
        {{ {taken} y = Concat<axis=1>(f, d, z) }}"""
    assert_rewrites(PASS, before, after)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("v = Concat<axis=1>(a, b, c) w = Concat<axis=1>(v, a) y = Neg(w)", "also read elsewhere"),
        ("y = Concat<axis=1>(a, b)", "too few to pay"),
        ("y = Concat<axis=1>(a, c, b)", "too few to pay"),
        ("y = Concat<axis=0>(a, b, c)", None),
    ],
)
def test_refusals(body: str, reason: str | None) -> None:
    text = sliced(body)
    if "a, c, b" in body:  # columns 1, 3, 2: none follows another
        assert_unchanged(PASS, text)
    else:
        assert_unchanged(PASS, text, reason)


def test_rows_of_another_width_do_not_take_part() -> None:
    text = sliced("y = Concat<axis=2>(a, b, c)").replace("float[5,4] u", "float[5,3] u")
    assert_unchanged(PASS, text)


def test_tables_that_others_read_may_not_be_copied_without_bound() -> None:
    text = sliced("z = Concat<axis=1>(a, b, c) o = ReduceSum(t) y = Add(z, o)")
    assert_unchanged(FuseLookups(3, max_growth=64), text, "would grow by 112 bytes")
    assert_unchanged(FuseLookups(3, max_bytes=64), text, "take 192 bytes")


def test_an_output_stays() -> None:
    text = sliced("y = Concat<axis=1>(a, b, c)").replace("(float[] y)", "(float[] y, float[] b)")
    assert_unchanged(PASS, text, "also read elsewhere")


# --------------------------------------------------------------- computed of ids

# Every field hashed on its own: by remainders, with quotients as PyTorch's exporters write them.
# Divisor, rows of quotients, rows of remainders.
FIELDS = {"a": (4, 6, 4), "b": (5, 5, 5), "c": (4, 3, 4)}
MATRIX = "(int64[N,3] x) => (float[] y)"
FLOORED = """p{f} = Div(x{f}, c{f}) n{f} = Less(x{f}, zero) e{f} = Equal(m{f}, zero)
    o{f} = Not(e{f}) d{f} = And(n{f}, o{f}) s{f} = Sub(p{f}, one) q{f} = Where(d{f}, s{f}, p{f})"""
FLOATS = "w{f} = Cast<to=1>(x{f}) v{f} = Div(w{f}, g{f}) u{f} = Floor(v{f}) q{f} = Cast<to=7>(u{f})"


def hashed(per_field: str, join: str, columns: str = "abc") -> str:
    """The text of a model that does `per_field` for each of three columns."""
    body, weights = "", "int64 zero = {0}, int64 one = {1}, int64[3] side = {-1, 1, 4}"
    for k, f in enumerate(columns):
        divisor, quotients, remainders = FIELDS[f]
        take = f"x{f} = Gather<axis=1>(x, k{f}) m{f} = Mod(x{f}, c{f}) "
        body += take + per_field.replace("{f}", f) + "\n"
        weights += f", int64 k{f} = {{{k}}}, int64 c{f} = {{{divisor}}}, float g{f} = {{{divisor}}}"
        weights += f", float[{quotients},4] t{f}, float[{remainders},4] r{f}"
    return f"{MATRIX} <{weights}> {{ {body} y = {join} }}"


LOOK_UP = "h{f} = Gather(t{f}, q{f}) i{f} = Gather(r{f}, m{f}) "
FORMS = {
    "remainders": ("z{f} = Gather(r{f}, m{f})", "Concat<axis=1>(za, zb, zc)"),
    "quotients": (f"{FLOORED} z{{f}} = Gather(t{{f}}, q{{f}})", "Concat<axis=1>(za, zb, zc)"),
    "products": (f"{FLOORED} {LOOK_UP} z{{f}} = Mul(h{{f}}, i{{f}})", "Concat<axis=1>(za, zb, zc)"),
    "sums, stacked": (
        f"{FLOATS} {LOOK_UP} s{{f}}0 = Add(h{{f}}, i{{f}}) z{{f}} = Reshape(s{{f}}0, side)",
        "Concat<axis=1>(za, zb, zc)",
    ),
    "stacked, side by side": (
        f"{FLOATS} {LOOK_UP} s{{f}}0 = Sub(h{{f}}, i{{f}}) z{{f}} = Reshape(s{{f}}0, side)",
        "Concat<axis=2>(za, zb, zc)",
    ),
}


@pytest.mark.parametrize(("per_field", "join"), FORMS.values(), ids=FORMS)
def test_what_is_computed_of_each_column_is_computed_of_all(per_field: str, join: str) -> None:
    graph = parse(hashed(per_field, join))
    source = graph.clone()
    assert PASS.run(graph, PassContext())
    verify(graph)
    counts = Counter(node.op_type for node in graph.nodes)
    once = {"Div", "Mod", "Where", "Cast", "Concat", "Mul", "Floor"}
    assert all(counts[op] <= (2 if op == "Cast" else 1) for op in once)
    assert counts["Gather"] == per_field.count("Gather")
    assert counts["TableRows"] == (1 if "t{f}" in per_field else 0)  # remainders need none
    assert not PASS.run(graph, PassContext())
    for ids in ([[0, 0, 0]], [[23, 24, 11], [-1, -25, -12], [-4, 7, 5], [3, -8, 9]]):
        feeds = {"x": np.array(ids)}
        found, wanted = (run_onnxruntime(g, feeds)["y"] for g in (graph, source))
        np.testing.assert_array_equal(found, wanted)


def test_remainders_name_rows_and_need_no_check() -> None:
    graph = parse(hashed(*FORMS["remainders"]))
    assert PASS.run(graph, PassContext())
    assert [n.op_type for n in graph.nodes] == ["Mod", "Add", "Gather", "Reshape"]
    wide = hashed(*FORMS["remainders"]).replace("float[4,4] ra", "float[3,4] ra")
    graph = parse(wide)
    assert PASS.run(graph, PassContext())
    assert "TableRows" in [n.op_type for n in graph.nodes]
    with pytest.raises(Exception, match="out of data bounds"):
        run_onnxruntime(graph, {"x": np.array([[3, 0, 0]])})


@pytest.mark.parametrize("stray", [24, -25])
def test_quotients_outside_stay_an_error(stray: int) -> None:
    graph = parse(hashed(*FORMS["products"]))
    assert PASS.run(graph, PassContext())
    with pytest.raises(Exception, match="out of data bounds"):
        run_onnxruntime(graph, {"x": np.array([[stray, 0, 0]])})


def test_one_table_for_all_columns_is_not_stacked() -> None:
    text = sliced("y = Concat<axis=1>(a, b, c)").replace("Gather(u, j)", "Gather(t, j)")
    taken = "ids = Slice(x, c1, c4, c1) y = Gather(t, ids)"
    weights = "float[7,4] t, int64[1] c1 = {1}, int64[1] c4 = {4}"
    after = f"(int64[N,5] x) => (float[] y) <{weights}> {{ {taken} }}"
    assert_rewrites(PASS, text, after)


@pytest.mark.parametrize(
    "text",
    [
        # Another op, another order of columns, or an operand that is no column.
        hashed("z{f} = Gather(r{f}, m{f})", "Concat<axis=1>(za, zb, zc)").replace(
            "mb = Mod(", "mb = Div("
        ),
        hashed("z{f} = Gather(r{f}, m{f})", "Concat<axis=1>(zc, zb, za)"),
        hashed("z{f} = Gather(r{f}, m{f})", "Concat<axis=1>(za, zb, zc)").replace(
            "Mod(xb, cb)", "Mod(cb, xb)"
        ),
        hashed("z{f} = Gather(r{f}, m{f})", "Concat<axis=0>(za, zb, zc)"),
        hashed(
            "w{f} = Gather(r{f}, m{f}) z{f} = Reshape(w{f}, side)", "Concat<axis=1>(za, zb, zc)"
        ).replace("{-1, 1, 4}", "{1, -1, 4}"),
        hashed("w{f} = Gather(r{f}, m{f}) z{f} = Mul(w{f}, w{f})", "Concat<axis=1>(za, zb, zc)"),
    ],
)
def test_columns_that_are_not_alike_stay(text: str) -> None:
    assert_unchanged(PASS, text)
