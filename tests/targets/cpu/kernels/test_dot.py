"""Dense layers of few columns against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
import tvm_ffi

from graphopt.serving.runtime import passed
from graphopt.targets.cpu.kernels.dot import dot, pack_columns, suits
from graphopt.targets.kernels.activation import Activation
from graphopt.targets.kernels.epilogue import Epilogue, Step


def compiled(k: int, n: int, lanes: int, *more: object) -> object:
    kernel = dot(k, n, lanes, *more).with_attr("global_symbol", "dot")  # type: ignore[arg-type]
    return tvm.compile(kernel, target=tvm.target.Target({"kind": "llvm", "num-cores": 1}))["dot"]


def call(
    function: object, x: np.ndarray, w: np.ndarray, b: np.ndarray, *others: np.ndarray
) -> np.ndarray:
    m, n = len(x), w.shape[1]
    room = np.full(m * n + 64, 7, np.float32)
    y = room[: m * n].reshape(m, n)
    operands = passed([x, pack_columns(w), b, *others, y])
    function(*map(tvm_ffi.from_dlpack, operands))  # type: ignore[operator]
    assert (room[m * n :] == 7).all()
    return y


def sample(m: int, k: int, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(m * 1000 + k + n)
    x, w, b = (rng.normal(size=shape).astype(np.float32) for shape in ((m, k), (k, n), (n,)))
    return x, w, b


@pytest.mark.parametrize("lanes", [4, 8, 16])
@pytest.mark.parametrize(("k", "n"), [(1, 1), (16, 1), (37, 1), (64, 2), (71, 4), (15, 3)])
def test_every_row_count(k: int, n: int, lanes: int) -> None:
    function = compiled(k, n, lanes)
    for m in [*range(19), 32, 65]:
        x, w, b = sample(m, k, n)
        expected = x.astype(np.float64) @ w + b
        # Sums of at most 71 products of numbers near 1: a few units in the last place.
        np.testing.assert_allclose(call(function, x, w, b), expected, rtol=1e-5, atol=1e-5)


def test_activation_and_nan() -> None:
    x, w, b = sample(21, 40, 1)
    x[3, 39], x[17, 0] = np.nan, np.nan
    plain = call(compiled(40, 1, 8), x, w, b)
    found = call(compiled(40, 1, 8, Epilogue(Activation("relu"))), x, w, b)
    np.testing.assert_array_equal(found, np.where(plain < 0, np.float32(0), plain))
    assert np.flatnonzero(np.isnan(found)).tolist() == [3, 17]


def test_steps_after_the_activation() -> None:
    x, w, b = sample(19, 33, 2)
    p, q = np.full((19, 2), 3, np.float32), sample(19, 2, 1)[0]
    relu = Activation("relu")
    plain = call(compiled(33, 2, 16, Epilogue(relu)), x, w, b)
    after = Epilogue(relu, (Step("mul"), Step("add")))
    found = call(compiled(33, 2, 16, after), x, w, b, p, q)
    # A multiplication and an addition may be rounded once.
    np.testing.assert_allclose(found, plain * p + q, rtol=1e-6, atol=1e-6)


def test_constants_of_each_column_and_an_operand_before() -> None:
    x, w, b = sample(18, 33, 2)
    p, slopes = sample(9, 2, 1)[0], np.array([[0.5, -2]], np.float32)
    plain = call(compiled(33, 2, 8), x, w, b) + np.repeat(p, 2, axis=0)
    prelu = Epilogue(Activation("prelu"), (Step("add", 2),), before=1)
    found = call(compiled(33, 2, 8, prelu), x, w, b, slopes, p)
    np.testing.assert_allclose(found, np.where(plain < 0, slopes * plain, plain), rtol=1e-6)


def test_it_is_for_few_columns_of_long_rows() -> None:
    assert suits(16, 1, 16)
    assert not suits(12, 1, 16)
    assert suits(64, 4, 16)
    assert not suits(512, 5, 16)
