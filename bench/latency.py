"""Interleaved latency of an artifact and of its source model in ONNX Runtime, one thread each.

    python bench/latency.py model.onnx model.gopt --batch 1,64,512

Calls of both alternate within one process, so that a noisy neighbour hits both alike; medians are
compared. ONNX Runtime runs with all of its optimizations.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

import graphopt
from graphopt.inspection import batch_sizes
from graphopt.testing import random_inputs


def onnxruntime_runner(path: Path) -> Callable[[Mapping[str, np.ndarray]], object]:
    """The model in ONNX Runtime at its best general settings for one thread."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda feeds: session.run(None, dict(feeds))


def interleaved(
    runners: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 20
) -> dict[str, float]:
    """Median seconds of each runner over alternating calls."""
    for run in runners.values():
        for _ in range(warmup):
            run()
    times: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(rounds):
        for name, run in runners.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(taken) for name, taken in times.items()}


def compare(model: Path, artifact: Path, batches: list[int], rounds: int) -> list[dict[str, float]]:
    """One row per batch: microseconds of both and the ratio (over 1: the artifact is faster)."""
    graph, compiled = graphopt.load(model), graphopt.load(artifact)
    original = onnxruntime_runner(model)
    rows = []
    for batch in batches:
        feeds = random_inputs(graph, batch_sizes(graph, batch), seed=0)
        runners = {"onnxruntime": original, "graphopt": compiled.run}
        calls = {name: partial(run, feeds) for name, run in runners.items()}
        medians = interleaved(calls, rounds)
        ratio = medians["onnxruntime"] / medians["graphopt"]
        rows.append({"batch": batch, **{k: s * 1e6 for k, s in medians.items()}, "ratio": ratio})
    return rows


def show(rows: list[dict[str, float]]) -> None:
    """Print the rows as a table."""
    table = Table(title="median latency, one thread")
    for column in ("batch", "ONNX Runtime, µs", "graphopt, µs", "ratio"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            str(row["batch"]),
            f"{row['onnxruntime']:.0f}",
            f"{row['graphopt']:.0f}",
            f"{row['ratio']:.2f}x",
        )
    Console().print(table)


def main(
    model: Path,
    artifact: Path,
    batch: Annotated[str, typer.Option(help="batch sizes, comma separated")] = "1,64,512",
    rounds: Annotated[int, typer.Option(help="calls of each per batch size")] = 300,
) -> None:
    """Compare an artifact with its source model in ONNX Runtime."""
    show(compare(model, artifact, [int(size) for size in batch.split(",")], rounds))


if __name__ == "__main__":
    typer.run(main)
