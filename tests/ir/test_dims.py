"""Symbolic sizes agree with the integers they stand for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.ir import dims
from graphopt.ir.dims import Dim, Sym

N, M, K = (Sym.named(name) for name in "NMK")
SIZES = st.fixed_dictionaries({name: st.integers(0, 6) for name in "NMK"})


@dataclass(frozen=True)
class Expression:
    """The same computation on dims and on integers."""

    text: str
    dim: Dim
    value: Callable[[dict[str, int]], int]


def leaf(name: str) -> Expression:
    return Expression(name, Sym.named(name), lambda sizes: sizes[name])


def number(k: int) -> Expression:
    return Expression(str(k), k, lambda sizes: k)


def combined(op: str, f: Callable[[Any, Any], Any], g: Callable[[Any, Any], Any]) -> Any:
    def build(pair: tuple[Expression, Expression]) -> Expression:
        a, b = pair
        text = f"({a.text} {op} {b.text})"
        return Expression(text, f(a.dim, b.dim), lambda sizes: g(a.value(sizes), b.value(sizes)))

    return build


def by_number(pair: tuple[Expression, int]) -> Expression:
    a, k = pair
    return Expression(
        f"({a.text} // {k})", dims.floordiv(a.dim, k), lambda sizes: a.value(sizes) // k
    )


def grown(inner: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
    pairs = st.tuples(inner, inner)
    return st.one_of(
        pairs.map(combined("+", lambda a, b: a + b, lambda a, b: a + b)),
        pairs.map(combined("-", lambda a, b: a - b, lambda a, b: a - b)),
        pairs.map(combined("*", lambda a, b: a * b, lambda a, b: a * b)),
        pairs.map(combined("min", dims.minimum, min)),
        pairs.map(combined("max", dims.maximum, max)),
        st.tuples(inner, st.integers(1, 4)).map(by_number),
    )


EXPRESSIONS = st.recursive(
    st.one_of(st.sampled_from("NMK").map(leaf), st.integers(-4, 4).map(number)), grown, max_leaves=6
)


def at(dim: Dim, sizes: dict[str, int]) -> Dim:
    return dims.substitute(dim, sizes.get)


@given(EXPRESSIONS, SIZES)
def test_arithmetic_is_that_of_integers(expression: Expression, sizes: dict[str, int]) -> None:
    assert at(expression.dim, sizes) == expression.value(sizes), expression.text


@given(EXPRESSIONS, EXPRESSIONS, SIZES)
def test_equal_dims_are_equal_numbers(a: Expression, b: Expression, sizes: dict[str, int]) -> None:
    if a.dim == b.dim:
        assert a.value(sizes) == b.value(sizes)
        assert hash(a.dim) == hash(b.dim) and str(a.dim) == str(b.dim)


@given(EXPRESSIONS, SIZES)
def test_what_is_called_nonnegative_is(expression: Expression, sizes: dict[str, int]) -> None:
    if dims.is_nonnegative(expression.dim):
        assert expression.value(sizes) >= 0, expression.text


@given(EXPRESSIONS, EXPRESSIONS, SIZES)
def test_exact_quotients_are_exact(a: Expression, b: Expression, sizes: dict[str, int]) -> None:
    quotient = dims.exact_div(a.dim, b.dim)
    if quotient is not None:
        assert at(quotient, sizes) * b.value(sizes) == a.value(sizes)


@given(EXPRESSIONS, EXPRESSIONS)
def test_a_product_divided_by_a_factor_is_the_other(a: Expression, b: Expression) -> None:
    if b.dim != 0:
        assert dims.exact_div(a.dim * b.dim, b.dim) == a.dim


@given(EXPRESSIONS)
def test_a_dim_depends_on_its_symbols_only(expression: Expression) -> None:
    used = dims.symbols(expression.dim)
    assert used <= set("NMK")
    assert isinstance(at(expression.dim, dict.fromkeys(used, 3)), int)


@given(EXPRESSIONS)
def test_the_text_reads_back_to_the_same_number(expression: Expression) -> None:
    sizes = {"N": 5, "M": 2, "K": 3}
    names = {**sizes, "min": min, "max": max, "floordiv": lambda a, b: a // b}
    assert eval(str(expression.dim), {"__builtins__": {}}, names) == at(expression.dim, sizes)


@pytest.mark.parametrize(
    ("dim", "text"),
    [
        (N * 20 + 1, "20*N + 1"),
        (N * M * 2 - N, "2*M*N + -1*N"),
        (N + N, "2*N"),
        (N - N, "0"),
        (N * 20 // 20, "N"),
        (N // 2, "floordiv(N, 2)"),
        (dims.ceildiv(N, 3), "floordiv(N + 2, 3)"),
        (N % 4, "N + -4*floordiv(N, 4)"),
        (3 - N, "-1*N + 3"),
        (12 // N, "floordiv(12, N)"),
    ],
)
def test_one_text_per_size(dim: Dim, text: str) -> None:
    assert str(dim) == text


@pytest.mark.parametrize(
    ("dim", "wanted"),
    [
        (dims.maximum(N, 0), N),
        (dims.maximum(N + 3, N), N + 3),
        (dims.minimum(N, N + M), N),
        (dims.maximum(dims.maximum(N, M), N), dims.maximum(M, N)),
        (dims.minimum(4, 7), 4),
    ],
)
def test_extremes_that_do_not_depend_on_the_sizes(dim: Dim, wanted: Dim) -> None:
    assert dim == wanted


@pytest.mark.parametrize(
    ("a", "b", "quotient"),
    [
        (N * M + N, M + 1, N),
        (N * N - 1, N + 1, N - 1),
        (N * 6, 4, None),
        (N, M, None),
        (N, 0, None),
        (0, N, 0),
        (7, N, None),
    ],
)
def test_division(a: Dim, b: Dim, quotient: Dim | None) -> None:
    assert dims.exact_div(a, b) == quotient


def test_different_sizes_are_never_equal() -> None:
    assert N != M and N != 1 and N + 1 != M + 1
    assert dims.floordiv(N, 2) != dims.floordiv(M, 2)
    assert len({N + M, M + N, N * 1}) == 2


def test_the_empty_product_is_one() -> None:
    assert dims.product([]) == 1
    assert dims.product([N, 2, M]) == N * M * 2
