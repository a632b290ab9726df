"""Colours and spinners on terminals, plain text elsewhere."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from command import environment, graphopt
from rich.console import Console

from graphopt.cli.console import count_text, progress, size_text, table


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (1536, "1.54 kB"),
        (999_600, "1 MB"),
        (1.54e9, "1.54 GB"),
        (2e15, "2e+03 TB"),
    ],
)
def test_sizes(size: float, text: str) -> None:
    assert size_text(size) == text


def test_counts() -> None:
    assert count_text(12) == "12"
    assert count_text(0.25) == "0.25"
    assert count_text(4_489_065) == "4.49 M"


def on_terminal(*args: str, **env: str) -> str:
    """What `graphopt ARGS` writes where stdout and stderr are a terminal."""
    master, slave = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "graphopt", *args],
        stdout=slave,
        stderr=slave,
        env=environment({"TERM": "xterm-256color", "COLUMNS": "100", **env}),
    )
    os.close(slave)
    seen = b""
    while True:
        try:
            data = os.read(master, 4096)
        except OSError:  # the other end is closed
            break
        if not data:
            break
        seen += data
    child.wait()
    os.close(master)
    return seen.decode()


def test_colour_on_a_terminal() -> None:
    assert "\x1b[1;31m" in on_terminal("inspect", "absent.onnx")


def test_no_colour_where_it_is_not_wanted() -> None:
    text = on_terminal("inspect", "absent.onnx", NO_COLOR="1")
    assert "\x1b[31m" not in text
    assert "31m" not in text
    assert "absent.onnx: no such file" in text


def test_spinner_on_a_terminal_leaves_nothing(example: Path, tmp_path: Path) -> None:
    args = ("optimize", str(example), "--target", "onnxruntime", "-o", str(tmp_path / "o.onnx"))
    text = on_terminal(*args)
    assert "\x1b[?25h" in text  # the cursor is back
    assert "verify" in text


def test_no_control_characters_in_a_pipe(model: Path) -> None:
    found = graphopt("inspect", model)
    assert "\x1b" not in found.out + found.err


@pytest.mark.parametrize(("quiet", "verbose", "said"), [(False, True, True), (True, True, False)])
def test_steps_are_lines_in_a_pipe(
    capsys: pytest.CaptureFixture[str], quiet: bool, verbose: bool, said: bool
) -> None:
    with progress(quiet, verbose) as tell:
        tell("build")
    assert (capsys.readouterr().err == "graphopt: build …\n") is said


def test_a_narrow_terminal_breaks_long_text_only() -> None:
    rows = [("one", "12345.6", "text in several words that has to be broken into lines")] * 2
    out = io.StringIO()
    console = Console(file=out, width=40)
    console.print(table(("name", ">number", "says"), rows, "title"))
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    assert lines[1:4] == [
        "name   number  says",
        "one   12345.6  text in several words",
        "               that has to be broken",
    ]
