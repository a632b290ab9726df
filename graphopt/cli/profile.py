"""`graphopt profile`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from graphopt import console
from graphopt.cli import options
from graphopt.console import count_text, size_text

if TYPE_CHECKING:
    from graphopt.profiling import KernelTime, Profile
    from graphopt.roofline import Roofline

MOST_SOURCES = 3


def profile(
    artifact: options.Compiled,
    batch: options.Batch = 64,
    inputs: options.Inputs = None,
    seconds: options.Seconds = 1.0,
    seed: options.Seed = 0,
    as_json: options.Json = False,
) -> None:
    """Show where the time of an artifact goes, kernel by kernel.

    The bound is the time that this machine needs at least for the operations of a kernel, or to
    move its bytes if they are in the smallest cache that holds them. Peaks are measured once and
    kept in the user's cache folder. There are no bounds for a GPU.
    """
    from graphopt import arrays, profiling

    feeds = arrays.read(inputs) if inputs else None
    found = profiling.profile(artifact, batch, seconds=seconds, inputs=feeds, seed=seed)
    if as_json:
        print(json.dumps(found.to_json(), indent=2))
    else:
        _print(found)


def _print(found: Profile) -> None:
    out = console.stdout()
    rows = [_row(kernel, found.inside) for kernel in found.kernels]
    columns = (">µs", ">share", ">flops", ">bytes", ">bound µs", "kernel", "from")
    title = f"batch {found.batch}, medians of {found.runs} runs; {found.device}"
    if found.peaks is not None:
        title += f", one core: {_rates(found.peaks)}"
    out.print(console.table(columns, rows, title))
    out.print(
        f"\nwhole call {found.total:.1f} µs, in kernels {found.inside:.1f} µs"
        + (f", bound {found.bound:.1f} µs" if found.peaks is not None else "")
    )


def _rates(peaks: Roofline) -> str:
    fast, slow = peaks.bytes[0], peaks.bytes[-1]
    rates = f"{size_text(slow)}/s from memory, {size_text(fast)}/s from cache"
    return f"{count_text(peaks.flops)}FLOP/s, {rates}"


def _row(kernel: KernelTime, inside: float) -> tuple[object, ...]:
    more = len(kernel.sources) - MOST_SOURCES
    sources = ", ".join(kernel.sources[:MOST_SOURCES]) + (f" and {more} more" if more > 0 else "")
    return (
        f"{kernel.microseconds:.2f}",
        f"{kernel.microseconds / inside:.1%}" if inside else "",
        "" if kernel.flops is None else count_text(kernel.flops),
        "" if kernel.bytes is None else size_text(kernel.bytes),
        "" if kernel.bound is None else f"{kernel.bound:.2f}",
        kernel.kernel,
        sources,
    )
