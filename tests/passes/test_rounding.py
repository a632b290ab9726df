"""Matrices in few bits: what is lost, and what never is."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.passes._rounding import RoundedRows


def matrix(spread: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(40, 12)) * np.exp(rng.normal(0, spread, (40, 1)))
    rows[3] = 0
    return rows.astype(np.float32)


def restored(found: RoundedRows) -> np.ndarray:
    return found.codes.astype(np.float32) * found.scales.astype(np.float32)[:, None]


@pytest.mark.parametrize(("bits", "worst"), [(8, 0.01), (4, 0.16)])
def test_what_is_lost(bits: int, worst: float) -> None:
    """A step is 1/127 or 1/7 of the largest element; errors lie evenly within half a step."""
    rows = matrix()
    found = RoundedRows.of(rows, bits, half_scales=True)
    lost = restored(found) - rows
    share = np.sqrt(np.square(lost).mean(axis=1)) / np.sqrt(np.square(rows).mean(axis=1) + 1e-30)
    assert share.max() < worst
    assert found.error == pytest.approx(np.sqrt(np.square(lost).mean()), rel=1e-5)
    assert found.scales.dtype == np.float16
    assert np.abs(found.codes).max() < 2 ** (bits - 1)


@pytest.mark.parametrize("bits", [8, 4])
def test_rows_of_zeros_stay_zeros(bits: int) -> None:
    assert not restored(RoundedRows.of(matrix(), bits, half_scales=True))[3].any()
    nothing = RoundedRows.of(np.zeros((4, 8), np.float32), bits, half_scales=True)
    assert not restored(nothing).any()


@pytest.mark.parametrize("factor", [1e-6, 1e9])
def test_scales_that_half_precision_cannot_hold_have_32_bits(factor: float) -> None:
    rows = matrix() * np.float32(factor)
    found = RoundedRows.of(rows, 8, half_scales=True)
    assert found.scales.dtype == np.float32
    np.testing.assert_allclose(restored(found), rows, atol=0.01 * np.abs(rows).max())


def test_scales_of_32_bits_are_there_to_ask_for() -> None:
    assert RoundedRows.of(matrix(), 8, half_scales=False).scales.dtype == np.float32


def inputs(rows: int = 2000) -> np.ndarray:
    """Inputs that go together: twelve columns made of four."""
    rng = np.random.default_rng(1)
    return rng.normal(size=(rows, 4)) @ rng.normal(size=(4, 12)) + 0.1 * rng.normal(size=(rows, 12))


@pytest.mark.parametrize(("bits", "share"), [(8, 0.7), (4, 0.7)])
def test_codes_that_are_fitted_to_inputs_lose_less_of_the_outputs(bits: int, share: float) -> None:
    """Measured on other inputs than they were fitted on."""
    weight, data = matrix(), inputs()
    nearest = RoundedRows.of(weight, bits, half_scales=False)
    fitted = nearest.adapted(weight, data[:1000].T @ data[:1000] / 1000)
    lost = [np.abs(data[1000:] @ (restored(r) - weight).T).mean() for r in (nearest, fitted)]
    assert lost[1] < share * lost[0]
    np.testing.assert_array_equal(fitted.scales, nearest.scales)
    assert np.abs(fitted.codes).max() < 2 ** (bits - 1)
    assert not restored(fitted)[3].any()  # a row of zeros


@pytest.mark.parametrize("bits", [8, 4])
def test_groups_of_columns_have_scales_of_their_own(bits: int) -> None:
    rows = matrix() * np.exp(np.arange(12) / 3)  # columns of very different size
    whole = RoundedRows.of(rows, bits, half_scales=True)
    found = RoundedRows.of(rows, bits, half_scales=True, group=4)
    assert found.scales.shape == (40, 3)
    spread = np.repeat(found.scales.astype(np.float32), 4, axis=1)
    lost = np.sqrt(np.square(found.codes * spread - rows).mean())
    assert found.error == pytest.approx(lost, rel=1e-5)
    assert lost < whole.error
    data = inputs()
    fitted = found.adapted(rows, data[:1000].T @ data[:1000] / 1000)
    errors = [np.abs(data[1000:] @ (r.codes * spread - rows).T).mean() for r in (found, fitted)]
    assert errors[1] < errors[0]


def test_inputs_that_say_nothing_leave_codes_as_they_are() -> None:
    nearest = RoundedRows.of(matrix(), 8, half_scales=False)
    fitted = nearest.adapted(matrix(), np.zeros((12, 12)))
    np.testing.assert_array_equal(fitted.codes, nearest.codes)
