"""The peaks of a machine: kept, read again, and what follows from them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from graphopt.analysis.cost import INSTRUCTIONS
from graphopt.measuring import roofline
from graphopt.measuring.roofline import SIZES, Roofline

PEAKS = Roofline(100.0, (40.0, 20.0, 10.0, 5.0), {"tdpbusd": 400.0})


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """How often something was measured."""
    calls: list[int] = []

    def measure() -> Roofline:
        calls.append(1)
        return PEAKS

    monkeypatch.setattr(roofline, "measure", measure)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return calls


def test_measured_once(measured: list[int], tmp_path: Path) -> None:
    assert roofline.roofline() == PEAKS
    assert roofline.roofline() == PEAKS
    assert len(measured) == 1
    assert (tmp_path / "graphopt" / "roofline.json").is_file()


@pytest.mark.parametrize("text", ["{", "[]", '{"other cpu": {}}', "null"])
def test_a_cache_that_is_of_no_use(measured: list[int], tmp_path: Path, text: str) -> None:
    (tmp_path / "graphopt").mkdir()
    (tmp_path / "graphopt" / "roofline.json").write_text(text)
    assert roofline.roofline() == PEAKS
    assert len(measured) == 1


def test_other_machines_stay(measured: list[int], tmp_path: Path) -> None:
    (tmp_path / "graphopt").mkdir()
    path = tmp_path / "graphopt" / "roofline.json"
    path.write_text('{"other cpu": {"flops": 1}}')
    roofline.roofline()
    assert json.loads(path.read_text())["other cpu"] == {"flops": 1}


def test_bounds() -> None:
    assert PEAKS.seconds({"": 200}, 0) == 2
    assert PEAKS.seconds({"": 200, "tdpbusd": 200}, 0) == 2.5
    assert PEAKS.seconds({}, SIZES[0]) == SIZES[0] / 40
    assert PEAKS.seconds({}, SIZES[0] + 1) == (SIZES[0] + 1) / 20
    assert PEAKS.seconds({}, 2 * SIZES[-1]) == 2 * SIZES[-1] / 5
    assert PEAKS.seconds({"": 1e12}, SIZES[0]) == 1e10
    with pytest.raises(KeyError):
        PEAKS.seconds({"tdpbf16ps": 1}, 0)


def test_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "SIZES", (1 << 10, 1 << 12))
    found = roofline.measure(seconds=0)
    assert found.flops > 0
    assert len(found.bytes) == 2
    assert found.bytes[0] >= found.bytes[1] > 0
    assert set(found.products) <= set(INSTRUCTIONS)
    assert all(rate > 0 for rate in found.products.values())
