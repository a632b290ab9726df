"""mypy, strict, over everything that ships."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def link_tree() -> Path:
    """A tree in which type checkers see the packages where they are installed (git-ignored)."""
    tree = ROOT / ".types" / "graphopt"
    tree.mkdir(parents=True, exist_ok=True)
    sources = {
        path.name: path for path in (ROOT / "graphopt").iterdir() if path.name != "__pycache__"
    }
    sources |= {"passes": ROOT / "passes", "targets": ROOT / "targets"}
    for entry in tree.iterdir():
        if entry.name not in sources or not entry.exists():
            entry.unlink()
    for name, source in sources.items():
        if not (tree / name).exists():
            (tree / name).symlink_to(source)
    return tree.parent


def test_types() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "-p", "graphopt"],
        cwd=ROOT,
        env={**os.environ, "MYPYPATH": str(link_tree())},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
