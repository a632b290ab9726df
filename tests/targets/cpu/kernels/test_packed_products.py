"""Products with a free number of columns, against NumPy in float64, and the bits of parts."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.targets.cpu.kernels.packed_products import packed_products

FORMS = {  # n, k, lanes, turned, shared, dtype
    "towers": (None, 20, 16, True, False, "float32"),
    "short": (None, 3, 8, True, False, "float32"),
    "one_row": (1, 33, 16, True, False, "float32"),
    "rows": (8, 16, 8, True, True, "float32"),
    "narrow": (None, 9, 4, True, False, "float32"),
    "as_they_lie": (None, 5, 16, False, True, "float32"),
    "several": (7, 12, 8, False, False, "float32"),
    "double": (None, 10, 8, True, False, "float64"),
}


@pytest.fixture(scope="module")
def kernels(compile_kernels):
    return compile_kernels({name: packed_products(*form) for name, form in FORMS.items()})


def operands(form, columns):
    n, k, _, turned, shared, dtype = FORMS[form]
    rng = np.random.default_rng(columns)
    x = rng.normal(size=(1 if shared else 2, n or 13, k)).astype(dtype)
    y = rng.normal(size=(2, columns, k) if turned else (2, k, columns)).astype(dtype)
    return x, y


def run(kernels, form, x, y):
    turned, dtype = FORMS[form][3], FORMS[form][5]
    columns = y.shape[1 if turned else 2]
    (out,) = kernels[form]([x, y], [((len(y), x.shape[1], columns), dtype)])
    return out


@pytest.mark.parametrize("columns", [0, 1, 3, 4, 15, 16, 17, 33, 64, 70, 131])
@pytest.mark.parametrize("form", FORMS)
def test_products(kernels, form, columns):
    _, _, _, turned, _, dtype = FORMS[form]
    x, y = operands(form, columns)
    out = run(kernels, form, x, y)
    exact = x.astype(np.float64) @ (y.transpose(0, 2, 1) if turned else y)
    # Sums of up to 33 products of numbers near 1.
    np.testing.assert_allclose(out, exact, rtol=0, atol=1e-5 if dtype == "float32" else 1e-13)


@pytest.mark.parametrize("form", FORMS)
def test_bits_do_not_depend_on_what_else_is_computed(kernels, form):
    turned = FORMS[form][3]
    x, y = operands(form, 70)
    whole = run(kernels, form, x, y)
    for part in (slice(0, 3), slice(60, 70), slice(5, 45)):
        some = np.ascontiguousarray(y[:, part] if turned else y[:, :, part])
        assert run(kernels, form, x, some).tobytes() == whole[:, :, part].tobytes()
    if FORMS[form][0] is None:
        row = np.ascontiguousarray(x[:, 7:8])
        assert run(kernels, form, row, y).tobytes() == whole[:, 7:8].tobytes()


def test_nan_stays_in_its_row_and_column(kernels):
    x, y = operands("towers", 5)
    x[0, 6, 2], y[1, 4, 19] = np.nan, np.nan  # the last column, of which there are copies
    found = np.isnan(run(kernels, "towers", x, y))
    assert found[0, 6].all() and found[1, :, 4].all() and found.sum() == 5 + 13
