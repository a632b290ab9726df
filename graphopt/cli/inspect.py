"""`graphopt inspect`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.cli import console, options
from graphopt.cli.console import count_text, size_text, table
from graphopt.errors import SpecError

if TYPE_CHECKING:
    from graphopt.inspection import Inspection, OpUse, Port

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
        raise SpecError(f"--size takes NAME=N, such as length=20, not {text!r}")
    return name, int(number)


def _print(found: Inspection) -> None:
    out = console.stdout()
    out.print(f"{found.name}  ({found.kind})", style="bold")
    for key, value in found.facts.items():
        out.print(f"  {key.replace('_', ' ')}: {_fact(value)}", soft_wrap=True)
    ports = [("input", p) for p in found.inputs] + [("output", p) for p in found.outputs]
    rows = [(kind, port.name, port.dtype, _shape(port)) for kind, port in ports]
    out.print(table(("", "name", "dtype", "shape"), rows, "\nInputs and outputs"))
    if found.tables:
        _print_tables(found)
    _print_cost(found)
    _print_ops(found)


def _fact(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {size_text(size)}" for name, size in value.items())
    return size_text(value) if isinstance(value, int) and value > 1000 else str(value)


def _shape(port: Port) -> str:
    return "?" if port.shape is None else f"[{', '.join(map(str, port.shape))}]"


def _print_tables(found: Inspection) -> None:
    out = console.stdout()
    rows = [
        (
            t.name,
            t.rows,
            t.dim,
            t.dtype,
            size_text(t.bytes),
            ", ".join(t.indexed_by) or "(computed)",
        )
        for t in found.tables[:MOST_TABLES]
    ]
    title = f"\nTables: {len(found.tables)}, {size_text(sum(t.bytes for t in found.tables))}"
    out.print(table(("table", ">rows", ">dim", "dtype", ">bytes", "indexed by"), rows, title))
    if len(found.tables) > MOST_TABLES:
        out.print(f"… and {len(found.tables) - MOST_TABLES} smaller ones (--json shows all)")


def _print_cost(found: Inspection) -> None:
    labels = {name.partition("@")[0]: number for name, number in found.sizes.items()}
    sizes = ", ".join(f"{name}={number}" for name, number in labels.items())
    out = console.stdout()
    out.print(f"\nCost at batch {found.batch}", style="bold")
    lines = [
        ("sizes", sizes or "all fixed"),
        ("parameters", f"{count_text(found.parameters)} ({size_text(found.weight_bytes)})"),
        ("operations per sample", count_text(found.flops / found.batch)),
        ("bytes read and written per sample", size_text(found.bytes / found.batch)),
    ]
    for label, text in lines:
        out.print(f"  {label}: {text}", soft_wrap=True)


def _print_ops(found: Inspection) -> None:
    """Every op by falling cost; those that stand in subgraphs only come last."""
    flops, moved = max(1, found.flops), max(1, found.bytes)
    rows: list[tuple[object, ...]] = [
        (use.op, found.nodes[use.op], _share(use.flops, flops), _share(use.bytes, moved), _not(use))
        for use in found.ops
    ]
    costed = {use.op for use in found.ops}
    rows += [(op, n, "", "", "") for op, n in found.nodes.items() if op not in costed]
    title = f"\nNodes: {sum(found.nodes.values())} (including those in subgraphs)"
    console.stdout().print(table(("op", ">nodes", ">operations", ">bytes", ""), rows, title))


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if part else ""


def _not(use: OpUse) -> str:
    return f"{use.uncounted} not counted: sizes known only at run time" if use.uncounted else ""
