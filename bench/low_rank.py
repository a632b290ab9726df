"""Whether an error budget finds layers of low rank in production shapes, and what that gains.

    python bench/low_rank.py [--only dlrm_mlperf,dcnv2,mmoe_8_experts,xdeepfm] [--rows N]
                             [--factors] [--json FILE]

Models are those of `production.py`, whose larger layers are given weights of a known rank and a
little noise; so are the tensors (left features, right features, maps) of xDeepFM's layers. Labels
follow the model's own scores, so that there is an AUC to lose. What `graphopt optimize --metric auc
--max-drop 0.001` makes is held against the same model compiled without compression, in turns on one
thread. The drop is on rows that had no part in choosing. With `--factors` nothing else may spend
the budget, so that the gain is that of low ranks alone.
"""

from __future__ import annotations

import collections
import json
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import production
import typer
from isolation import run_script
from rich.console import Console
from rich.table import Table

import graphopt
from graphopt.accuracy.budget import Budget
from graphopt.accuracy.datasets import Dataset, in_batches
from graphopt.ir import onnx_io
from graphopt.ir.graph import Graph, Value
from graphopt.latency import interleaved
from graphopt.measuring.benchmark import machine
from graphopt.passes.cancel_transposes import CancelTransposes
from graphopt.passes.cse import Cse
from graphopt.passes.dce import Dce
from graphopt.passes.factorize_low_rank import FactorizeLowRank
from graphopt.passes.factorize_tensors import FactorizeTensors
from graphopt.pipeline.presets import O2
from graphopt.pipeline.report import Report
from graphopt.pipeline.spec import Fixpoint, Pipeline
from graphopt.targets.portable import OnnxModel
from graphopt.testing import random_inputs

SMALLEST = 128  # inputs and outputs of a layer, or maps, that are given a low rank
SHARE = 8  # a rank is this part of the smaller of the two, or of the maps
NOISE = 0.01  # of a weight, over all directions
SAMPLES = 4096  # half of them choose, half judge
MAX_DROP = 0.001
FACTORS = (FactorizeTensors(), Fixpoint((CancelTransposes(), Cse(), Dce())), FactorizeLowRank())
MODELS = {**{n: make for n, (make, _) in production.MODELS.items()}, "xdeepfm": production.xdeepfm}


def planted(graph: Graph, share: int = SHARE, noise: float = NOISE) -> dict[tuple[int, ...], int]:
    """Give the larger layers of `graph` a low rank, in place; the rank for each shape."""
    rng, ranks = np.random.default_rng(0), dict[tuple[int, ...], int]()
    for value in graph.constants():
        weight = value.const
        if weight is None or weight.dtype != np.float32:
            continue
        shape = _shape_of(value)
        width = shape[2] if len(shape) == 3 else min(shape, default=0)
        if width < SMALLEST:
            continue
        rank = width // share
        factors = _sum_of_products([rng.normal(size=(size, rank)) for size in shape])
        changed = factors / rank**0.5 + noise * rng.normal(size=shape)
        if len(shape) == 3:  # a convolution's weight is [maps, pairs of features, 1]
            changed = changed.reshape(-1, shape[2]).T[:, :, None]
        value.const, ranks[shape] = (weight.std() * changed).astype(np.float32), rank
    return ranks


def _shape_of(weight: Value) -> tuple[int, ...]:
    """A layer's inputs and outputs; or features on the left and right, and maps; or nothing."""
    reads = [node.op for node in weight.users]
    assert weight.const is not None
    if reads == ["MatMul"] and weight.const.ndim == 2:
        return weight.const.shape
    if reads == ["Conv"] and weight.const.ndim == 3:
        maps, pairs, _ = weight.const.shape
        return pairs // production.TABLES, production.TABLES, maps
    return ()


def _sum_of_products(factors: Sequence[np.ndarray]) -> np.ndarray:
    """The sum over columns of the outer products of one from each of `factors`."""
    axes = "abc"[: len(factors)]
    result: np.ndarray = np.einsum(f"{','.join(f'{x}r' for x in axes)}->{axes}", *factors)
    return result


def clicks(graph: Graph, source: Path, samples: int) -> Dataset:
    """Random inputs, and labels that the first output tells as well as a good model does.

    A standard deviation of it is 2 in log-odds: an AUC of about 0.85. Random weights alone give
    nearly the same score to all, of which an AUC is 0.5 whatever becomes of them.
    """
    feeds = random_inputs(graph, {"N": samples}, seed=1)
    model, found = OnnxModel(source), list[np.ndarray]()
    for batch in in_batches(feeds).batches:
        found.append(next(iter(model.run(batch).values())).reshape(-1))
    scores = np.concatenate(found)
    odds = np.exp(-2 * (scores - scores.mean()) / scores.std())
    labels = np.random.default_rng(2).random(len(scores)) < 1 / (1 + odds)
    return in_batches(feeds, labels.astype(np.float32))


def measure(
    name: str, batches: Sequence[int], seconds: float, samples: int, factors: bool
) -> dict[str, Any]:
    """One model: which ranks were there and which were found, the drop, and the times."""
    make = MODELS[name]
    graph, report = make(), Report()
    ranks = planted(graph)
    with tempfile.TemporaryDirectory(prefix="graphopt-low-rank-") as scratch:
        source = Path(scratch) / "model.onnx"
        onnx_io.save(graph, source)
        budget = Budget(clicks(graph, source, samples), MAX_DROP, "auc")
        passes = Pipeline((*O2.steps, *FACTORS)) if factors else None
        small = graphopt.compile(source, passes=passes, budget=budget, report=report)
        full = graphopt.compile(source, verify=False)
        rows = []
        for batch in batches:
            feeds = random_inputs(graph, {"N": batch}, seed=2)
            calls = {"float32": partial(full.run, feeds), "compressed": partial(small.run, feeds)}
            taken = interleaved(calls, seconds, clock=time.thread_time)
            rows.append({"batch": batch, "us": {n: x.median for n, x in taken.items()}})
    return {
        "model": name,
        "planted": {"x".join(map(str, shape)): rank for shape, rank in ranks.items()},
        "taken": {p.spec: p.rewrites for p in report.passes if p.fidelity == "lossy" and p.changed},
        "constant_bytes": report.facts["constant_bytes"],
        "held_out": report.verification,
        "rows": rows,
    }


def ranks_found(result: dict[str, Any]) -> list[str]:
    """How many layers got which rank, such as "3 x 128"."""
    found = collections.Counter[int]()
    for name, taken in result["taken"].items():
        if name.startswith(("factorize-low-rank", "factorize-tensors")):
            for what, count in taken.items():
                found[int(what.split()[-1])] += count
    return [f"{count} x {rank}" for rank, count in sorted(found.items())]


def markdown(text: dict[str, Any]) -> str:
    """What was measured, a line for each model."""
    batches = [row["batch"] for row in text["results"][0]["rows"]]
    lines = [["model", "ranks found", "size", "drop", *(f"faster at {b}" for b in batches)]]
    lines.append(["---", "---", *["---:"] * (2 + len(batches))])
    for result in text["results"]:
        before, after = result["constant_bytes"]
        gains = [row["us"]["float32"] / row["us"]["compressed"] for row in result["rows"]]
        lines.append(
            [
                f"`{result['model']}`",
                ", ".join(ranks_found(result)),
                f"{after / before:.2f}",
                f"{result['held_out']['drop']:.4f}",
                *(f"{gain:.1f}" for gain in gains),
            ]
        )
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def show(results: Sequence[dict[str, Any]]) -> None:
    table = Table(title="compressed inside 0.001 of AUC, against the same model in float32")
    for column in ("model", "ranks planted", "ranks found"):
        table.add_column(column)
    for column in ("size", "drop", "batch", "faster by"):
        table.add_column(column, justify="right")
    for result in results:
        before, after = result["constant_bytes"]
        drop = result["held_out"]["drop"]
        planted_ranks = ", ".join(f"{s}: {r}" for s, r in result["planted"].items())
        for row in result["rows"]:
            gain = row["us"]["float32"] / row["us"]["compressed"]
            table.add_row(
                result["model"], planted_ranks, ", ".join(ranks_found(result)),
                f"{after / before:.2f}", f"{drop:.5f}", str(row["batch"]), f"{gain:.2f}",
            )  # fmt: skip
    Console(width=160).print(table)


def main(
    only: Annotated[str, typer.Option(help="names")] = "dlrm_mlperf,dcnv2,mmoe_8_experts,xdeepfm",
    batch: Annotated[str, typer.Option(help="batch sizes")] = "1,64,512",
    rows: Annotated[int, typer.Option(help="of each table")] = production.ROWS,
    samples: Annotated[int, typer.Option(help="rows of data")] = SAMPLES,
    factors: Annotated[bool, typer.Option("--factors", help="spend on low ranks only")] = False,
    seconds: Annotated[float, typer.Option(help="per variant and batch size")] = 2.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="write it all here")] = None,
) -> None:
    """Plant, compress and measure models, one after the other."""
    production.ROWS = rows
    results = []
    for name in only.split(","):
        sizes = [int(size) for size in batch.split(",")]
        results.append(measure(name, sizes, seconds, samples, factors))
        if json_file:
            text = {
                "machine": machine(),
                "table_rows": rows,
                "factors": factors,
                "results": results,
            }
            json_file.write_text(json.dumps(text, indent=1) + "\n")
        show(results)


if __name__ == "__main__":
    run_script(main)
