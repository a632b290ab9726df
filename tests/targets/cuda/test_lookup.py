"""Lookups: any id is safe, and what one outside its table does is the user's choice."""

from __future__ import annotations

import gpu_emulator
import numpy as np
import pytest
from code_lookups import IDS, lookup, with_zeros

from .conftest import Runner

ROWS, DIM = 11, 6
TABLE = np.arange(ROWS * DIM, dtype=np.float32).reshape(ROWS, DIM)
GATHER = """
agraph (int64[n, 2] ids) => (float[n, 2, 6] y) { y = Gather (table, ids) }
"""
INSIDE = np.array([[0, 10], [-1, -11], [3, 3]])
OUTSIDE = np.array([[0, 11], [-12, 10**12], [3, 3]])


def test_ids_inside(run_text: Runner) -> None:
    feeds = [{"ids": INSIDE}, {"ids": INSIDE[:1]}, {"ids": np.tile(INSIDE, (100, 1))}]
    for found, feed in zip(run_text(GATHER, *feeds, constants={"table": TABLE}), feeds):
        np.testing.assert_array_equal(found["y"], TABLE[feed["ids"]])


def test_ids_outside_are_an_error_that_names_the_node(run_text: Runner) -> None:
    expected = r"IdError: an id is out of range: Gather .* \(axis of size 11\)"
    with pytest.raises(gpu_emulator.LaunchError, match=expected):
        run_text(GATHER, {"ids": OUTSIDE}, constants={"table": TABLE})


def test_ids_outside_are_clamped(run_text: Runner) -> None:
    (found,) = run_text(GATHER, {"ids": OUTSIDE}, oob="clamp", constants={"table": TABLE})
    np.testing.assert_array_equal(found["y"], TABLE[np.clip(OUTSIDE, -ROWS, ROWS - 1)])


def test_ids_outside_are_rows_of_zeros(run_text: Runner) -> None:
    (found,) = run_text(GATHER, {"ids": OUTSIDE}, oob="zero", constants={"table": TABLE})
    valid = (OUTSIDE >= -ROWS) & (OUTSIDE < ROWS)
    rows = np.where(valid[..., None], TABLE[np.where(valid, OUTSIDE, 0)], 0)
    np.testing.assert_array_equal(found["y"], rows)


@pytest.mark.parametrize("form", ["by columns", "two meanings", "elements", "tuples"])
def test_rows_of_zeros_are_not_codes_0(form: str, run_model: Runner) -> None:
    (found,) = run_model(lookup(form), {"i": IDS}, oob="zero")
    np.testing.assert_allclose(found["y"], with_zeros(form), rtol=1e-5, atol=1e-6)


def test_no_ids(run_text: Runner) -> None:
    feed = {"ids": np.empty((0, 2), np.int64)}
    (found,) = run_text(GATHER, feed, constants={"table": TABLE})
    assert found["y"].shape == (0, 2, DIM)


ELEMENTS = """
agraph (float[n, 5] x, int64[n, 3] at) => (float[n, 3] y) {
    y = GatherElements <axis = 1> (x, at)
}
"""


def test_elements(run_text: Runner) -> None:
    rng = np.random.default_rng(0)
    x, at = rng.random((9, 5), np.float32), rng.integers(-5, 5, (9, 3))
    (found,) = run_text(ELEMENTS, {"x": x, "at": at})
    np.testing.assert_array_equal(found["y"], np.take_along_axis(x, at % 5, 1))
    at[4, 1] = 5
    with pytest.raises(gpu_emulator.LaunchError, match=r"IdError.*GatherElements"):
        run_text(ELEMENTS, {"x": x, "at": at})


TUPLES = """
agraph (float[n, 5, 4] x, int64[n, 3, 1] at) => (float[n, 3, 4] y) {
    y = GatherND <batch_dims = 1> (x, at)
}
"""


def test_tuples(run_text: Runner) -> None:
    rng = np.random.default_rng(0)
    x, at = rng.random((9, 5, 4), np.float32), rng.integers(-5, 5, (9, 3, 1))
    (found,) = run_text(TUPLES, {"x": x, "at": at})
    np.testing.assert_array_equal(found["y"], np.take_along_axis(x, at % 5, 1))
    at[8, 2] = -6
    with pytest.raises(gpu_emulator.LaunchError, match=r"IdError.*GatherND"):
        run_text(TUPLES, {"x": x, "at": at})


SERIAL = """
agraph (float[n, 4] x, int64[n, 1] at, float[n, 1] v) => (float[n, 4] y) {
    y = ScatterElements <axis = 1> (x, at, v)
}
"""


def test_kernels_of_one_thread_report_too(run_text: Runner) -> None:
    rng = np.random.default_rng(0)
    x, at = rng.random((5, 4), np.float32), rng.integers(0, 4, (5, 1))
    v = rng.random((5, 1), np.float32)
    wanted = x.copy()
    np.put_along_axis(wanted, at, v, 1)
    (found,) = run_text(SERIAL, {"x": x, "at": at, "v": v})
    np.testing.assert_array_equal(found["y"], wanted)
    at[3] = 4
    with pytest.raises(gpu_emulator.LaunchError, match=r"IdError.*ScatterElements"):
        run_text(SERIAL, {"x": x, "at": at, "v": v})
