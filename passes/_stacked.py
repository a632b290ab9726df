"""Tables stacked in one."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from graphopt.ir.graph import Node, Value


def stacked(tables: Sequence[Value]) -> tuple[np.ndarray, list[int]]:
    """The constants `tables` in one, each once, and where in it each of them begins."""
    starts: dict[Value, int] = {}
    arrays: list[np.ndarray] = []
    for table in tables:
        if table not in starts and table.const is not None:
            starts[table] = sum(map(len, arrays))
            arrays.append(table.const)
    return np.concatenate(arrays), [starts[table] for table in tables]


def stacking_refusal(
    tables: Collection[Value], readers: Collection[Node], max_bytes: int, max_growth: int
) -> str | None:
    """Why not to stack tables that `readers` read: they are too large, or stay for others too."""
    sizes = {table: table.const.nbytes for table in tables if table.const is not None}
    total = sum(sizes.values())
    if total > max_bytes:
        return f"its tables take {total} bytes; max_bytes is {max_bytes}"
    growth = sum(size for table, size in sizes.items() if not set(readers).issuperset(table.users))
    if growth > max_growth:
        return f"the model would grow by {growth} bytes; max_growth is {max_growth}"
    return None
