"""The README's commands run, and its code works."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from command import graphopt

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("readme")
    (path / "examples").symlink_to(ROOT / "examples")
    return path


def test_commands(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    commands = [line for block in blocks("sh") for line in block.strip().splitlines()]
    assert len(commands) >= 6
    for command in commands:
        program, *args = shlex.split(command)
        assert program == "graphopt"
        outcome = graphopt(*args)
        assert outcome.status == 0, outcome


def test_python(folder: Path) -> None:
    for block in blocks("python"):
        done = subprocess.run(
            [sys.executable, "-c", block], cwd=folder, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_folders_exist() -> None:
    for name in re.findall(r"^\| `([a-z/]+/)` \|", README, re.MULTILINE):
        assert (ROOT / name).is_dir(), name
