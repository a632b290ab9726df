"""Help is quick, complete and plain."""

from __future__ import annotations

import subprocess
import sys

import pytest
from command import environment, graphopt

VERBS = ["optimize", "run", "check", "bench", "profile", "inspect", "explain", "passes", "bundle"]
HEAVY = {"tvm", "tvm_ffi", "onnx", "onnxruntime", "onnx_graphsurgeon", "numpy", "scipy"}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str) -> None:
    found = graphopt(verb, "--help")
    assert found.status == 0
    assert found.out.startswith(f"Usage: graphopt {verb}")
    assert found.err == ""
    assert graphopt(verb, "-h").out == found.out


def test_the_command_lists_its_verbs() -> None:
    found = graphopt("--help")
    assert found.status == 0
    assert all(f"  {verb} " in found.out for verb in VERBS)
    assert "...\n" not in found.out.partition("Commands:")[2]  # no description is cut short
    assert graphopt().out == found.out


def test_version() -> None:
    from importlib.metadata import version

    assert graphopt("--version").out == f"graphopt {version('graphopt')}\n"


def test_help_imports_nothing_heavy() -> None:
    """So that it appears at once; a timed test would fail on a busy machine."""
    code = f"""
import sys
from graphopt.cli import main
for verb in {VERBS}:
    main([verb, "--help"])
    print(verb, *sys.modules, file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment()
    )
    for line in done.stderr.splitlines():
        verb, *modules = line.split()
        assert not HEAVY & {*modules}, verb
    assert done.stderr.count("\n") == len(VERBS)


def test_module_runs_as_a_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "graphopt", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("graphopt ")
