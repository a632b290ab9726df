"""Production shapes in 8 bits: tables, layers and their inputs, next to ONNX Runtime's.

    python bench/int8.py [--only dlrm_mlperf,…] [--batch 512,2048] [--json FILE]

Models are those of `production.py`. Ours has everything in 8 bits that the passes propose to have
so, inputs of layers in fixed ranges or in those of rows ("by row"), the latter also in ONNX Runtime
("ORT by row"): no budget chooses here. ONNX Runtime's are made by its own tool in several ways, of
which the fastest counts: dynamic, static, and static for layers alone, the latter with signed data
and unsigned data, as `QuantizeLinear` beside floats and as ops of 8 bits; ranges come from the same
rows as ours. All are called with the same inputs in turns, on one thread; ONNX Runtime's are bound.
A ratio is a median over ours: over 1 we are faster. The error is the mean distance of the scores
from the float32 model's.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import production
import typer
from isolation import run_script
from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static
from quantizers import Batches
from rich.console import Console
from rich.table import Table

import graphopt
from graphopt.accuracy import metrics
from graphopt.accuracy.budget import Speed, Spending
from graphopt.accuracy.datasets import in_batches
from graphopt.accuracy.judge import Judge
from graphopt.ir import onnx_io
from graphopt.ir.graph import Graph
from graphopt.latency import interleaved
from graphopt.measuring.benchmark import machine
from graphopt.measuring.peers import ENGINES
from graphopt.passes.balance_units import BalanceUnits
from graphopt.passes.quantize_activations import QuantizeActivations
from graphopt.passes.quantize_tables import QuantizeTables
from graphopt.passes.quantize_weights import QuantizeWeights
from graphopt.pipeline import presets
from graphopt.pipeline.base import Proposal
from graphopt.pipeline.manager import PassManager
from graphopt.pipeline.spec import Pipeline
from graphopt.targets.portable import OnnxModel
from graphopt.testing import random_inputs

ROWS = 1024  # that ranges are chosen on
QUANTIZED = (QuantizeTables(codebooks=False), BalanceUnits(), QuantizeWeights())
BOUND = next(peer for peer in ENGINES["onnxruntime"] if peer.name.endswith("bound"))


class EightBits(Spending):
    """Takes whatever is offered in 8 bits, and never measures."""

    def choose(
        self, graph: Graph, proposals: Sequence[Proposal], share: float = 1.0
    ) -> list[Proposal]:
        sites: dict[str, Proposal] = {}
        for proposal in proposals:
            if proposal.what.startswith("int8"):
                sites.setdefault(proposal.site, proposal)
        return list(sites.values())


def in_8_bits(source: Graph, judge: Judge, activations: QuantizeActivations) -> Graph:
    """`source`, optimized, with all that can be in 8 bits."""
    graph = source.clone()
    pipeline = Pipeline((*presets.O2.steps, *QUANTIZED, activations, *presets.O1.steps))
    PassManager(budget=EightBits(judge, limit=np.inf, speed=Speed(row_levels=255))).run(
        graph, pipeline
    )
    return graph


def dynamic(source: Path, target: Path, judge: Judge) -> None:
    quantize_dynamic(
        source, target, per_channel=True, weight_type=QuantType.QInt8, use_external_data_format=True
    )


def static(source: Path, target: Path, judge: Judge, **options: Any) -> None:
    quantize_static(
        source,
        target,
        Batches(judge),
        per_channel=True,
        weight_type=QuantType.QInt8,
        use_external_data_format=True,
        **options,
    )


LAYERS = {"op_types_to_quantize": ["MatMul", "Gemm"]}
UNSIGNED = {"activation_type": QuantType.QUInt8}
OPERATORS = {"quant_format": QuantFormat.QOperator}
PEERS: dict[str, Callable[[Path, Path, Judge], None]] = {
    "ORT dynamic": dynamic,
    "ORT static": static,
    "ORT layers": partial(static, **LAYERS),
    "ORT layers, u8": partial(static, **LAYERS, **UNSIGNED),
    "ORT layers, u8 ops": partial(static, **LAYERS, **UNSIGNED, **OPERATORS),
}


def measure(name: str, batches: Sequence[int], seconds: float) -> dict[str, Any]:
    """One model: all variants at all batch sizes."""
    make, most = production.MODELS[name]
    with tempfile.TemporaryDirectory(prefix="graphopt-int8-") as scratch:
        source = Path(scratch) / "model.onnx"
        graph = make()
        onnx_io.save(graph, source)
        feeds = random_inputs(graph, {"N": ROWS}, seed=1)
        judge = Judge(OnnxModel(source), in_batches(feeds), metrics.find("mean-error"))
        fixed, by_row = (
            in_8_bits(graph, judge, QuantizeActivations(ranges=ranges))
            for ranges in ("static", "dynamic")
        )
        ours = {"graphopt": fixed, "by row": by_row}
        compiled = {k: graphopt.compile(g, passes="O0", verify=False) for k, g in ours.items()}
        errors = {name: judge.drop(artifact) for name, artifact in compiled.items()}
        runs = {name: artifact.run for name, artifact in compiled.items()}
        runs["graphopt float32"] = graphopt.compile(source, verify=False).run
        portable = Path(scratch) / "by_row.onnx"
        onnx_io.save(by_row, portable)
        opened: dict[str, Any] = {
            "ORT float32": BOUND.open(source),
            "ORT by row": BOUND.open(portable),
        }
        failures = {}
        for label, quantize in PEERS.items():
            target = Path(scratch) / f"{label}.onnx"
            try:
                quantize(source, target, judge)
                errors[label] = judge.drop(OnnxModel(target))
                opened[label] = BOUND.open(target)
            except Exception as error:  # whatever ONNX Runtime raises
                failures[label] = f"{type(error).__name__} {error}".splitlines()[0]
        opened |= {name: lambda feeds, run=run: lambda: run(feeds) for name, run in runs.items()}
        rows = []
        for batch in (size for size in batches if size <= most):
            inputs = random_inputs(graph, {"N": batch}, seed=2)
            found = interleaved({name: bind(inputs) for name, bind in opened.items()}, seconds)
            rows.append({"batch": batch, "us": {n: [x.median, x.least] for n, x in found.items()}})
    return {"model": name, "rows": rows, "errors": errors, "failures": failures}


def ratios(row: dict[str, Any]) -> dict[str, float]:
    """The medians over ours, and the best of ONNX Runtime's in 8 bits as "ORT best"."""
    ours = row["us"]["graphopt"][0]
    found = {name: times[0] / ours for name, times in row["us"].items() if name != "graphopt"}
    quantized = [found[name] for name in PEERS if name in found]
    return found | ({"ORT best": min(quantized)} if quantized else {})


def markdown(text: dict[str, Any]) -> str:
    """What was measured, a line for each model and batch size."""
    names = ["ORT float32", "ORT best", *PEERS, "graphopt float32", "by row"]
    lines = [["model", "batch", *names], ["---", *["---:"] * (1 + len(names))]]
    for result in text["results"]:
        for row in result["rows"]:
            found = ratios(row)
            cells = (f"{found[name]:.2f}" if name in found else "" for name in names)
            lines.append([f"`{result['model']}`", str(row["batch"]), *cells])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def show(results: Sequence[dict[str, Any]]) -> None:
    names = ["by row", "graphopt float32", "ORT float32", "ORT by row", *PEERS, "ORT best"]
    table = Table(title="medians over ours in 8 bits; error of the scores")
    errors_of = ("our error", "by row", "least of ORT")
    for column in ("model", "batch", "our µs", *names, *errors_of):
        table.add_column(column, justify="right" if column != "model" else "left")
    for result in results:
        errors = dict(result["errors"])
        own, rows = errors.pop("graphopt"), errors.pop("by row", None)
        for row in result["rows"]:
            found = ratios(row)
            cells = [f"{found[name]:.2f}" if name in found else "" for name in names]
            least = f"{min(errors.values()):.1e}" if errors else ""
            ours = f"{row['us']['graphopt'][0]:.0f}"
            found_errors = (f"{own:.1e}", "" if rows is None else f"{rows:.1e}", least)
            table.add_row(result["model"], str(row["batch"]), ours, *cells, *found_errors)
    Console(width=160).print(table)


def main(
    only: Annotated[str, typer.Option(help="names of models")] = "dlrm_mlperf",
    batch: Annotated[str, typer.Option(help="batch sizes")] = "512,2048",
    seconds: Annotated[float, typer.Option(help="per variant and batch size")] = 3.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="write it all here")] = None,
) -> None:
    """Make, quantize and measure models, one after the other."""
    batches = [int(size) for size in batch.split(",")]
    results = []
    for name in only.split(","):
        results.append(measure(name, batches, seconds))
        for label, why in results[-1]["failures"].items():
            print(f"{name}: {label}: {why}")
        if json_file:
            text = {"machine": machine(), "results": results}
            json_file.write_text(json.dumps(text, indent=1) + "\n")
    show(results)


if __name__ == "__main__":
    run_script(main)
