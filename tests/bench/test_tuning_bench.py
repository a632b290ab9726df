"""The tuning bench on one layer: it tunes, and compares with the default; nothing is judged."""

from __future__ import annotations

import sys
from pathlib import Path

BENCH = Path(__file__).parents[2] / "bench"
sys.path.insert(0, str(BENCH))

import tuning  # noqa: E402

from graphopt.testing import parse  # noqa: E402


def test_ratios(tmp_path: Path) -> None:
    model = parse("(float[N,3] x) => (float[N,40] y) <float[3,40] w> { y = MatMul(x, w) }")
    cache = tmp_path / "tuned.db"
    found = tuning.measure(model, [1, 2], 0.01, 0, cache)
    assert set(found) == {1, 2}
    assert all(ratio > 0 for ratio in found.values())
    assert cache.exists()
    tuning.show({"layer": found}, [1, 2, 4])
