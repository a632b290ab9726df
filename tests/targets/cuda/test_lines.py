"""Ops that go along an axis or by positions found in data, run by many threads."""

from __future__ import annotations

import re

import gpu_emulator
import numpy as np
import pytest

from .conftest import Runner

RNG = np.random.default_rng(4)


def parallel(sources: list[str]) -> bool:
    """True if no kernel runs on one thread."""
    return not re.search(r'extern "C" __global__ void (?!__launch_bounds__)\w+\(', sources[0])


@pytest.mark.parametrize("attrs", ["", "<exclusive = 1, reverse = 1>"])
def test_running_sums(attrs: str, run_text: Runner) -> None:
    text = f"agraph (float[n, 5, 3] x) => (float[n, 5, 3] y) {{ y = CumSum {attrs} (x, axis) }}"
    x = RNG.standard_normal((70, 5, 3)).astype(np.float32)
    sources: list[str] = []
    (found,) = run_text(
        text, {"x": x}, constants={"axis": np.array(1)}, edit=lambda s: sources.append(s) or s
    )
    expected = np.cumsum(x, 1)
    if attrs:
        expected = np.cumsum(x[:, ::-1], 1)[:, ::-1] - x
    np.testing.assert_allclose(found["y"], expected, rtol=1e-5, atol=1e-5)
    assert parallel(sources)


@pytest.mark.parametrize("largest", [0, 1])
def test_order(largest: int, run_text: Runner) -> None:
    text = f"""agraph (float[n, 37] x) => (float[n, 5] y, int64[n, 5] at) {{
        y, at = TopK <largest = {largest}> (x, k)
    }}"""
    x = RNG.integers(0, 9, (12, 37)).astype(np.float32)  # many are equal
    x[3, 5] = np.nan
    sources: list[str] = []
    (found,) = run_text(
        text, {"x": x}, constants={"k": np.array([5])}, edit=lambda s: sources.append(s) or s
    )
    at = np.argsort(-x if largest else x, 1, kind="stable")
    if largest:  # NaN is the greatest
        at[3] = [5, *(k for k in at[3] if k != 5)]
    np.testing.assert_array_equal(found["at"], at[:, :5])
    np.testing.assert_array_equal(found["y"], np.take_along_axis(x, at[:, :5], 1))
    assert parallel(sources)


@pytest.mark.parametrize("reduction", ["none", "add"])
def test_scattered_along_an_axis(reduction: str, run_text: Runner) -> None:
    text = f"""agraph (float[n, 4, 3] x, int64[n, 2, 3] at, float[n, 2, 3] v)
        => (float[n, 4, 3] y) {{
        y = ScatterElements <axis = 1, reduction = "{reduction}"> (x, at, v)
    }}"""
    x, v = (RNG.standard_normal((30, k, 3)).astype(np.float32) for k in (4, 2))
    at = RNG.integers(-4, 4, (30, 2, 3))  # some twice
    expected = x.copy()
    for i, j, k in np.ndindex(at.shape):
        old = expected[i, at[i, j, k], k] if reduction == "add" else 0
        expected[i, at[i, j, k], k] = old + v[i, j, k]
    sources: list[str] = []
    feed = {"x": x, "at": at, "v": v}
    (found,) = run_text(text, feed, edit=lambda s: sources.append(s) or s)
    np.testing.assert_array_equal(found["y"], expected)
    assert parallel(sources)
    at[-1, 0, 0] = 4
    with pytest.raises(gpu_emulator.LaunchError, match=r"IdError.*ScatterElements"):
        run_text(text, feed)


SCATTER_ND = """agraph (float[n, 4, 3] x, int64[m, 2] at, float[m, 3] v) => (float[n, 4, 3] y) {
    y = ScatterND (x, at, v)
}"""


@pytest.mark.parametrize("oob", ["error", "zero"])
def test_of_several_writers_the_last_one_stays(oob: str, run_text: Runner) -> None:
    x = RNG.standard_normal((6, 4, 3)).astype(np.float32)
    at = np.stack([RNG.integers(-6, 6, 50), RNG.integers(-4, 4, 50)], axis=1)
    v = RNG.standard_normal((50, 3)).astype(np.float32)
    if oob == "zero":
        at[7] = [6, 0]
    expected = x.copy()
    for (i, j), row in zip(at, v):
        if i < 6:
            expected[i, j] = row
    sources: list[str] = []
    feed = {"x": x, "at": at, "v": v}
    (found,) = run_text(SCATTER_ND, feed, oob=oob, edit=lambda s: sources.append(s) or s)
    np.testing.assert_array_equal(found["y"], expected)
    assert parallel(sources)


def test_positions_of_what_is_not_zero(run_text: Runner) -> None:
    text = "agraph (float[n, 7] x) => (int64[2, m] at) { at = NonZero (x) }"
    feeds = [{"x": RNG.integers(0, 2, (n, 7)).astype(np.float32)} for n in (1, 300)]
    feeds.append({"x": np.zeros((2, 7), np.float32)})
    sources: list[str] = []
    results = run_text(text, *feeds, edit=lambda s: sources.append(s) or s)
    for found, feed in zip(results, feeds):
        np.testing.assert_array_equal(found["at"], np.stack(np.nonzero(feed["x"])))
    assert parallel(sources)


SUMS = """agraph (float[n, 9, 4] x) => (float[n, 9] y, float[n, 4] z) {
    s = Mul (x, x)
    r = ReduceSum <keepdims = 0> (s, last)
    y = Sigmoid (r)
    z = ReduceMax <keepdims = 0> (x, middle)
}"""


def test_short_sums_take_a_thread_each(run_text: Runner) -> None:
    x = RNG.standard_normal((70, 9, 4)).astype(np.float32)
    sources: list[str] = []
    constants = {"last": np.array([2]), "middle": np.array([1])}
    (found,) = run_text(SUMS, {"x": x}, constants=constants, edit=lambda s: sources.append(s) or s)
    np.testing.assert_allclose(found["y"], 1 / (1 + np.exp(-(x * x).sum(2))), rtol=1e-5)
    np.testing.assert_array_equal(found["z"], x.max(1))
    bounds = {int(n) for n in re.findall(r"__launch_bounds__\((\d+)\)", sources[0])}
    assert bounds == {256}


def test_no_stage_of_a_count_is_left_to_the_host(run_text: Runner) -> None:
    text = """agraph (int64[n, 10] ids) => (int64[n] y) {
        padded = Equal (ids, zero)
        real = Not (padded)
        ones = Cast <to = 7> (real)
        y = ReduceSum <keepdims = 0> (ones, axis)
    }"""
    ids = RNG.integers(0, 3, (300, 10))
    constants = {"zero": np.array(0), "axis": np.array([1])}
    sources: list[str] = []
    (found,) = run_text(
        text, {"ids": ids}, constants=constants, edit=lambda s: sources.append(s) or s
    )
    np.testing.assert_array_equal(found["y"], (ids != 0).sum(1))
    assert "ids_ptr" in sources[0]  # the comparison is in a kernel
