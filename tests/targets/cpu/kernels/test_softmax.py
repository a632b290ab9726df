"""Softmax of rows and its logarithm, against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.targets.cpu.kernels.softmax import softmax

WIDTHS = [1, 2, 3, 7, 8, 13, 16, 31, 64, 65, 130, 200]
FORMS = {"softmax": False, "log_softmax": True}


@pytest.fixture(scope="module")
def kernels(compile_kernels):
    return compile_kernels(
        {
            f"{form}_{lanes}_{dim}": softmax(dim, lanes, logarithm=logarithm)
            for form, logarithm in FORMS.items()
            for lanes, dims in {16: [*WIDTHS, 0, None], 4: [13, 65, None]}.items()
            for dim in dims
        }
    )


def exact(form, x):
    with np.errstate(all="ignore"):
        shifted = x.astype(np.float64) - x.max(axis=1, keepdims=True, initial=-np.inf)
        total = np.exp(shifted).sum(axis=1, keepdims=True)
        return shifted - np.log(total) if FORMS[form] else np.exp(shifted) / total


def run(kernel, x):
    (y,) = kernel([x], [(x.shape, "float32")])
    return y


def rows(count, columns):
    rng = np.random.default_rng(columns)
    return (rng.normal(size=(count, columns)) * rng.choice([1, 30], (count, 1))).astype(np.float32)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("columns", WIDTHS)
def test_rows_of_every_length(kernels, form, columns):
    x = rows(9, columns)
    names = [f"{form}_16_{columns}", f"{form}_16_None", f"{form}_4_None"]
    for name in names:
        # Sums of up to 200 numbers, and logarithms that are off by as much as their difference.
        np.testing.assert_allclose(run(kernels[name], x), exact(form, x), rtol=2e-6, atol=2e-6)
        for row in range(9):
            alone = run(kernels[name], x[row : row + 1])
            assert alone.tobytes() == run(kernels[name], x)[row].tobytes()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["16_13", "16_65", "16_None", "4_13", "4_65", "4_None"])
def test_infinities_and_nan(kernels, form, name):
    columns = 65 if "65" in name else 13
    x = np.zeros((8, columns), np.float32)
    x[0, 1:] = -np.inf
    x[1] = -np.inf
    x[2, -1] = np.nan
    x[3, 0], x[3, 1:] = np.nan, 200
    x[4, -1] = np.inf
    x[5, : columns // 2] = -1e9
    x[6, -1] = 300  # which not even float32 has the power of
    y = run(kernels[f"{form}_{name}"], x)
    np.testing.assert_allclose(y, exact(form, x), rtol=2e-6, atol=1e-6)
    assert np.isnan(y[1:5]).all() and not np.isnan(y[[0, 5, 6, 7]]).any()
    assert (np.exp(y[0]) if FORMS[form] else y[0]).tolist() == [1, *[0] * (columns - 1)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["16_0", "16_None"])
def test_nothing(kernels, form, name):
    assert run(kernels[f"{form}_{name}"], np.zeros((3, 0), np.float32)).shape == (3, 0)
    if name == "16_None":
        assert run(kernels[f"{form}_{name}"], np.zeros((0, 20), np.float32)).shape == (0, 20)
