"""Pointwise convolutions against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
import tvm_ffi

from graphopt.targets.cpu.kernels.panels import pack_bias, pack_weights
from graphopt.targets.cpu.kernels.pointwise import pointwise, pointwise_params
from graphopt.targets.kernels.activation import Activation


def run(x: np.ndarray, w: np.ndarray, b: np.ndarray | None, lanes: int, kind: str) -> np.ndarray:
    batch, k, length = x.shape
    n = len(w)
    params = pointwise_params(n, length, lanes)
    kernel = pointwise(k, n, length, params, Activation(kind)).with_attr("global_symbol", "f")
    compiled = tvm.compile(kernel, target=tvm.target.Target({"kind": "llvm", "num-cores": 1}))
    room = np.full(batch * n * length + 64, 7, np.float32)
    y = room[: batch * n * length].reshape(batch, n, length)
    operands = (x, pack_weights(w.T, params), pack_bias(b, n, params), y)
    compiled["f"](*(tvm_ffi.from_dlpack(a) for a in operands))
    assert (room[batch * n * length :] == 7).all()
    return y


@pytest.mark.parametrize("lanes", [4, 16])
@pytest.mark.parametrize(
    ("batch", "k", "n", "length"),
    [(1, 3, 1, 1), (2, 7, 5, 8), (3, 11, 33, 5), (2, 4, 64, 7), (1, 2, 70, 13), (2, 5, 16, 1)],
)
def test_every_shape(batch: int, k: int, n: int, length: int, lanes: int) -> None:
    rng = np.random.default_rng(batch * 1000 + k + n + length)
    x = rng.normal(size=(batch, k, length)).astype(np.float32)
    w = rng.normal(size=(n, k)).astype(np.float32)
    b = rng.normal(size=n).astype(np.float32)
    expected = w.astype(np.float64) @ x + b[:, None]
    # Sums of about 10 products of numbers near 1: a few units in the last place.
    np.testing.assert_allclose(run(x, w, b, lanes, "none"), expected, rtol=1e-5, atol=1e-5)
    relu = np.maximum(run(x, w, None, lanes, "none"), 0)
    np.testing.assert_array_equal(run(x, w, None, lanes, "relu"), relu)


def test_nan_stays_where_it_is() -> None:
    x = np.ones((2, 3, 5), np.float32)
    x[1, 2, 3] = np.nan
    y = run(x, np.ones((6, 3), np.float32), None, 8, "relu")
    assert np.isnan(y[1, :, 3]).all()
    assert np.isnan(y).sum() == 6


def test_blocks_of_rows_are_few_and_even() -> None:
    assert pointwise_params(64, 8, 16).rows == 4
    assert pointwise_params(64, 12, 16).rows == 6
    assert pointwise_params(64, 13, 16).rows == 5
    assert pointwise_params(16, 8, 16).rows == 8
