"""Lookups as large as in production, alone: how much of the memory's speed do they reach?

A batch of ids, one for each of 26 tables of a million rows of 128 float32 (13 GB), and the rows
side by side. The artifact is made with holes where the tables are to be, and they are filled where
it is measured: with one block of random numbers, over and over.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, BinaryIO
from unittest import mock

import numpy as np

NAME = "lookups"
TABLES, ROWS, DIM = 26, 1_000_000, 128
BATCHES = (1, 512, 8192, 65536)
_BLOCK = (1 << 24) - 3  # float32 numbers; a table is no multiple of it, so no two are alike


def make_case(case: Path, architectures: str, rows: int = ROWS, dim: int = DIM) -> None:
    """Compile; the weights have holes."""
    import graphopt
    from graphopt.ir import external_data
    from graphopt.ir.dims import Sym
    from graphopt.ir.graph import Graph
    from graphopt.ir.types import TensorType

    graph = Graph(opsets={"": 18})
    parts = []
    for k in range(TABLES):
        # As large as it is to be, and no larger in memory than a number.
        table = graph.constant(np.broadcast_to(np.float32(k), (rows, dim)))
        ids = graph.add_input(f"ids{k}", TensorType("int64", (Sym.named("N"),)))
        parts.append(graph.insert("Gather", [table, ids]).output)
    graph.set_outputs([graph.insert("Concat", parts, {"axis": 1}).output], ["y"])
    case.mkdir(parents=True)
    target = f"cuda:{architectures}" if architectures else "cuda"
    with mock.patch.object(external_data, "_stream", _written_or_skipped):
        graphopt.compile(graph, target, passes="O0", output=case / "fp32.gopt", verify=False)


def _written_or_skipped(array: np.ndarray, file: BinaryIO) -> None:
    """Write an array, or leave a hole for one that is a number over and over."""
    if array.size > 1 and not any(array.strides):
        file.seek(array.nbytes, 1)
        file.truncate()
    else:
        file.write(np.ascontiguousarray(array).tobytes())


def measure(case: Path, seconds: float) -> dict[str, Any]:
    """Fill the tables, check what is looked up, and time it."""
    import gpu_device

    import graphopt

    path = case / "fp32.gopt"
    tables = _filled(path)
    artifact = graphopt.load(path)
    rows, dim = tables[0].shape
    found: dict[str, Any] = {"tables": len(tables), "rows": rows, "dim": dim, "batches": {}}
    for batch in BATCHES:
        ids = np.random.default_rng(batch).integers(0, rows, (len(tables), batch))
        feeds = {f"ids{k}": ids[k] for k in range(len(tables))}
        wanted = np.concatenate([table[row] for table, row in zip(tables, ids)], axis=1)
        right = all(np.array_equal(artifact.run(feeds)["y"], wanted) for _ in range(4))
        there = {name: gpu_device.resident(array) for name, array in feeds.items()}
        time = float(median(artifact.device_times(there, 50 if seconds else 1)))
        moved = ids.nbytes + 2 * wanted.nbytes
        found["batches"][batch] = {"right": right, "device": time, "bytes": moved}
    return found


def _filled(path: Path) -> list[np.ndarray]:
    """The tables of the artifact, written to its weights."""
    block = np.random.default_rng(0).standard_normal(_BLOCK, np.float32)
    entries = json.loads((path / "manifest.json").read_text())["weights"]
    place, tables = 0, []
    for entry in entries:
        if entry["dtype"] != "float32" or len(entry["shape"]) != 2:
            continue
        table = np.memmap(
            path / "weights.bin", np.float32, "r+", entry["offset"], tuple(entry["shape"])
        )
        place = _repeat(block, table.reshape(-1), place)
        tables.append(table)
    return tables


def _repeat(block: np.ndarray, target: np.ndarray, place: int) -> int:
    """Fill `target` with `block`, over and over, from `place` on; where it got to."""
    done = 0
    while done < target.size:
        part = block[place : place + target.size - done]
        target[done : done + part.size] = part
        done, place = done + part.size, (place + part.size) % block.size
    return place


def lines(found: dict[str, Any], ceiling: float) -> Sequence[str]:
    """The figures as text, next to the speed of a copy."""
    shape = f"{found['tables']} tables x {found['rows']:,} x {found['dim']}"
    text = []
    for batch, row in found["batches"].items():
        speed = row["bytes"] / (row["device"] / 1e6)
        text.append(
            f"{NAME}, {shape}, batch {batch}: {'right' if row['right'] else 'WRONG'}, "
            f"{row['device']:.1f} us, {speed / 1e9:.0f} GB/s, {speed / ceiling:.0%} of a copy"
        )
    return text
