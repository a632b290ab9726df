"""The verbs together, and what becomes of their errors."""

from __future__ import annotations

import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Annotated, Any

import typer

from graphopt.cli import (
    bench,
    bundle,
    check,
    console,
    explain,
    inspect,
    optimize,
    passes,
    profile,
    run,
    signals,
)
from graphopt.errors import GraphoptError

INTERNAL, BROKEN_PIPE = 70, 128 + signal.SIGPIPE

app = typer.Typer(
    help="Optimize ONNX recommendation and ranking models and compile them.",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    invoke_without_command=True,
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"graphopt {version('graphopt')}")
        raise typer.Exit


_STATUS = "0 ok, 1 error, 2 usage, 3 answers differ, 4 budget not met, 5 cache miss, 70 a bug."


@app.callback(epilog=f"Exit status: {_STATUS}")
def _root(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())


def _guarded(verb: Callable[..., int | None]) -> Callable[..., int]:
    """`verb`, with its errors reported before typer sees them; returns the exit status."""

    @wraps(verb)
    def guarded(*args: Any, **kwargs: Any) -> int:
        received: list[int] = []
        try:
            with signals.ending(received), warnings.catch_warnings():
                if not sys.warnoptions:
                    warnings.simplefilter("ignore")  # libraries' advice to their own callers
                status = verb(*args, **kwargs) or 0
                sys.stdout.flush()
            return status
        except BaseException as error:
            return signals.stopped(received[0]) if received else report(error)

    return guarded


for _verb in (
    optimize.optimize,
    run.run,
    check.check,
    bench.bench,
    profile.profile,
    inspect.inspect,
    explain.explain,
    passes.passes,
    bundle.bundle,
):
    app.command()(_guarded(_verb))


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status is returned."""
    try:
        status = app(args, prog_name="graphopt", standalone_mode=False)
        sys.stdout.flush()
    except BaseException as error:
        status = report(error)
    return int(status or 0)


def report(error: BaseException) -> int:
    """Print one line on what went wrong, and return the exit status that belongs to it."""
    if os.environ.get("GRAPHOPT_TRACEBACK") == "1":
        traceback.print_exception(error)
    if isinstance(error, (SystemExit, typer.Exit)):
        code = error.exit_code if isinstance(error, typer.Exit) else error.code
        return code if isinstance(code, int) else INTERNAL
    if isinstance(error, BrokenPipeError):
        # Python flushes stdout once more at exit; let it go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        return signals.stopped(signal.SIGINT)
    text, status = _explained(error)
    console.error(text)
    return status


def _explained(error: BaseException) -> tuple[str, int]:
    """What to say about an error, and the exit status."""
    if isinstance(error, GraphoptError):
        return str(error), error.exit_code
    if hasattr(error, "format_message"):  # typer's own: the command line makes no sense
        said = error.format_message().replace("Value error, ", "").rstrip(".")
        return f"{said} (try --help)", getattr(error, "exit_code", 2)
    if isinstance(error, OSError) and error.strerror:
        return f"{f'{error.filename}: ' if error.filename else ''}{error.strerror}", 1
    if isinstance(error, MemoryError):
        return "out of memory", 1
    reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    hint = "set GRAPHOPT_TRACEBACK=1 for details, and please report it"
    return f"this is a bug in graphopt ({reason}); {hint}", INTERNAL
