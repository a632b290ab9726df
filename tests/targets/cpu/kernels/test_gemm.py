"""The packed GEMM against NumPy in float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest
import tvm
import tvm_ffi
from tvm.tirx import PrimFunc

from graphopt.ir.types import dtype_to_numpy
from graphopt.serving.runtime import passed
from graphopt.targets.cpu.kernels.gemm import gemm
from graphopt.targets.cpu.kernels.panels import (
    GemmParams,
    default_params,
    pack_bias,
    pack_columns,
    pack_weights,
)
from graphopt.targets.kernels.activation import COLUMNS, Activation
from graphopt.targets.kernels.epilogue import PLAIN, Epilogue, Step


def compiled(kernel: PrimFunc) -> Callable[..., None]:
    """The kernel, called with arrays."""
    target = tvm.target.Target({"kind": "llvm", "num-cores": 1})
    function = tvm.compile(kernel.with_attr("global_symbol", "gemm"), target=target)["gemm"]
    return lambda *arrays: function(*map(tvm_ffi.from_dlpack, passed(arrays)))


@cache
def made(k: int, n: int, params: GemmParams, epilogue: Epilogue = PLAIN) -> Callable[..., None]:
    return compiled(gemm(k, n, params, epilogue))


def run(
    x: np.ndarray,
    w: np.ndarray,
    bias: np.ndarray | None,
    params: GemmParams,
    epilogue: Epilogue = PLAIN,
    columns: np.ndarray | None = None,
    *others: np.ndarray,
) -> np.ndarray:
    k, n = w.shape
    y = np.full((len(x), n), np.nan, np.float32)
    constants = [] if columns is None else [pack_columns(columns, params)]
    operands = (x, pack_weights(w, params), pack_bias(bias, n, params), *constants, *others, y)
    made(k, n, params, epilogue)(*operands)
    return y


def sample(m: int, k: int, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(m * 1000 + k + n)
    shapes = ((m, k), (k, n), (n,))
    x, w, b = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    return x, w, b


@pytest.mark.parametrize("lanes", [4, 8, 16])
@pytest.mark.parametrize("n", [1, 16, 33, 93, 100])
def test_every_row_count_gives_the_same_bits(lanes: int, n: int) -> None:
    params, k = default_params(n, lanes), 13
    x, w, b = sample(64, k, n)
    whole = run(x, w, b, params)
    for m in range(1, 2 * params.rows + 2):
        np.testing.assert_array_equal(run(x[:m], w, b, params), whole[:m])
    # Sums of 13 products of numbers near 1: a few units in the last place.
    np.testing.assert_allclose(whole, x.astype(np.float64) @ w + b, rtol=1e-5, atol=1e-5)


def test_blocks_of_few_rows_span_panels() -> None:
    params = default_params(100, 8)
    assert (params.vectors, params.rows, params.panels(100)) == (2, 6, 7)
    assert [params.side(height) for height in params.blocks] == [1, 1, 2, 4]
    assert default_params(8, 8) == GemmParams(8, 1, 6)
    assert default_params(100, 8, k=256) == GemmParams(8, 2, 4)  # short sums
    assert [default_params(512, 16).side(height) for height in (6, 4, 2, 1)] == [1, 1, 1, 2]


@pytest.mark.parametrize(("cached", "least"), [(2600, 1 << 30), (0, 0)])
def test_rows_in_groups_and_weights_asked_for(
    monkeypatch: pytest.MonkeyPatch, cached: int, least: int
) -> None:
    """Panels of small weights for some rows at a time, or requests for the panel after."""
    params, k, n = GemmParams(16, 1, 5), 13, 33
    x, w, b = sample(64, k, n)
    expected = run(x, w, b, params)
    monkeypatch.setattr("graphopt.targets.cpu.kernels.gemm._CACHED", cached)
    monkeypatch.setattr("graphopt.targets.cpu.kernels.panel_ahead.LEAST_BYTES", least)
    kernel = gemm.__wrapped__(k, n, params, far=True)
    assert ("llvm.prefetch" in str(kernel)) == (least == 0)
    call = compiled(kernel)
    for m in (*range(1, 13), 64):
        y = np.full((m, n), np.nan, np.float32)
        call(x[:m], pack_weights(w, params), pack_bias(b, n, params), y)
        np.testing.assert_array_equal(y, expected[:m])


def test_vectors_across() -> None:
    """A panel that holds all columns, no vector alone without need, two panels in a cache."""
    assert default_params(80, 16) == GemmParams(16, 5, 5)
    assert default_params(200, 16) == GemmParams(16, 2, 12)
    assert default_params(176, 16) == GemmParams(16, 6, 4)
    assert default_params(1024, 16, k=1024).width == 64
    assert default_params(1024, 16, k=3456).width == 32


def test_blocks_read_weights_from_memory_once_for_few_rows() -> None:
    assert default_params(512, 16, k=1024).rows == 6
    far = default_params(512, 16, k=1024, far=True)
    assert (far.width, far.blocks) == (32, [12, 8, 6, 4, 3, 2, 1])
    assert default_params(1677, 16, k=1677, far=True).blocks == [9, 8, 6, 4, 3, 2, 1]


@pytest.mark.parametrize("lanes", [4, 8, 16])
@pytest.mark.parametrize("n", [5, 33])
def test_weights_in_8_bits(lanes: int, n: int) -> None:
    params, k = default_params(n, lanes), 13
    epilogue = Epilogue(Activation("relu"), (Step("add"),))
    call = compiled(gemm(k, n, params, epilogue, stored="int8"))
    codes = np.random.default_rng(n).integers(-128, 128, (k, n)).astype(np.int8)
    for m in [*range(1, params.rows + 2), 64]:
        x, scale, bias = sample(m, k, n)
        scale = scale[0] / 100
        other, y = x[:, :1] + bias, np.full((m, n), np.nan, np.float32)
        packed = pack_weights(codes, params)
        assert packed.dtype == np.int8
        rows = pack_bias(bias, n, params), pack_bias(scale, n, params)
        call(x, packed, *rows, other, y)
        expected = np.maximum(x.astype(np.float64) @ codes * scale + bias, 0) + other
        # Sums of 13 products of numbers near 100, scaled to near 1.
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_weights_in_bfloat16_are_widened(lanes: int) -> None:
    """The same bits as with float32 weights of the same values, in any number of rows."""
    k, n = 13, 33
    params = default_params(n, lanes)
    call = compiled(gemm(k, n, params, stored="bfloat16"))
    for m in [*range(1, params.rows + 2), 64]:
        x, w, bias = sample(m, k, n)
        narrow = w.astype(dtype_to_numpy("bfloat16"))
        y = np.full((m, n), np.nan, np.float32)
        call(x, pack_weights(narrow, params), pack_bias(bias, n, params), y)
        np.testing.assert_array_equal(y, run(x, narrow.astype(np.float32), bias, params))


def test_rows_of_the_output_beyond_n_are_not_touched() -> None:
    x, w, _ = sample(5, 3, 2)
    params = GemmParams(lanes=4, vectors=2, rows=3)
    room = np.full(5 * 2 + 64, 7, np.float32)
    y = room[:10].reshape(5, 2)
    made(3, 2, params)(x, pack_weights(w, params), pack_bias(None, 2, params), y)
    assert (room[10:] == 7).all()


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        (Activation("relu"), lambda v: np.where(v < 0, 0, v)),
        (Activation("leaky_relu", 0.1), lambda v: np.where(v < 0, np.float32(0.1) * v, v)),
    ],
)
def test_activation(activation: Activation, expected: object) -> None:
    x, w, b = sample(7, 5, 19)
    x[3, 2] = np.nan
    x[4, 1] = np.inf
    plain = run(x, w, b, default_params(19, 8))
    found = run(x, w, b, default_params(19, 8), Epilogue(activation))
    np.testing.assert_array_equal(found, expected(plain).astype(np.float32))  # type: ignore[operator]
    assert np.isnan(found[3]).all()


def _gated(v: np.ndarray, c: np.ndarray) -> np.ndarray:
    return v * (c[0] + c[1] / (1 + np.exp(-(c[2] * v + c[3]))))


@pytest.mark.parametrize("n", [16, 37])
@pytest.mark.parametrize(
    ("kind", "expected"),
    [("prelu", lambda v, c: np.where(v < 0, c[0] * v, v)), ("gated", _gated)],
)
def test_constants_of_each_column(kind: str, expected: Callable[..., Any], n: int) -> None:
    x, w, b = sample(9, 5, n)
    columns = np.random.default_rng(n).normal(size=(COLUMNS[kind], n)).astype(np.float32)
    plain = run(x, w, b, default_params(n, 8)).astype(np.float64)
    found = run(x, w, b, default_params(n, 8), Epilogue(Activation(kind)), columns)
    # A sigmoid of float32, and two roundings.
    np.testing.assert_allclose(found, expected(plain, columns), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n", [16, 37])
def test_operands_before_and_after_the_activation(n: int) -> None:
    x, w, b = sample(12, 5, n)
    user, own = sample(4, n, 1)[0], sample(12, n, 1)[0]
    around = Epilogue(Activation("relu"), (Step("add", 3), Step("mul")), before=1)
    found = run(x, w, b, default_params(n, 8), around, None, user, own)
    plain = run(x, w, b, default_params(n, 8))
    expected = np.maximum(plain + np.repeat(user, 3, axis=0), 0) * own
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)  # a sum rounded otherwise
    one = Epilogue(steps=(Step("mul", 0),))
    found = run(x, w, b, default_params(n, 8), one, None, user[:1])
    np.testing.assert_allclose(found, plain * user[:1], rtol=1e-6)


def test_what_no_kernel_takes() -> None:
    with pytest.raises(ValueError, match="at most 2 steps"):
        Epilogue(steps=(Step("add"),) * 3)
    with pytest.raises(ValueError, match="a step is one of"):
        Step("sub")  # type: ignore[arg-type]


def test_block_heights_make_up_every_row_count() -> None:
    for rows, lanes in product(range(1, 15), (8, 16)):
        blocks = GemmParams(lanes, 1, rows).blocks
        assert len(blocks) <= 7  # as many as `by_blocks` has levels
        for m in range(40):
            left = m
            for height in blocks:
                left %= height
            assert left == 0


def test_packing_round_trip() -> None:
    w = np.arange(15, dtype=np.float32).reshape(3, 5)
    packed = pack_weights(w, GemmParams(lanes=2, vectors=1, rows=1))
    assert packed.shape == (3, 3, 2)
    assert np.array_equal(packed.transpose(1, 0, 2).reshape(3, 6)[:, :5], w)
    assert not packed.transpose(1, 0, 2).reshape(3, 6)[:, 5].any()
