"""Places of extremes in rows, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.targets.cpu.kernels.extreme_place import extreme_place

WIDTHS = [1, 2, 3, 7, 13, 16, 31, 64, 65, 130, 200]
WAYS = {(least, last): f"{least}_{last}" for least in (False, True) for last in (False, True)}


@pytest.fixture(scope="module")
def kernels(compile_kernels):
    return compile_kernels(
        {
            f"{name}_{lanes}_{dim}": extreme_place(dim, lanes, least=least, last=last)
            for (least, last), name in WAYS.items()
            for lanes, dims in {16: [*WIDTHS, None], 4: [13, 65, None]}.items()
            for dim in dims
        }
    )


def places(x, least, last):
    """NumPy's too are the first of equal ones, and a NaN wins."""
    find = np.argmin if least else np.argmax
    return x.shape[1] - 1 - find(x[:, ::-1], axis=1) if last else find(x, axis=1)


def run(kernel, x):
    (found,) = kernel([x], [((len(x),), "int64")])
    return found


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("columns", WIDTHS)
def test_rows_of_every_length(kernels, way, columns):
    rng = np.random.default_rng(columns)
    tied = rng.integers(-3, 4, (40, columns)).astype(np.float32)
    tied[:20] = np.where(tied[:20] == 0, -0.0, tied[:20])
    x = np.concatenate([tied, rng.normal(size=(40, columns)).astype(np.float32)])
    x[rng.random(x.shape) < 0.05] = np.inf
    x[rng.random(x.shape) < 0.05] = -np.inf
    x[rng.random(x.shape) < 0.01] = np.nan
    x[-1], x[-2], x[-3] = -np.inf, np.inf, np.nan
    for name in (f"16_{columns}", "16_None", "4_None"):
        np.testing.assert_array_equal(run(kernels[f"{WAYS[way]}_{name}"], x), places(x, *way))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["16_65", "16_None", "4_65", "4_None"])
def test_each_place(kernels, way, name):
    """An extreme or a NaN at each column in turn, with another one before and behind it."""
    x = np.zeros((65, 65), np.float32)
    np.fill_diagonal(x, -1 if way[0] else 1)
    for value in (x, np.where(x != 0, np.float32(np.nan), x)):
        np.testing.assert_array_equal(run(kernels[f"{WAYS[way]}_{name}"], value), np.arange(65))
        twice = np.where(value == 0, value.T[::-1], value)
        np.testing.assert_array_equal(
            run(kernels[f"{WAYS[way]}_{name}"], twice), places(twice, *way)
        )
