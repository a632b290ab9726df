"""The 8-bit GEMM: exact sums, checked in integers."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import tvm
import tvm_ffi
from tvm.tirx import PrimFunc

from graphopt.machine import host_features
from graphopt.ops.dynamic_matmul import rounded
from graphopt.serving.runtime import passed
from graphopt.targets.cpu.kernels.int8_gemm import (
    Rounding,
    int8_gemm,
    int8_params,
    pack_int8,
    pack_start,
)
from graphopt.targets.cpu.kernels.panels import GemmParams, pack_bias
from graphopt.targets.cpu.kernels.row_codes import Quantization, RowQuantization
from graphopt.targets.kernels.activation import Activation
from graphopt.targets.kernels.epilogue import PLAIN, Epilogue, Step

EXECUTES = pytest.mark.usefixtures("executes")
LANES = 16
TARGETS = {16: ("icelake-server", "avx512_vnni"), 8: ("haswell", "avx2")}


@pytest.fixture(autouse=True, params=TARGETS)
def lanes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many sums a vector has."""
    monkeypatch.setattr(sys.modules[__name__], "LANES", request.param)
    found: int = request.param
    return found


@pytest.fixture
def executes(lanes: int) -> None:
    feature = TARGETS[lanes][1]
    if feature not in host_features():
        pytest.skip(f"this CPU lacks {feature}")


def params_of(n: int) -> GemmParams:
    return int8_params(n, lanes=LANES)


def assembly(kernel: PrimFunc) -> str:
    target = {"kind": "llvm", "num-cores": 1, "mcpu": TARGETS[LANES][0]}
    kernel = kernel.with_attr("global_symbol", "f")
    return str(tvm.compile(kernel, target=tvm.target.Target(target)).mod.inspect_source("asm"))


def compiled(
    k: int,
    n: int,
    rounding: Rounding,
    epilogue: Epilogue = PLAIN,
    **options: Any,
) -> object:
    kernel = int8_gemm(k, n, rounding, params_of(n), epilogue, **options)
    kernel = kernel.with_attr("global_symbol", "f")
    target = {"kind": "llvm", "num-cores": 1, "mcpu": TARGETS[LANES][0]}
    return tvm.compile(kernel, target=tvm.target.Target(target))["f"]


def call(
    function: object,
    x: np.ndarray,
    w: np.ndarray,
    scale: np.ndarray,
    bias: np.ndarray,
    rounding: Quantization,
    others: Sequence[np.ndarray] = (),
    dtype: type = np.float32,
) -> np.ndarray:
    m, n = len(x), w.shape[1]
    params = params_of(n)
    room = np.full(m * n + 64, 7, dtype)
    y = room[: m * n].reshape(m, n)
    packed = [pack_int8(w, params), pack_start(w, rounding.zero, params)]
    operands = [x, *packed, pack_bias(scale, n, params), pack_bias(bias, n, params), *others, y]
    function(*map(tvm_ffi.from_dlpack, passed(operands)))  # type: ignore[operator]
    assert (room[m * n :] == 7).all()
    return y


def expected(
    x: np.ndarray, w: np.ndarray, scale: np.ndarray, bias: np.ndarray, rounding: Quantization
) -> np.ndarray:
    q = np.clip(np.rint(x / np.float32(rounding.scale)) + rounding.zero, 0, 255).astype(np.int64)
    return ((q - rounding.zero) @ w.astype(np.int64)) * scale.astype(np.float64) + bias


def test_the_code_is_made_on_any_machine() -> None:
    code = assembly(int8_gemm(7, 5, Quantization(0.1, 3), params_of(5)))
    assert ("vpdpbusd" in code, "vpmaddwd" in code) == (LANES == 16, LANES == 8)
    assert "vpmaddubsw" not in code  # saturates


@EXECUTES
@pytest.mark.parametrize(("k", "n"), [(1, 1), (5, 33), (130, 70), (16, 129)])
def test_every_row_count(k: int, n: int) -> None:
    rounding = Quantization(0.05, 117)
    function = compiled(k, n, rounding)
    for m in [*range(14), 47, 48, 49, 100]:
        rng = np.random.default_rng(m * 1000 + k + n)
        # Some data lies beyond what 8 bits hold, and is cut off.
        x = rng.normal(scale=5, size=(m, k)).astype(np.float32)
        w = rng.integers(-128, 128, (k, n)).astype(np.int8)
        scale, bias = (rng.uniform(0.001, 0.01, n).astype(np.float32) for _ in range(2))
        found = call(function, x, w, scale, bias, rounding)
        # The sums are exact: one multiplication and one addition in float32 remain.
        wanted = expected(x, w, scale, bias, rounding)
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-5)


@EXECUTES
def test_sums_neither_saturate_nor_round() -> None:
    k = 4096
    x, w = np.full((3, k), 255, np.float32), np.full((k, 2), -128, np.int8)
    ones, zeros = np.ones(2, np.float32), np.zeros(2, np.float32)
    rounding = Quantization(1.0, 0)
    found = call(compiled(k, 2, rounding), x, w, ones, zeros, rounding)
    assert (found == -128 * 255 * k).all()


@EXECUTES
def test_ties_are_rounded_to_even() -> None:
    x = np.array([[0.5], [1.5], [2.5], [-0.5], [254.5], [300]], np.float32)
    one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
    rounding = Quantization(1.0, 0)
    found = call(compiled(1, 1, rounding), x, np.ones((1, 1), np.int8), one, zero, rounding)
    assert found[:, 0].tolist() == [0, 2, 2, 0, 254, 255]


@EXECUTES
@pytest.mark.parametrize("columns", [1, 16])  # one by one, and in vectors
def test_what_is_beyond_all_codes_becomes_the_last_one(columns: int) -> None:
    beyond = [300, 3e9, 1e30, np.inf, -300, -3e9, -1e30, -np.inf]
    x = np.repeat(np.array(beyond, np.float32)[:, None], columns, axis=1)
    one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
    rounding = Quantization(0.01, 100)
    w = np.eye(columns, 1, dtype=np.int8)
    found = call(compiled(columns, 1, rounding), x, w, one, zero, rounding)
    assert found[:, 0].tolist() == [155] * 4 + [-100] * 4


@EXECUTES
def test_activation() -> None:
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(9, 20)).astype(np.float32), rng.integers(-128, 128, (20, 17))
    scale, bias = np.full(17, 0.01, np.float32), np.zeros(17, np.float32)
    rounding = Quantization(0.02, 128)
    plain = call(compiled(20, 17, rounding), x, w.astype(np.int8), scale, bias, rounding)
    relu = compiled(20, 17, rounding, Epilogue(Activation("relu")))
    found = call(relu, x, w.astype(np.int8), scale, bias, rounding)
    np.testing.assert_array_equal(found, np.maximum(plain, 0))


@EXECUTES
@pytest.mark.parametrize(("k", "n"), [(20, 20), (64, 48)])
def test_codes_in_and_out(k: int, n: int) -> None:
    first, second = Quantization(0.05, 117), Quantization(0.03, 12)
    relu, rng = Epilogue(Activation("relu")), np.random.default_rng(k)
    w = rng.integers(-128, 128, (k, n)).astype(np.int8)
    scale, bias = np.full(n, 0.0003, np.float32), rng.normal(size=n).astype(np.float32)
    floats = compiled(k, n, first, relu)
    reader = compiled(k, n, first, relu, takes_codes=True)
    writer = compiled(k, n, first, relu, takes_codes=True, result=second)
    for m in (0, 1, 7, 48, 50, 101):
        x = rng.normal(scale=4, size=(m, k)).astype(np.float32)
        inverse = np.float32(1) / np.float32(first.scale)
        q = np.clip(np.rint(x * inverse) + first.zero, 0, 255).astype(np.uint8)
        wanted = call(floats, x, w, scale, bias, first)
        np.testing.assert_array_equal(call(reader, q, w, scale, bias, first), wanted)
        codes = np.clip(np.rint(wanted * (1 / np.float32(second.scale))) + second.zero, 0, 255)
        found = call(writer, q, w, scale, bias, first, dtype=np.uint8)
        np.testing.assert_array_equal(found, codes.astype(np.uint8))


@EXECUTES
def test_operands_at_the_store() -> None:
    rounding, rng = Quantization(0.02, 128), np.random.default_rng(0)
    x, w = rng.normal(size=(9, 20)).astype(np.float32), rng.integers(-128, 128, (20, 17))
    scale, bias = np.full(17, 0.01, np.float32), np.zeros(17, np.float32)
    others = [rng.normal(size=(9, 17)).astype(np.float32) for _ in range(2)]
    plain = call(compiled(20, 17, rounding), x, w.astype(np.int8), scale, bias, rounding)
    cross = compiled(20, 17, rounding, Epilogue(steps=(Step("mul"), Step("add"))))
    found = call(cross, x, w.astype(np.int8), scale, bias, rounding, others)
    np.testing.assert_allclose(found, plain * others[0] + others[1], rtol=1e-5, atol=1e-6)


@EXECUTES
@pytest.mark.parametrize(("k", "n"), [(1, 1), (15, 16), (16, 16), (17, 5), (131, 70)])
def test_rows_of_a_range_each(k: int, n: int) -> None:
    function = compiled(k, n, RowQuantization())
    rng = np.random.default_rng(k + n)
    w = rng.integers(-127, 128, (k, n)).astype(np.int8)
    scale, bias = rng.uniform(0.001, 0.01, n).astype(np.float32), np.zeros(n, np.float32)
    together = rng.normal(size=(100, k)) * 10.0 ** rng.integers(-4, 5, (100, 1))
    together[::7] = np.abs(together[::7])
    x, one = together.astype(np.float32), Quantization(1.0, 1)  # sums start as for a zero of 1
    found = call(function, x, w, scale, bias, one)
    wanted = rounded(x).astype(np.float64) @ (w * scale.astype(np.float64))
    # A few roundings in float32 of numbers of the size of the terms.
    size = np.abs(x).max(axis=1, keepdims=True) * (np.abs(w) * scale).sum(axis=0)
    assert (np.abs(found - wanted) <= 1e-6 * size).all()
    for m in (0, 1, 13, 47, 96, 97):
        np.testing.assert_array_equal(call(function, x[:m], w, scale, bias, one), found[:m])
    for place in {0, k // 2, k - 1}:
        x[3], x[4, place], x[5, place] = 0, np.nan, -np.inf
        found = call(function, x, w, scale, bias + 1, one)
        assert (found[3] == 1).all()
        assert np.isnan(found[4:6]).all()
        assert np.isfinite(np.delete(found, [4, 5], 0)).all()
        x = together.astype(np.float32)


@EXECUTES
def test_an_epilogue_after_rows_of_a_range_each() -> None:
    rng, one = np.random.default_rng(0), Quantization(1.0, 1)
    x, w = rng.normal(size=(9, 20)).astype(np.float32), rng.integers(-127, 128, (20, 17))
    scale, bias = np.full(17, 0.01, np.float32), np.zeros(17, np.float32)
    plain = call(compiled(20, 17, RowQuantization()), x, w.astype(np.int8), scale, bias, one)
    relu = compiled(20, 17, RowQuantization(), Epilogue(Activation("relu")))
    found = call(relu, x, w.astype(np.int8), scale, bias, one)
    np.testing.assert_array_equal(found, np.maximum(plain, 0))


def test_codes_have_one_range() -> None:
    with pytest.raises(ValueError, match="with one scale"):
        int8_gemm(8, 5, RowQuantization(), params_of(5), takes_codes=True)


def test_codes_come_in_whole_groups() -> None:
    with pytest.raises(ValueError, match="groups of 4"):
        int8_gemm(6, 5, Quantization(0.1, 3), params_of(5), takes_codes=True)
    with pytest.raises(ValueError, match="rows of 5 codes"):
        int8_gemm(8, 5, Quantization(0.1, 3), params_of(5), result=Quantization(0.1, 3))
