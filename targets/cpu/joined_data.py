"""Layers that read parts of their data where these are, instead of a copy of them side by side."""

from __future__ import annotations

from dataclasses import replace

from graphopt.ir.graph import Graph, Node, Value
from graphopt.rewrite.rewriter import erase_dead
from graphopt.targets.cpu import DOMAIN
from graphopt.targets.cpu.id_arithmetic import columns_of
from graphopt.targets.cpu.kernels.panels import MAX_PARTS, Columns

Part = tuple[Value, Columns]


def read_parts(graph: Graph) -> None:
    """Let layers read the operands of concatenations and slices that only layers read, in place.

    Afterwards the attribute `parts` of a Dense says what its data are columns of: its first input,
    and those after its operands.
    """
    for node in reversed(list(graph.walk())):
        if node.op in ("Concat", "Slice", "Split", "Gather"):
            for value in node.outputs:
                _dissolve(value)


def data_of(dense: Node) -> list[Part]:
    """What a layer multiplies, side by side."""
    after = 3 + len(dense.attrs.get("steps", ()))
    matrices = [dense.inputs[0], *dense.inputs[after:]]
    width = dense.inputs[1].tensor.dims[0]  # type: ignore[union-attr]
    parts = dense.attrs.get("parts") or (Columns(0, width, width),)  # type: ignore[arg-type]
    return list(zip(matrices, parts))  # type: ignore[arg-type]


def _dissolve(value: Value) -> None:
    """Have the readers of a value read what it is made of, if all of them are layers that can."""
    made_of = _made_of(value)
    if made_of is None or value.is_graph_output:
        return
    users = dict.fromkeys(user for user, _ in value.uses)
    layers = [u for u in users if isinstance(u, Node) and _parts(u, value, made_of) is not None]
    if len(layers) < len(users):
        return
    for layer in layers:
        parts = _parts(layer, value, made_of)  # again: what one reads may be what another gave
        assert parts is not None
        _read(layer, parts)
    if value.producer is not None and value.producer.graph is not None:
        erase_dead(value.producer.graph, [value.producer])


def _made_of(value: Value) -> list[Part] | None:
    """The columns that a float32 tensor consists of, side by side."""
    node, width = value.producer, value.tensor.dims[-1] if value.rank else None
    if node is None or value.dtype != "float32" or not isinstance(width, int):
        return None
    if node.op != "Concat":
        taken = columns_of(value) if value.rank == 2 else None
        if taken is None or taken[0].tensor.dims[0] != value.tensor.dims[0]:
            return None
        matrix, start = taken
        return [(matrix, Columns(start, width, matrix.tensor.dims[1]))]  # type: ignore[arg-type]
    operands = node.operands
    widths = [operand.tensor.dims[-1] for operand in operands]
    joined = node.attr("axis") % (value.rank or 1) == (value.rank or 1) - 1
    alike = all(operand.tensor.dims[:-1] == value.tensor.dims[:-1] for operand in operands)
    if not joined or not alike or not all(isinstance(width, int) for width in widths):
        return None
    return [(v, Columns(0, wide, wide)) for v, wide in zip(operands, widths)]  # type: ignore


def _parts(layer: Node, value: Value, made_of: list[Part]) -> list[Part] | None:
    """The data of a layer with `made_of` in the place of `value`; None if it has to read that."""
    if layer.op != f"{DOMAIN}::Dense" or "data" in layer.attrs or "words" in layer.attrs:
        return None
    data, steps = data_of(layer), len(layer.attrs.get("steps", ()))
    if value in layer.inputs[3 : 3 + steps]:
        return None
    found: list[Part] = []
    for matrix, columns in data:
        if matrix is not value:
            found.append((matrix, columns))
        elif columns.width == columns.source:
            found += made_of
        elif len(made_of) == 1:
            (source, outer) = made_of[0]
            moved = replace(outer, start=outer.start + columns.start, width=columns.width)
            found.append((source, moved))
        else:
            return None
    return found if len(found) <= MAX_PARTS else None


def _read(layer: Node, parts: list[Part]) -> None:
    """Put a layer that reads these parts in the place of another."""
    graph, steps = layer.graph, len(layer.attrs.get("steps", ()))
    assert graph is not None
    (first, _), *others = parts
    given = [first, *layer.inputs[1 : 3 + steps]]
    given += [None] * (3 + steps - len(given)) + [matrix for matrix, _ in others]
    attrs = {**layer.attrs, "parts": tuple(columns for _, columns in parts)}
    made = graph.insert(
        layer.op_type, given, attrs, domain=DOMAIN, before=layer, origin=layer.origin
    )
    graph.replace_uses(layer.output, made.output)
    graph.erase(layer)
