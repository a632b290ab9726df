"""Compression inside an error budget, next to other tools' quantization of the same models.

    python bench/accuracy.py FOLDER [--max-drop 0.001,0.0001] [--only NAME] [--json FILE]

FOLDER is as for `models.py`; its trained models take part. A budget is spent on one half of the
rows of `eval.npz`; every figure is from the other half. The other tools (`quantizers.py`)
calibrate, and NNCF controls accuracy, on the first half too. Sizes are those of the files of a
model. Latencies are medians of alternating calls with 512 rows (or the first batch, where rows have
no fixed length), one thread, in units of the compiled model in float32, whatever the engine.

The last column says, of another tool's result, whether one of ours is as small, as fast and as
accurate; of ours, whether no other tool's is. Times within 3 % are equal, and so are drops below
the smallest budget: these rows cannot tell such models apart.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import geometric_mean
from typing import Annotated, Any

import typer
from models import metric_of
from quantizers import QUANTIZERS, call, openvino_full, quantized
from rich.console import Console
from rich.table import Table

import graphopt
from graphopt.accuracy.budget import Budget
from graphopt.errors import BudgetExceededError
from graphopt.ir import onnx_io
from graphopt.latency import interleaved
from graphopt.pipeline.report import Report
from graphopt.targets.portable import OnnxModel

BATCH = 512
SECONDS = 0.5  # of calls per variant
NOISE = 0.03  # of a latency
OURS = "graphopt "


def file_bytes(path: Path) -> int:
    """Of a model with its data; of a network of OpenVINO where there is one by that name."""
    files = [*path.parent.glob(f"{path.name}*"), *path.parent.glob(f"{path.stem}.[xb][mi][ln]")]
    return sum(p.stat().st_size for p in files)


def measure(folder: Path, spec: Mapping[str, Any], drops: list[float]) -> dict[str, Any]:
    """All variants of one model."""
    folder = folder.resolve()
    source = folder / "model.onnx"
    original = OnnxModel(source)
    metric, score = metric_of(spec, original.signature)
    data = folder / "eval.npz"
    budgets = {f"{OURS}{drop:g}": Budget(data, drop, metric, score) for drop in drops}
    chooser, judge = next(iter(budgets.values())).judges(original, original.signature)
    batch = judge.data.batches[0]
    feeds = batch if judge.data.whole else {n: a[:BATCH] for n, a in batch.items()}
    rows: dict[str, Any] = {}
    # ONNX Runtime's preparation leaves files in the current folder.
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        models: dict[str, Any] = {}
        for name in QUANTIZERS:
            path = Path(scratch) / f"{name}.onnx"
            try:
                models[name] = quantized(name, source, path, chooser)
                rows[name] = {"bytes": file_bytes(path)}
            except Exception as error:  # whatever they, or engines that load the result, raise
                rows[name] = {"failure": str(error).splitlines()[0]}
        models |= {"float32": graphopt.compile(source, verify=False)}
        models |= {"ORT float32": original, "OpenVINO float32": openvino_full(source)}
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
            models[name] = graphopt.compile(graph, passes="O0", verify=False)
        for name in rows.keys() & models.keys():
            rows[name]["drop"] = judge.verdict(models[name]).to_json()
        calls = {n: call(model, feeds) for n, model in models.items() if model is not None}
        for name, latency in interleaved(calls, SECONDS).items():
            rows.setdefault(name, {})["us"] = latency.median
    compare(rows, min(drops))
    return {"model": folder.name, "bytes": file_bytes(source), "variants": rows}


def compare(rows: dict[str, Any], least_drop: float) -> None:
    """Note for each variant which others are as good in everything and better in something."""
    known = {name: row for name, row in rows.items() if "bytes" in row}

    def measures(name: str) -> tuple[float, float, float]:
        row = known[name]
        return row["bytes"], row["us"], max(least_drop, row["drop"]["drop"])

    def beats(one: str, other: str) -> bool:
        allowed = (1.0, 1 + NOISE, 1.0)
        pairs = [*zip(measures(one), measures(other), allowed)]
        no_worse = all(a <= b * noise for a, b, noise in pairs)
        return no_worse and any(a * noise < b for a, b, noise in pairs)

    for name, row in known.items():
        rivals = [n for n in known if n.startswith(OURS) != name.startswith(OURS)]
        row["beaten_by"] = [rival for rival in rivals if beats(rival, name)]


def show(results: list[dict[str, Any]]) -> None:
    """A line for each model and variant, and the means of all models."""
    table = Table(title="size: of the source file; time: of the compiled float32 model")
    for column in ("model", "variant", "size", "drop", "95 % between", "time", "front"):
        left = column in ("model", "variant", "front")
        table.add_column(column, justify="left" if left else "right")
    sizes: dict[str, list[float]] = {}
    times: dict[str, list[float]] = {}
    for result in results:
        for name, row in result.get("variants", {}).items():
            if "failure" in row:
                table.add_row(result["model"], name, "", row["failure"][:60], "", "", "")
                continue
            time = row["us"] / result["variants"]["float32"]["us"]
            times.setdefault(name, []).append(time)
            if "bytes" not in row:
                table.add_row(result["model"], name, "1", "0", "", f"{time:.2f}", "")
                continue
            size = row["bytes"] / result["bytes"]
            sizes.setdefault(name, []).append(size)
            drop, (low, high) = row["drop"]["drop"], row["drop"]["interval"]
            interval = f"{low:.5f} and {high:.5f}"
            beaten = f"behind {', '.join(row['beaten_by'])}" if row["beaten_by"] else "on it"
            table.add_row(
                result["model"], name, f"{size:.3f}", f"{drop:.5f}", interval, f"{time:.2f}", beaten
            )
    for name, found in times.items():
        label = f"geometric mean of {len(found)}"
        size_text = f"{geometric_mean(sizes[name]):.3f}" if name in sizes else "1"
        table.add_row(label, name, size_text, "", "", f"{geometric_mean(found):.2f}", style="bold")
    Console(width=150).print(table)


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
            print(f"{name}: {done.stderr.strip()[-2000:]}", file=sys.stderr)
            continue
        results.append(json.loads(done.stdout.strip().splitlines()[-1]))
        print(f"{name}: done", file=sys.stderr)
    show(results)
    if json_file:
        json_file.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
