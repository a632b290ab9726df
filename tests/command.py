"""Runs the command line, in this process or in one of its own."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    status: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """The lines that report an error."""
        return [line for line in self.err.splitlines() if line.startswith("graphopt: error: ")]


def graphopt(*args: object) -> Outcome:
    """Run `graphopt ARGS` in this process, where neither stream is a terminal."""
    from graphopt.cli import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([str(arg) for arg in args])
    return Outcome(status, out.getvalue(), err.getvalue())


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment for a child: one thread, no forced colours."""
    kept = {k: v for k, v in os.environ.items() if k not in ("FORCE_COLOR", "NO_COLOR", "TERM")}
    return {**kept, "OMP_NUM_THREADS": "1", "TVM_NUM_THREADS": "1", **(extra or {})}


def start(*args: object, cwd: Path | None = None, **options: Any) -> subprocess.Popen[str]:
    """Start `graphopt ARGS` as a child process."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    env = environment(options.pop("env", None))
    command = [sys.executable, "-m", "graphopt", *map(str, args)]
    return subprocess.Popen(command, cwd=cwd, env=env, text=True, **options)


def finish(child: subprocess.Popen[str], timeout: float = 120) -> Outcome:
    """Wait for a child."""
    out, err = child.communicate(timeout=timeout)
    return Outcome(child.returncode, out or "", err or "")
