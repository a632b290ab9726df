"""What becomes of exceptions: one line each, and the right exit status."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import typer
from command import Outcome, graphopt

from graphopt import api, errors


@pytest.fixture
def raising(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):  # type: ignore[no-untyped-def]
    """Runs a verb whose library call raises."""

    def run(error: BaseException) -> Outcome:
        def fail(*args: object, **kwargs: object) -> None:
            raise error

        monkeypatch.setattr(api, "runnable", fail)
        return graphopt("run", tmp_path / "m.onnx", "--random")

    return run


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.InvalidModelError("no good"), 1),
        (errors.SpecError("no good"), 2),
        (errors.VerificationError("no good"), 3),
        (errors.BudgetExceededError("no good"), 4),
        (errors.PassError("no good"), 70),
        (errors.OutputError("no good"), 1),
    ],
)
def test_own_errors(raising, error: Exception, status: int) -> None:  # type: ignore[no-untyped-def]
    assert raising(error) == Outcome(status, "", "graphopt: error: no good\n")


def test_every_error_class_has_a_status() -> None:
    classes = [c for c in vars(errors).values() if isinstance(c, type)]
    assert len(classes) > 8
    assert {c.exit_code for c in classes} <= {1, 2, 3, 4, 5, 70}


def test_caret_under_a_specification(raising) -> None:  # type: ignore[no-untyped-def]
    found = raising(errors.SpecError("no such pass", "dce,cee", 4))
    assert found.err == "graphopt: error: no such pass\n  dce,cee\n      ^\n"


def test_long_messages_are_one_line(raising) -> None:  # type: ignore[no-untyped-def]
    text = "word " * 200
    assert raising(errors.InputError(text)).err == f"graphopt: error: {text.strip()}\n"


def test_brackets_are_text(raising) -> None:  # type: ignore[no-untyped-def]
    assert (
        "shape [red]3[/red] [N, 4]" in raising(errors.InputError("shape [red]3[/red] [N, 4]")).err
    )


def test_a_bug_is_called_a_bug(raising) -> None:  # type: ignore[no-untyped-def]
    found = raising(KeyError("x"))
    assert found.status == 70
    assert len(found.errors) == 1
    assert "this is a bug in graphopt (KeyError: 'x')" in found.err
    assert "Traceback" not in found.err


def test_a_bug_without_words(raising) -> None:  # type: ignore[no-untyped-def]
    assert "(AssertionError" in raising(AssertionError()).err


def test_traceback_on_request(raising, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore
    monkeypatch.setenv("GRAPHOPT_TRACEBACK", "1")
    found = raising(KeyError("x"))
    assert found.status == 70
    assert "Traceback" in found.err
    assert len(found.errors) == 1


def test_errors_of_the_system(raising) -> None:  # type: ignore[no-untyped-def]
    found = raising(OSError(errno.ENOSPC, "No space left on device", "/data/x"))
    assert (found.status, found.err) == (1, "graphopt: error: /data/x: No space left on device\n")
    assert raising(MemoryError()).err == "graphopt: error: out of memory\n"
    assert raising(OSError("no number")).status == 70


def test_interrupted(raising) -> None:  # type: ignore[no-untyped-def]
    assert raising(KeyboardInterrupt()) == Outcome(130, "", "graphopt: interrupted\n")


def test_status_of_a_library_that_exits(raising) -> None:  # type: ignore[no-untyped-def]
    assert raising(SystemExit(5)).status == 5
    assert raising(SystemExit("text")).status == 70
    assert raising(typer.Exit(4)).status == 4
