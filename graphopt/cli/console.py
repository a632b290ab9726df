"""What people read on a terminal: messages, progress, tables.

Messages and progress go to stderr, what was asked for goes to stdout. Colour and spinners appear
only on a terminal, and colour not where NO_COLOR is set.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TextIO

from rich.console import Console, ConsoleOptions
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

Tell = Callable[[str], None]

PIPE_WIDTH = 200  # columns where there is no terminal to ask; nothing is cut short
SHORT = 12  # characters of cells that are not broken into lines
_GAP = 2  # between columns


class _Console(Console):
    """A console that lets the caller know when nobody reads any more; rich would exit with 1."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def console(stream: TextIO) -> Console:
    """A console on `stream` that prints text as it is."""
    width = None if stream.isatty() else PIPE_WIDTH
    return _Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


class _Table(Table):
    """A table whose lines end where their text does, not where the last column does."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        filled = super().__rich_console__(console, options)
        for line in Segment.split_lines(part for part in filled if isinstance(part, Segment)):
            while line and not line[-1].text.rstrip(" "):
                line.pop()
            if line:
                text, style, _ = line.pop()
                line.append(Segment(text.rstrip(" "), style))
            yield from line
            yield Segment.line()


def stdout() -> Console:
    """For what the user asked for."""
    return console(sys.stdout)


def stderr() -> Console:
    """For everything else."""
    return console(sys.stderr)


def message(kind: str, text: str, style: str = "") -> None:
    """Print `graphopt: kind: text` as one line, further lines of `text` indented below it."""
    first, *rest = text.strip().splitlines() or [""]
    line = Text("graphopt: ", style="bold")
    if kind:
        line.append(f"{kind}: ", style=style)
    line.append(first, style="not bold")
    for more in rest:
        line.append(f"\n{more if more.startswith('  ') else f'  {more}'}", style="not bold")
    stderr().print(line, soft_wrap=True)


def error(text: str) -> None:
    """Say what went wrong."""
    message("error", text, "bold red")


def warning(text: str) -> None:
    """Say what may be wrong."""
    message("warning", text, "bold yellow")


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str = "") -> Table:
    """A table without lines: a column called `>x` is right-aligned.

    On narrow terminals columns of long text are broken into lines.
    """
    cells = [[cell if isinstance(cell, Text) else str(cell) for cell in row] for row in rows]
    made = _Table(box=None, pad_edge=False, title=title or None, title_justify="left")
    made.title_style = "bold"
    for k, column in enumerate(columns):
        name = column.removeprefix(">")
        right = name != column
        whole = right or max((len(row[k]) for row in cells), default=0) <= SHORT
        justify: Literal["left", "right"] = "right" if right else "left"
        made.add_column(name, justify=justify, no_wrap=whole, overflow="fold")
    for row in cells:
        made.add_row(*row)
    return made


def fitted(
    width: int, columns: Sequence[str], rows: Iterable[Sequence[str]], spare: Sequence[str] = ()
) -> tuple[list[str], list[list[str]]]:
    """Columns and rows for a `table` of so many characters, one line for each row.

    Of text that is too long the end is kept, and some of the beginning. If all text had less than
    half of the width, columns in `spare` are left out, the first ones first.
    """
    cells = [dict(zip(columns, row)) for row in rows]
    needs = {c: max(len(t) for t in (c.removeprefix(">"), *(r[c] for r in cells))) for c in columns}
    kept, texts = list(columns), [c for c in columns if not c.startswith(">")]

    def room() -> int:
        return width - sum(needs[c] for c in kept if c not in texts) - _GAP * (len(kept) - 1)

    for column in (column for column in spare if column in kept):
        if room() < min(width // 2, sum(needs[c] for c in texts)):
            kept.remove(column)
    widths, left = dict(needs), room()
    for k, column in enumerate(sorted(texts, key=lambda c: needs[c])):
        widths[column] = min(needs[column], left // (len(texts) - k))
        left -= widths[column]
    return kept, [[_shortened(row[c], widths[c]) for c in kept] for row in cells]


def _shortened(text: str, width: int) -> str:
    if len(text) <= width:
        return text
    tail = max(0, 2 * (width - 1) // 3)
    return text[: max(0, width - 1 - tail)] + "…" + text[len(text) - tail :]


@contextmanager
def progress(quiet: bool, verbose: bool) -> Iterator[Tell]:
    """A function to tell the present step to: a spinner on a terminal, lines of text if verbose."""
    if quiet or not sys.stderr.isatty():
        yield _print_step if verbose and not quiet else _ignore_step
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=stderr(), transient=True) as bar:
        task = bar.add_task("load")
        yield lambda step: bar.update(task, description=step)


def _print_step(step: str) -> None:
    message("", f"{step} …")


def _ignore_step(step: str) -> None:
    pass


def size_text(size: float) -> str:
    """Bytes for people: `1.54 GB` (powers of 1000)."""
    return _scaled(size, ("B", "kB", "MB", "GB", "TB"))


def count_text(count: float) -> str:
    """A number for people: `4.49 M`."""
    return _scaled(count, ("", "k", "M", "G", "T"))


def _scaled(number: float, units: Sequence[str]) -> str:
    step = 0
    while abs(number) >= 999.5 and step < len(units) - 1:
        number, step = number / 1000, step + 1
    whole = step == 0 and float(number).is_integer()
    return (f"{number:.0f} {units[step]}" if whole else f"{number:.3g} {units[step]}").rstrip()
