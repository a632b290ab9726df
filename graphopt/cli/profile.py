"""`graphopt profile`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from graphopt.cli import console, options
from graphopt.cli.console import count_text, size_text

if TYPE_CHECKING:
    from graphopt.measuring.feature_times import TableTime
    from graphopt.measuring.profiling import KernelTime, Profile
    from graphopt.measuring.roofline import Roofline

MOST_SOURCES = 3
KERNEL_COLUMNS = (">µs", ">share", ">flops", ">bytes", ">bound µs", "kernel", "from")
TABLE_COLUMNS = (">µs", ">share", ">bytes", ">rows", ">dim", ">bits", "table", "ids from")
LESS = (">bits", ">dim", ">flops", ">bytes", ">rows", ">bound µs")
"""Columns that narrow terminals do without, the first ones first."""


def profile(
    artifact: options.Compiled,
    batch: options.Batch = 64,
    inputs: options.Inputs = None,
    seconds: options.Seconds = 1.0,
    seed: options.Seed = 0,
    as_json: options.Json = False,
) -> None:
    """Show where the time goes: kernels, tables, features.

    The bound is the least time that this machine needs for the operations of a kernel, or to
    move its bytes from the smallest cache that holds them. It follows from what the machine does
    at best: multiply-adds in registers, by each instruction for products, and copies of several
    sizes. This is measured once and kept in your cache folder. There are no bounds for a GPU.

    Narrow terminals show fewer columns and shorter names; --json has everything.

    The time of a kernel that reads several tables is divided among them by the bytes moved. A
    feature is charged with the kernels that depend on it alone. For an artifact that was built
    for another machine, or for a GPU that is not there, only operations and bytes are shown.
    """
    from graphopt import arrays
    from graphopt.measuring import profiling

    feeds = arrays.read(inputs) if inputs else None
    found = profiling.profile(artifact, batch, seconds=seconds, inputs=feeds, seed=seed)
    if as_json:
        print(json.dumps(found.to_json(), indent=2))
    else:
        _print(found)


def _print(found: Profile) -> None:
    out = console.stdout()
    runs = f", medians of {found.runs} runs" if found.runs else ""
    title = f"batch {found.batch}{runs}; {found.device}"
    if found.peaks is not None:
        title += f"\none core: {_rates(found.peaks)}\ncopies: {_copies(found.peaks)}"
    rows = [_row(kernel, found.inside) for kernel in found.kernels]
    out.print(title, style="bold")
    out.print(console.table(*console.fitted(out.width, KERNEL_COLUMNS, rows, LESS)))
    if found.tables:
        rows = [_table_row(table, found.inside) for table in found.tables]
        out.print()
        out.print(console.table(*console.fitted(out.width, TABLE_COLUMNS, rows, LESS)))
    if found.features:
        named = [
            (*_time(f.microseconds, found.inside), f.feature or "several together")
            for f in found.features
        ]
        out.print()
        out.print(console.table(*console.fitted(out.width, (">µs", ">share", "feature"), named)))
    if found.total is not None:
        out.print(
            f"\nwhole call {found.total:.1f} µs, in kernels {found.inside:.1f} µs"
            + (f", bound {found.bound:.1f} µs" if found.peaks is not None else "")
        )


def _rates(peaks: Roofline) -> str:
    others = (f"{count_text(rate)}op/s by {name}" for name, rate in peaks.products.items())
    return ", ".join((f"{count_text(peaks.flops)}FLOP/s", *others))


def _copies(peaks: Roofline) -> str:
    from graphopt.measuring.roofline import SIZES

    sizes = (f"{size >> 20} MiB" if size >> 20 else f"{size >> 10} KiB" for size in SIZES)
    return ", ".join(f"{size_text(r)}/s of {size}" for size, r in zip(sizes, peaks.bytes))


def _row(kernel: KernelTime, inside: float) -> tuple[str, ...]:
    more = len(kernel.sources) - MOST_SOURCES
    sources = ", ".join(kernel.sources[:MOST_SOURCES]) + (f" and {more} more" if more > 0 else "")
    return (
        *_time(kernel.microseconds, inside),
        "" if kernel.flops is None else count_text(kernel.flops),
        _bytes(kernel.bytes),
        "" if kernel.bound is None else f"{kernel.bound:.2f}",
        kernel.kernel,
        sources,
    )


def _table_row(table: TableTime, inside: float) -> tuple[str, ...]:
    size = map(str, (table.rows, table.dim, table.bits))
    named = (table.table, ", ".join(table.features))
    return (*_time(table.microseconds, inside), _bytes(table.bytes), *size, *named)


def _time(microseconds: float | None, inside: float) -> tuple[str, str]:
    """The columns µs and share."""
    if microseconds is None:
        return "", ""
    return f"{microseconds:.2f}", f"{microseconds / inside:.1%}" if inside else ""


def _bytes(moved: int | None) -> str:
    return "" if moved is None else size_text(moved)
