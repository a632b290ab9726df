"""Compression inside an error budget, next to ONNX Runtime's quantization of the same models.

    python bench/accuracy.py FOLDER [--max-drop 0.001,0.0001] [--only NAME] [--json FILE]

FOLDER is as for `models.py`; its trained models take part. A budget is spent on one half of the
rows of `eval.npz`; every figure is from the other half, for ONNX Runtime's models too, whose static
quantization is calibrated on the first half. Sizes are those of the model files with their data.
Latencies are medians of alternating calls with 512 rows (or the first batch, where rows have no
fixed length), one thread, in units of the compiled or the ONNX Runtime model in float32.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import geometric_mean
from typing import Annotated, Any

import numpy as np
import typer
from models import metric_of
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from rich.console import Console
from rich.table import Table

import graphopt
from graphopt.accuracy.budget import Budget
from graphopt.accuracy.datasets import Dataset
from graphopt.errors import BudgetExceededError
from graphopt.ir import onnx_io
from graphopt.latency import interleaved
from graphopt.pipeline.report import Report
from graphopt.targets.portable import OnnxModel

BATCH = 512
SECONDS = 0.5  # of calls per variant


class Batches(CalibrationDataReader):  # type: ignore[misc]
    """What ONNX Runtime calibrates on."""

    def __init__(self, data: Dataset) -> None:
        self.batches: Iterator[Mapping[str, np.ndarray]] = iter(data.batches)

    def get_next(self) -> Mapping[str, np.ndarray] | None:
        return next(self.batches, None)


def onnxruntime_dynamic(source: Path, target: Path, data: Dataset) -> None:
    quantize_dynamic(source, target, per_channel=True, weight_type=QuantType.QInt8)


def onnxruntime_static(source: Path, target: Path, data: Dataset) -> None:
    prepared = target.with_suffix(".prepared.onnx")
    with contextlib.chdir(target.parent):  # where it leaves its temporary files
        quant_pre_process(source.resolve(), prepared)
    quantize_static(prepared, target, Batches(data), per_channel=True, weight_type=QuantType.QInt8)


PEERS = {"ORT dynamic": onnxruntime_dynamic, "ORT static": onnxruntime_static}


def file_bytes(path: Path) -> int:
    return sum(p.stat().st_size for p in path.parent.glob(f"{path.name}*"))


def measure(folder: Path, spec: Mapping[str, Any], drops: list[float]) -> dict[str, Any]:
    """All variants of one model."""
    folder = folder.resolve()
    source = folder / "model.onnx"
    original = OnnxModel(source)
    metric, score = metric_of(spec, original.signature)
    data = folder / "eval.npz"
    budgets = {f"graphopt {drop:g}": Budget(data, drop, metric, score) for drop in drops}
    chooser, judge = next(iter(budgets.values())).judges(original, original.signature)
    batch = judge.data.batches[0]
    feeds = batch if judge.data.whole else {n: a[:BATCH] for n, a in batch.items()}
    rows: dict[str, Any] = {}
    # ONNX Runtime's preparation leaves files in the current folder.
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        full = graphopt.compile(source, verify=False)
        calls = {"float32": lambda: full.run(feeds), "ORT float32": lambda: original.run(feeds)}
        for name, budget in budgets.items():
            try:
                report = Report()
                graph = graphopt.optimize(source, budget=budget, report=report)
            except BudgetExceededError as error:
                rows[name] = {"failure": str(error)}
                continue
            path = Path(scratch) / f"{name}.onnx"
            onnx_io.save(graph, path)
            rows[name] = {"bytes": file_bytes(path), "proof": report.facts["compression"]}
            small = graphopt.compile(graph, passes="O0", verify=False)
            rows[name]["drop"] = judge.verdict(small).to_json()
            calls[name] = lambda small=small: small.run(feeds)  # type: ignore[misc]
        for name, quantize in PEERS.items():
            path = Path(scratch) / f"{name}.onnx"
            try:
                quantize(source, path, chooser.data)
                model = OnnxModel(path)
                rows[name] = {"bytes": file_bytes(path), "drop": judge.verdict(model).to_json()}
                calls[name] = lambda model=model: model.run(feeds)  # type: ignore[misc]
            except Exception as error:  # whatever ONNX Runtime raises
                rows[name] = {"failure": f"{type(error).__name__} {error}".splitlines()[0]}
        for name, latency in interleaved(calls, SECONDS).items():
            rows.setdefault(name, {})["us"] = latency.median
    return {"model": folder.name, "bytes": file_bytes(source), "variants": rows}


def show(results: list[dict[str, Any]]) -> None:
    """A line for each model and variant, and the means of all models."""
    table = Table(title="size: of the source file; time: of the float32 model in the same engine")
    for column in ("model", "variant", "size", "drop", "95 % between", "time"):
        table.add_column(column, justify="left" if column in ("model", "variant") else "right")
    sizes: dict[str, list[float]] = {}
    times: dict[str, list[float]] = {}
    for result in results:
        for name, row in result.get("variants", {}).items():
            if "failure" in row:
                table.add_row(result["model"], name, "", row["failure"][:60], "", "")
            if "bytes" not in row:
                continue
            base = "ORT float32" if name.startswith("ORT") else "float32"
            size = row["bytes"] / result["bytes"]
            time = row["us"] / result["variants"][base]["us"]
            sizes.setdefault(name, []).append(size)
            times.setdefault(name, []).append(time)
            drop, (low, high) = row["drop"]["drop"], row["drop"]["interval"]
            interval = f"{low:.5f} and {high:.5f}"
            table.add_row(
                result["model"], name, f"{size:.3f}", f"{drop:.5f}", interval, f"{time:.2f}"
            )
    for name, found in sizes.items():
        label = f"geometric mean of {len(found)}"
        size_text, time_text = (f"{geometric_mean(x):.3f}" for x in (found, times[name]))
        table.add_row(label, name, size_text, "", "", time_text, style="bold")
    Console(width=120).print(table)


def main(
    folder: Path,
    max_drop: Annotated[str, typer.Option(help="budgets, by comma")] = "0.001,0.0001",
    only: Annotated[str, typer.Option(help="a model's name; all trained ones by default")] = "",
    json_file: Annotated[Path | None, typer.Option("--json", help="write the rows here")] = None,
    child: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Compress every trained model of a folder, and hold the results against the originals."""
    described = json.loads((folder / "models.json").read_text())["models"]
    specs = {entry["name"]: entry["metric"] for entry in described if entry.get("metric")}
    if child:
        drops = [float(text) for text in max_drop.split(",")]
        print(json.dumps(measure(folder / only, specs[only], drops)))
        return
    results = []
    for name in [only] if only else specs:
        command = [sys.executable, __file__, str(folder), "--only", name, "--child"]
        done = subprocess.run([*command, "--max-drop", max_drop], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{name}: {done.stderr.strip()[-2000:]}")
        results.append(json.loads(done.stdout.strip().splitlines()[-1]))
        print(f"{name}: done", file=sys.stderr)
    show(results)
    if json_file:
        json_file.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
