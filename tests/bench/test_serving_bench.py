"""The serving bench on a small model: what it measures is there and adds up; nothing is judged."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"
sys.path.insert(0, str(BENCH))

import serving  # noqa: E402


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux only: reads /proc")
def test_figures(example: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "REQUESTS", 2)
    found = serving.measure(str(example), [1, 32], 0.01)
    used = found["memory"]
    assert 0 < used["touched"] <= used["weights"] < used["resident"]
    assert used["touched"] <= used["weights_in_small_pages"] < used["resident_in_small_pages"]
    assert used["weights_share_of_two"] < used["weights"]
    assert found["start"]["cpu_seconds"] > 0
    assert all(ratio > 0 for ratio in found["small_pages"].values())
    for figures in (found["one_request_us"], found["calls_per_second"]):
        assert set(figures) == {1, 32}
        assert all(figure > 0 for row in figures.values() for figure in row.values())
    serving.show(found)
