"""`graphopt inspect`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from graphopt import console
from graphopt.cli import options
from graphopt.console import count_text, size_text, table

if TYPE_CHECKING:
    from graphopt.inspection import Inspection, Port

MOST_TABLES = 30


def inspect(
    model: options.Runnable,
    batch: options.Batch = 1,
    size: options.Sizes = [],  # noqa: B006  (typer copies it)
    as_json: options.Json = False,
) -> None:
    """Show inputs, tables, parameters and costs.

    Nothing is run: operations and bytes are counted from the graph.
    """
    sizes = dict(_size(text) for text in size)
    from graphopt.inspection import inspect as look

    found = look(model, batch, sizes)
    if as_json:
        print(found.to_json(), end="")
    else:
        _print(found)


def _size(text: str) -> tuple[str, int]:
    name, _, number = text.rpartition("=")
    if not name or not number.isdecimal():
        raise typer.BadParameter(f"--size takes NAME=N, such as length=20, not {text!r}")
    return name, int(number)


def _print(found: Inspection) -> None:
    out = console.stdout()
    out.print(f"{found.name}  ({found.kind})", style="bold")
    for key, value in found.facts.items():
        out.print(f"  {key.replace('_', ' ')}: {_fact(value)}", soft_wrap=True)
    ports = [("input", port) for port in found.inputs] + [("output", port) for port in found.outputs]
    rows = [(kind, port.name, port.dtype, _shape(port)) for kind, port in ports]
    out.print(table(("", "name", "dtype", "shape"), rows, "\nInputs and outputs"))
    _print_tables(found)
    _print_cost(found)


def _fact(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {size_text(size)}" for name, size in value.items())
    return size_text(value) if isinstance(value, int) and value > 1000 else str(value)


def _shape(port: Port) -> str:
    return "?" if port.shape is None else f"[{', '.join(map(str, port.shape))}]"


def _print_tables(found: Inspection) -> None:
    if not found.tables:
        return
    total = size_text(sum(t.bytes for t in found.tables))
    rows: list[tuple[object, ...]] = [
        (t.name, t.rows, t.dim, t.dtype, size_text(t.bytes), ", ".join(t.indexed_by) or "(computed)")
        for t in found.tables[:MOST_TABLES]
    ]
    title = f"\n{len(found.tables)} tables, {total}"
    columns = ("table", ">rows", ">dim", "dtype", ">bytes", "indexed by")
    out = console.stdout()
    out.print(table(columns, rows, title))
    if len(found.tables) > MOST_TABLES:
        out.print(f"… and {len(found.tables) - MOST_TABLES} smaller ones (--json shows all)")


def _print_cost(found: Inspection) -> None:
    out = console.stdout()
    sizes = ", ".join(f"{name}={number}" for name, number in found.sizes.items()) or "fixed sizes"
    flops, moved = max(1, found.flops), max(1, found.bytes)
    rows = [
        (use.op, use.count, f"{use.flops / flops:.1%}", f"{use.bytes / moved:.1%}", use.uncounted or "")
        for use in found.ops
    ]
    out.print(
        f"\nCost at batch {found.batch} ({sizes})\n"
        f"  parameters: {count_text(found.parameters)} ({size_text(found.weight_bytes)})\n"
        f"  operations per sample: {count_text(found.flops / found.batch)}\n"
        f"  bytes read and written per sample: {size_text(found.bytes / found.batch)}",
        soft_wrap=True,
    )
    if found.uncounted:
        out.print("  not counted, as their sizes are known only at run time: see the last column")
    columns = ("op", ">nodes", ">operations", ">bytes", ">not counted")
    out.print(table(columns if found.uncounted else columns[:-1], (
        row if found.uncounted else row[:-1] for row in rows
    ), "\nOps"))  # fmt: skip
