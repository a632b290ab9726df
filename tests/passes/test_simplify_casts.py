"""Casts go only where every number survives without them."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from graphopt.ir.types import dtype_to_numpy
from graphopt.passes.simplify_casts import SimplifyCasts, keeps_every_number
from graphopt.testing import assert_rewrites, assert_unchanged

FLOAT, INT32, INT64, BOOL, DOUBLE = 1, 6, 7, 9, 11


def casts(source: str, *targets: int) -> str:
    names = {FLOAT: "float", INT32: "int32", INT64: "int64", BOOL: "bool", DOUBLE: "double"}
    steps = ["a = Identity(x)"]
    steps += [f"{b} = Cast<to={to}>({a})" for a, b, to in zip("abcd", "bcde", targets)]
    last = "abcde"[len(targets)]
    kind = names[targets[-1]]
    return f"({source}[N] x) => ({kind}[N] y) {{ {' '.join(steps)} y = Identity({last}) }}"


@pytest.mark.parametrize(
    ("source", "targets", "left"),
    [
        ("float", (DOUBLE, FLOAT), ()),
        ("int32", (INT64, INT64), (INT64,)),
        ("int32", (INT64, FLOAT), (FLOAT,)),
        ("bool", (FLOAT, BOOL), ()),
        ("bool", (FLOAT, BOOL, INT64), (INT64,)),
        ("int32", (DOUBLE, INT32, INT64), (INT64,)),
        ("float16", (FLOAT, DOUBLE), (DOUBLE,)),
    ],
)
def test_exact_detours_go(source: str, targets: tuple[int, ...], left: tuple[int, ...]) -> None:
    after = (
        casts(source, *left)
        if left
        else f"({source}[N] x) => ({source}[N] y) {{ a = Identity(x) y = Identity(a) }}"
    )
    assert_rewrites(SimplifyCasts(), casts(source, *targets), after)


@pytest.mark.parametrize(
    ("source", "targets"),
    [
        ("int64", (FLOAT, INT64)),
        ("int64", (DOUBLE, INT64)),
        ("int64", (INT32, INT64)),
        ("double", (FLOAT, DOUBLE)),
        ("float", (INT64, FLOAT)),
        ("int32", (FLOAT, INT32)),
        ("float", (BOOL, FLOAT)),
    ],
)
def test_lossy_detours_stay(source: str, targets: tuple[int, ...]) -> None:
    assert_unchanged(SimplifyCasts(), casts(source, *targets), "may lose something")


def test_cast_like_forgets_what_it_is_like() -> None:
    assert_rewrites(
        SimplifyCasts(),
        "(int64[N] x, float[N] z) => (float[N] y) { r = Exp(z) y = CastLike(x, r) }",
        "(int64[N] x, float[N] z) => (float[N] y) { y = Cast<to=1>(x) }",
    )


def test_a_cast_that_others_read_stays_for_them() -> None:
    assert_rewrites(
        SimplifyCasts(),
        "(int32[N] x) => (int64[N] a, float[N] y) { a = Cast<to=7>(x) y = Cast<to=1>(a) }",
        "(int32[N] x) => (int64[N] a, float[N] y) { a = Cast<to=7>(x) y = Cast<to=1>(x) }",
    )


@pytest.mark.parametrize("source", ["bool", "int8", "uint8", "int16", "uint16", "int32", "uint32"])
@pytest.mark.parametrize(
    "target",
    [
        "int8",
        "uint8",
        "int16",
        "uint16",
        "int32",
        "int64",
        "uint64",
        "float16",
        "float32",
        "float64",
    ],
)
def test_what_holds_every_number(source: str, target: str) -> None:
    """Against the extremes of the source, and the first integers a float cannot tell apart."""
    dtype = dtype_to_numpy(source)
    limits = (0, 1) if source == "bool" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    numbers = {*limits, *(2**k + 1 for k in (8, 11, 24, 31)), *(2**k - 1 for k in (8, 12, 25, 32))}
    array = np.array([n for n in numbers if limits[0] <= n <= limits[1]], dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        survives = np.array_equal(array.astype(dtype_to_numpy(target)).astype(np.float64), array)
    assert keeps_every_number(source, target) == bool(survives)


def test_floats_need_room_for_mantissa_and_exponent() -> None:
    assert keeps_every_number("bfloat16", "float32") and keeps_every_number("float16", "float32")
    assert not keeps_every_number("bfloat16", "float16")
    assert not keeps_every_number("float16", "bfloat16")
    assert float(np.float32(3e38).astype(ml_dtypes.bfloat16).astype(np.float16)) == np.inf
    assert not keeps_every_number("float32", "int64")
    assert not keeps_every_number("string", "float32")
