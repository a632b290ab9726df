"""`graphopt bench`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from graphopt.cli import console, options

if TYPE_CHECKING:
    from graphopt.measuring.benchmark import Benchmark


def bench(
    model: options.Runnable,
    source: options.Source = None,
    batch: options.Batches = "1,64,512",
    inputs: options.Inputs = None,
    peers: options.Peers = "onnxruntime,openvino",
    seconds: options.Seconds = 1.0,
    precision: options.Precision = options.PrecisionName.FP32,
    seed: options.Seed = 0,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure latency next to other engines.

    The engines take turns on the same inputs, in one process with one thread each. A model file
    is compiled first. Random ids spread over whole tables; those of your requests (--inputs)
    find more in the caches.
    """
    batches = options.batch_sizes(batch)
    from graphopt import arrays
    from graphopt.measuring import benchmark

    feeds = arrays.read(inputs) if inputs else None
    if feeds is not None:
        batches = (min((len(array) for array in feeds.values() if array.ndim), default=1),)

    with console.progress(quiet, False) as tell:
        found = benchmark.bench(
            model,
            source=source,
            batches=batches,
            peers=peers,
            seconds=seconds,
            inputs=None if feeds is None else [feeds],
            precision=precision.value,
            seed=seed,
            progress=tell,
        )
    if not quiet:
        for line in benchmark.left_out_lines(found.left_out):
            console.warning(line)
    if as_json:
        print(json.dumps(found.to_json(), indent=2))
    else:
        _print(found)


def _print(found: Benchmark) -> None:
    out = console.stdout()
    columns = (">batch", "engine", ">median", ">p95", ">p99", ">ratio", ">difference")
    title = f"{found.model}: µs per call, one thread, {found.machine['cpu']}"
    out.print(console.table(columns, _lines(found), title))
    out.print("\nratio: median over graphopt's; difference: largest from graphopt's outputs")


def _lines(found: Benchmark) -> Iterator[tuple[object, ...]]:
    for row in found.rows:
        for name, taken in row.latencies.items():
            peer = name in row.differences
            compared = (
                (f"{row.ratio(name):.2f}", f"{row.differences[name]:.1e}") if peer else ("", "")
            )
            times = (f"{time:.1f}" for time in (taken.median, taken.p95, taken.p99))
            yield ("" if peer else row.batch, name, *times, *compared)
