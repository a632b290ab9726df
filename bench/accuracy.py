"""Compression inside an error budget, next to other tools' quantization of the same models.

    python bench/accuracy.py FOLDER [--max-drop 0.001,0.0001] [--only NAME] [--tools A,B]
                             [--json FILE] [--show FILE]

FOLDER is as for `models.py`; its trained models take part. A budget is spent on one half of the
rows of `eval.npz`; every figure is from the other half. The other tools (`quantizers.py`)
calibrate, and NNCF controls accuracy, on the first half too. Sizes are those of the files of a
model. Latencies are medians of alternating calls with 512 rows (or the first batch, where rows have
no fixed length) and with `inputs_b1.npz`, one thread, in units of the compiled model in float32,
whatever the engine. They are in CPU time, which a busy machine leaves alone.

`--tools` measures some tools only ("graphopt" is ours), next to the models in float32. A JSON file
that is there keeps what it has of others: what one run takes is a time ratio, whose units are
measured in every run. `--no-times` is for a busy machine, which sizes and drops do not depend on;
nothing is compiled then. `--show` prints a file's table; `pages.py` makes those of the pages.

The last column says, of another tool's result, whether one of ours is as small, as fast (with 512
rows) and as accurate; of ours, whether no other tool's is. Times within 3 % are equal, and so are
drops below the smallest budget: these rows cannot tell such models apart.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from statistics import geometric_mean
from time import process_time
from typing import Annotated, Any

import typer
from isolation import Lost, in_a_process, run_script
from models import metric_of
from quantizers import QUANTIZERS, call, openvino_full, quantized
from rich.console import Console
from rich.table import Table

import graphopt
from graphopt import arrays
from graphopt.accuracy.budget import Budget
from graphopt.accuracy.judge import Judge
from graphopt.errors import BudgetExceededError
from graphopt.ir import onnx_io
from graphopt.latency import interleaved
from graphopt.measuring.benchmark import machine
from graphopt.measuring.peers import Unavailable
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


def measure(
    folder: Path,
    spec: Mapping[str, Any],
    drops: list[float],
    tools: Collection[str],
    times: bool,
) -> dict[str, Any]:
    """What some tools make of one model."""
    folder = folder.resolve()
    source = folder / "model.onnx"
    original = OnnxModel(source)
    metric, score = metric_of(spec, original.signature)
    data = folder / "eval.npz"
    budgets = {f"{OURS}{drop:g}": Budget(data, drop, metric, score) for drop in drops}
    chooser, judge = next(iter(budgets.values())).judges(original, original.signature)
    batch = judge.data.batches[0]
    feeds = batch if judge.data.whole else {n: a[:BATCH] for n, a in batch.items()}
    # ONNX Runtime's preparation leaves files in the current folder.
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        rows, models = _of_others(source, Path(scratch), chooser, tools)
        if OURS.strip() in tools:
            own_rows, own_models = _of_ours(source, Path(scratch), budgets, compiled=times)
            rows, models = rows | own_rows, models | own_models
        for name, model in models.items():
            rows[name]["drop"] = judge.verdict(model).to_json()
        if not times:
            return {"model": folder.name, "bytes": file_bytes(source), "variants": rows}
        models |= {"float32": graphopt.compile(source, verify=False)}
        models |= {"ORT float32": original, "OpenVINO float32": openvino_full(source)}
        one = arrays.read(folder / "inputs_b1.npz")
        for suffix, asked in (("", feeds), ("_1", one)):
            calls = {}
            for name, model in models.items():
                # OpenVINO compiles for these shapes, and fails at some.
                with contextlib.suppress(Unavailable):
                    calls |= {} if model is None else {name: call(model, asked)}
            taken = interleaved(calls, SECONDS, clock=process_time)
            full = taken["float32"].median
            for name, latency in taken.items():
                own = {f"us{suffix}": latency.median, f"time{suffix}": latency.median / full}
                rows.setdefault(name, {}).update(own)
    return {"model": folder.name, "bytes": file_bytes(source), "variants": rows}


def _of_others(
    source: Path, scratch: Path, chooser: Judge, tools: Collection[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Sizes, or why there is none, and models of the tools that others made."""
    rows: dict[str, Any] = {}
    models: dict[str, Any] = {}
    for name in [name for name in QUANTIZERS if name in tools]:
        path = scratch / f"{name}.onnx"
        try:
            models[name] = quantized(name, source, path, chooser)
            rows[name] = {"bytes": file_bytes(path)}
        except Exception as error:  # whatever they, or engines that load the result, raise
            rows[name] = {"failure": str(error).splitlines()[0].replace(str(scratch), "")}
    return rows, models


def _of_ours(
    source: Path, scratch: Path, budgets: Mapping[str, Budget], *, compiled: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Sizes, or why there is none, and the model, compiled or portable, under each budget."""
    rows: dict[str, Any] = {}
    models: dict[str, Any] = {}
    for name, budget in budgets.items():
        report = Report()
        try:
            graph = graphopt.optimize(source, budget=budget, target="cpu", report=report)
        except BudgetExceededError as error:
            rows[name] = {"failure": str(error)}
            continue
        path = scratch / f"{name}.onnx"
        onnx_io.save(graph, path)
        rows[name] = {"bytes": file_bytes(path), "proof": report.facts["compression"]}
        full = graphopt.compile(graph, passes="O0", verify=False) if compiled else OnnxModel(path)
        models[name] = full
    return rows, models


def compare(rows: dict[str, Any], least_drop: float) -> None:
    """Note for each variant which others are as good in everything and better in something."""
    known = {name: row for name, row in rows.items() if {"bytes", "time"} <= row.keys()}

    def measures(name: str) -> tuple[float, float, float]:
        row = known[name]
        return row["bytes"], row["time"], max(least_drop, row["drop"]["drop"])

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
            time = ""
            if "time" in row:
                times.setdefault(name, []).append(row["time"])
                time = f"{row['time']:.2f}"
            if "bytes" not in row:
                table.add_row(result["model"], name, "1", "0", "", time, "")
                continue
            size = row["bytes"] / result["bytes"]
            sizes.setdefault(name, []).append(size)
            drop, (low, high) = row["drop"]["drop"], row["drop"]["interval"]
            interval = f"{low:.5f} and {high:.5f}"
            front = "" if "beaten_by" not in row else "on it"
            if row.get("beaten_by"):
                front = f"behind {', '.join(row['beaten_by'])}"
            table.add_row(
                result["model"], name, f"{size:.3f}", f"{drop:.5f}", interval, time, front
            )
    for name in sizes | times:
        count = len(sizes.get(name, times.get(name, [])))
        size_text = f"{geometric_mean(sizes[name]):.3f}" if name in sizes else "1"
        time = f"{geometric_mean(times[name]):.2f}" if name in times else ""
        table.add_row(f"geometric mean of {count}", name, size_text, "", "", time, "", style="bold")
    Console(width=150).print(table)


LABELS = {
    "graphopt 0.001": "`--max-drop 0.001`",
    "graphopt 0.0001": "`--max-drop 0.0001`",
    "ORT dynamic": "ONNX Runtime, dynamic int8",
    "ORT static": "ONNX Runtime, static int8",
    "INC dynamic": "Intel Neural Compressor, dynamic int8",
    "INC static": "Intel Neural Compressor, static int8",
    "NNCF": "NNCF with accuracy control (0.001), in OpenVINO",
}
OURS_SHOWN = [name for name in LABELS if name.startswith(OURS)]


def markdown(results: list[dict[str, Any]]) -> str:
    """The tables: the means of each tool, then our models; "?" was not measured."""
    return f"{tools_table(results)}\n\n{_per_model(results)}\n\n{front(results)}"


def tools_table(results: list[dict[str, Any]], least: int = 1) -> str:
    """The means of each tool over the models that it managed, if these are `least` or more."""
    lines = [["", "models", "size", "largest drop", f"time at {BATCH}", "at 1"]]
    lines.append(["---", *["---:"] * (len(lines[0]) - 1)])
    for name, label in LABELS.items():
        made = [(r["variants"].get(name, {}), r["bytes"]) for r in results]
        rows = [{**row, "size": row["bytes"] / size} for row, size in made if "bytes" in row]
        if len(rows) >= least:
            drop = max(row["drop"]["drop"] for row in rows)
            means = [_mean(rows, what) for what in ("size", "time", "time_1")]
            lines.append([label, str(len(rows)), means[0], f"{drop:.4f}", *means[1:]])
    return _lines(lines)


def _mean(rows: list[dict[str, Any]], what: str) -> str:
    """Only where all have it: means over different models do not compare."""
    return f"{geometric_mean(r[what] for r in rows):.2f}" if all(what in r for r in rows) else "?"


def _per_model(results: list[dict[str, Any]]) -> str:
    """What each budget buys on each model."""
    lines = [["model", "size", "drop", f"time at {BATCH}", "at 1"]]
    lines.append(["---", *["---:"] * (len(lines[0]) - 1)])
    for result in results:
        rows = [result["variants"].get(name, {}) for name in OURS_SHOWN]
        sizes = [f"{row['bytes'] / result['bytes']:.2f}" if "bytes" in row else "?" for row in rows]
        drops = [f"{row['drop']['drop']:.4f}" if "drop" in row else "?" for row in rows]
        times = [[f"{r[t]:.2f}" if t in r else "?" for r in rows] for t in ("time", "time_1")]
        cells = [" / ".join(pair) for pair in (sizes, drops, *times)]
        lines.append([f"`{result['model']}`", *cells])
    return _lines(lines)


def _lines(lines: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def front(results: list[dict[str, Any]]) -> str:
    """Where another tool's model is as good as ours in everything and better in something."""
    measured = {
        (result["model"], name): row["beaten_by"]
        for result in results
        for name in OURS_SHOWN
        if "beaten_by" in (row := result["variants"].get(name, {}))
    }
    behind = [
        f"{model} at {name.removeprefix(OURS)} (behind {', '.join(rivals)})"
        for (model, name), rivals in measured.items()
        if rivals
    ]
    count = len({model for model, _ in measured})
    where = f"on all but {'; '.join(behind)}" if behind else "on all"
    return f"Of {count} models, ours are on or beyond the Pareto front of the other tools {where}."


def merged(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All that is known of each model, what is new in place of the same that is old."""
    known = {result["model"]: result for result in old}
    for result in new:
        before = known.get(result["model"], {"variants": {}})
        known[result["model"]] = {
            **result,
            "variants": before["variants"] | result["variants"],
        }
    return list(known.values())


def main(
    folder: Path,
    max_drop: Annotated[str, typer.Option(help="budgets, by comma")] = "0.001,0.0001",
    only: Annotated[str, typer.Option(help="a model's name; all trained ones by default")] = "",
    tools: Annotated[str, typer.Option(help="by comma")] = ",".join([OURS.strip(), *QUANTIZERS]),
    times: Annotated[bool, typer.Option(help="compile and measure latencies")] = True,
    json_file: Annotated[Path | None, typer.Option("--json", help="add the rows to it")] = None,
    show_file: Annotated[Path | None, typer.Option("--show", help="show a file's rows")] = None,
    child: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Compress every trained model of a folder, and hold the results against the originals."""
    if show_file:
        results = json.loads(show_file.read_text())["results"]
        show(results)
        print(front(results))
        return
    described = json.loads((folder / "models.json").read_text())["models"]
    specs = {entry["name"]: entry["metric"] for entry in described if entry.get("metric")}
    drops = [float(text) for text in max_drop.split(",")]
    if child:
        print(json.dumps(measure(folder / only, specs[only], drops, tools.split(","), times)))
        return
    there = json_file is not None and json_file.exists()
    results = json.loads(json_file.read_text())["results"] if json_file and there else []
    for name in [only] if only else specs:
        options = ["--max-drop", max_drop, "--tools", tools, "--times" if times else "--no-times"]
        found = in_a_process(__file__, str(folder), "--only", name, *options)
        if isinstance(found, Lost):
            print(f"{name}: {found.reason}", file=sys.stderr)
            continue
        results = merged(results, [found])
        for result in results:
            compare(result["variants"], min(drops))
        print(f"{name}: done", file=sys.stderr)
        if json_file:
            text = json.dumps({"machine": machine(), "results": results}, indent=1)
            json_file.write_text(f"{text}\n")
    show(results)
    print(front(results))


if __name__ == "__main__":
    run_script(main)
