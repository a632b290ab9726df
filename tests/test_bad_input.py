"""Every bad input gets its exit status and one clear line, and leaves nothing behind."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from bad_input_cases import CASES, Case, Kit
from command import graphopt


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Compiles the good model on first use."""
    folder = tmp_path_factory.mktemp("compiled")

    def make() -> Path:
        path = folder / "model.gopt"
        if not path.exists():
            made = graphopt("optimize", Kit(folder, make).model(), "-o", path, "-q")
            assert made.status == 0, made.err
        return path

    return make


def files(folder: Path) -> dict[str, bytes | None]:
    """Every file below `folder` with what it holds."""
    found = sorted(folder.rglob("*"))
    return {str(p): p.read_bytes() if p.is_file() else None for p in found}


def test_there_are_enough_of_them() -> None:
    assert len(CASES) >= 40
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_bad_input(case: Case, tmp_path: Path, compiled: Callable[[], Path]) -> None:
    kit = Kit(tmp_path, compiled)
    args = case.args(kit)
    before = files(tmp_path)
    outcome = case.run(kit, args)
    assert outcome.status == case.status, outcome
    assert "Traceback" not in outcome.err + outcome.out
    assert re.search(case.says, outcome.err), outcome.err
    lines = outcome.err.splitlines()
    first = [line for line in lines if not line.startswith("  ")]
    assert len(first) == (1 if case.says else 0), outcome.err
    assert not first or first[0].startswith("graphopt: "), outcome.err
    assert files(tmp_path) == before, "something was left behind"


def test_good_input_is_good(tmp_path: Path, compiled: Callable[[], Path]) -> None:
    kit = Kit(tmp_path, compiled)
    artifact = kit.artifact()
    assert graphopt("run", artifact, "--inputs", kit.arrays()).status == 0
    assert graphopt("check", kit.model(), artifact).status == 0
    assert graphopt("inspect", artifact).status == 0
