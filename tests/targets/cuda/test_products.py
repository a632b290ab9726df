"""Products of computed matrices, of any sizes and batches, against NumPy."""

from __future__ import annotations

import gpu_emulator
import numpy as np
import pytest

from graphopt.targets.base import Precision

from .conftest import Runner
from .mutants import replaced

RNG = np.random.default_rng(21)
SHAPES = {  # of both operands, without the batch before them
    "a": ((5, 9, 20), (5, 20, 70)),  # a matrix each
    "b": ((1, 12), (12, 8)),
    "c": ((33, 37), (37, 21)),  # nothing a multiple of 4
    "d": ((2, 1, 6, 16), (3, 16, 65)),  # shared by others
}
TEXT = "agraph ({}) => ({}) {{ {} }}".format(
    ", ".join(
        f"float[n, {', '.join(map(str, s))}] {name}{side}"
        for name, both in SHAPES.items()
        for side, s in zip("xy", both)
    ).replace("float[n, 3, 16, 65]", "float[3, 16, 65]"),
    "float[n, 5, 9, 70] az, float[n, 1, 8] bz, float[n, 33, 21] cz, float[n, 2, 3, 6, 65] dz",
    # Neg makes memory of our own, which may be read 16 bytes at once.
    "\n".join(f"{k}n = Neg ({k}x)\n{k}m = Neg ({k}y)\n{k}z = MatMul ({k}n, {k}m)" for k in "abd")
    + "\ncz = MatMul (cx, cy)",
)
TOLERANCES: dict[Precision, float] = {"fp32": 1e-5, "tf32x3": 1e-5, "tf32": 2e-2, "bf16": 2e-2}
Arrays = dict[str, np.ndarray]


def feed_of(n: int) -> Arrays:
    found = {}
    for name, both in SHAPES.items():
        for side, shape in zip("xy", both):
            full = shape if name + side == "dy" else (n, *shape)
            found[name + side] = RNG.standard_normal(full).astype(np.float32)
    return found


def check(
    run_text: Runner, batches: tuple[int, ...], atol: float = 1e-5, **options: object
) -> None:
    feeds = [feed_of(n) for n in batches]
    for found, feed in zip(run_text(TEXT, *feeds, **options), feeds, strict=True):
        for name in SHAPES:
            wanted = feed[f"{name}x"].astype(np.float64) @ feed[f"{name}y"]
            np.testing.assert_allclose(found[f"{name}z"], wanted, rtol=1e-5, atol=atol)


@pytest.mark.parametrize("precision", TOLERANCES)
def test_batches(precision: Precision, run_text: Runner) -> None:
    sources: list[str] = []

    def keep(source: str) -> str:
        sources.append(source)
        return source

    batches = (1, 7, 0) if precision == "fp32" else (2,)
    check(run_text, batches, TOLERANCES[precision], precision=precision, edit=keep)
    assert sources[0].count("graphopt::computed_tile<") == 4


def test_sizes_known_at_run_time(run_text: Runner) -> None:
    text = "agraph (float[m, k] x, float[k, n] y) => (float[m, n] z) { z = MatMul (x, y) }"
    feeds = [
        {
            "x": RNG.standard_normal((m, k)).astype(np.float32),
            "y": RNG.standard_normal((k, n)).astype(np.float32),
        }
        for m, k, n in ((1, 1, 1), (70, 33, 66))
    ]
    for found, feed in zip(run_text(text, *feeds), feeds, strict=True):
        np.testing.assert_allclose(found["z"], feed["x"] @ feed["y"], rtol=1e-5, atol=1e-5)


def test_other_products_take_the_general_way(run_text: Runner) -> None:
    text = """agraph (double[n, 3, 4] x, double[n, 4, 2] y, float[n, 3] u, float[3] v)
        => (double[n, 3, 2] z, float[n] w) {
        z = MatMul (x, y)
        w = MatMul (u, v)
    }"""
    shapes = {"x": (2, 3, 4), "y": (2, 4, 2), "u": (2, 3), "v": (3,)}
    feed = {k: RNG.standard_normal(s) for k, s in shapes.items()}
    feed |= {k: feed[k].astype(np.float32) for k in "uv"}
    (found,) = run_text(text, feed)
    np.testing.assert_allclose(found["z"], feed["x"] @ feed["y"])
    np.testing.assert_allclose(found["w"], feed["u"] @ feed["v"], rtol=1e-5, atol=1e-6)


MUTATIONS = {
    "a row that the first does not have": ("bool there = r < m && at < k", "bool there = at < k"),
    "k beyond the second": ("bool there = at < k && c < n", "bool there = c < n"),
    "columns beyond the second": ("bool there = at < k && c < n", "bool there = at < k"),
    "the row below": ("b + (long long)at * n + c", "b + (long long)(at + 1) * n + c"),
    "a stage too few": ("source, (k + T::DEPTH - 1) / T::DEPTH", "source, k / T::DEPTH"),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_broken_code_is_caught(name: str, run_text: Runner) -> None:
    old, new = MUTATIONS[name]

    edit = lambda code: replaced(code, old, new)  # noqa: E731
    with pytest.raises((gpu_emulator.LaunchError, AssertionError), match=r"\S"):
        check(run_text, (3,), edit=edit)


def test_determinants_have_a_thread_each(run_text: Runner) -> None:
    """Some matrices are singular, some need rows to be swapped."""
    rng, feeds = np.random.default_rng(3), []
    for batch in (1, 7, 300):
        x = rng.standard_normal((batch, 5, 5)).astype(np.float32)
        x[::2, 0, 0] = 0
        x[::3, 4] = 2 * x[::3, 3]
        feeds.append({"x": x})
    sources: list[str] = []
    text = "agraph (float[m, 5, 5] x) => (float[m] y) { y = Det (x) }"
    found = run_text(text, *feeds, edit=lambda s: sources.append(s) or s)
    for results, feed in zip(found, feeds):
        wanted = np.linalg.det(feed["x"].astype(np.float64))
        np.testing.assert_allclose(results["y"], wanted, rtol=1e-3, atol=1e-4)
    assert "__launch_bounds__(256)" in sources[0]
