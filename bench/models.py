"""Compiles every model of a folder and holds the result against what is expected of it.

    python bench/models.py FOLDER [--json FILE]

FOLDER has one folder per model: `model.onnx`, `inputs_b*.npz`, `expected_b*.npz`, and, for trained
ones, `eval.npz` (inputs by name and `label`) with the metric named in `FOLDER/models.json`. Each
model is compiled in a process of its own, so that its peak memory is known. The metric is computed
for the source in ONNX Runtime, for the compiled artifact and for the portable model. A second table
has how many kernels one inference calls, and which of these do the work of one ONNX op alone.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from isolation import Lost, in_a_process, run_script
from rich.console import Console
from rich.table import Table

import graphopt
from graphopt.accuracy import datasets, metrics
from graphopt.accuracy.judge import Judge
from graphopt.accuracy.metrics import Metric
from graphopt.pipeline.report import Report
from graphopt.serving.signature import Signature

RTOL, ATOL = 1e-4, 1e-5  # float32 sums of a few hundred terms in another order


def metric_of(spec: Mapping[str, Any], signature: Signature) -> tuple[Metric, str]:
    """The metric of an entry of `models.json`, and what it judges."""
    score = signature.outputs[spec["output"]]
    metric = metrics.find(spec["kind"])
    if spec["kind"].startswith("ndcg"):
        cut = int(spec["kind"].partition("@")[2])
        metric = metrics.ndcg(cut, tuple(spec.get("exclude_items", ())))
    columns = score.shape is not None and len(score.shape) == 2
    return metric, score.name + (":0" if metric.pointwise and columns else "")


def judge(original: Any, folder: Path, spec: Mapping[str, Any]) -> Judge:
    """Holds models against the original on the evaluation data of `folder`."""
    data = datasets.read(folder / "eval.npz", original.signature)
    return Judge(original, data, *metric_of(spec, original.signature))


def loop_bags(source: Path) -> int:
    """How many embedding bags a model has as `Loop`s, which engines run step by step."""
    report = Report()
    graphopt.optimize(source, report=report)
    return sum(record.rewrites.get("loop_to_embedding_bag", 0) for record in report.passes)


def worst_error(engine: Any, folder: Path) -> float:
    """The largest |found - expected| / (ATOL + RTOL |expected|) of all batches; 1 is fine."""
    worst = 0.0
    for inputs in sorted(folder.glob("inputs_b*.npz")):
        found = engine.run(dict(np.load(inputs)))
        expected = np.load(inputs.with_name(inputs.name.replace("inputs", "expected")))
        for name in expected.files:
            if found[name].shape != expected[name].shape:
                return float("inf")
            excess = np.abs(found[name] - expected[name]) / (ATOL + RTOL * np.abs(expected[name]))
            worst = max(worst, float(excess.max(initial=0.0)))
    return worst


def unfused(program: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """How many calls of a manifest's `program` compute one standard op alone, by op."""
    alone = [call["ops"][0] for call in program if len(call["ops"]) == 1 and not _is_fused(call)]
    return dict(Counter(alone).most_common())


def _is_fused(call: Mapping[str, Any]) -> bool:
    """True for ops of our own, which stand for several, and for groups that the compiler made."""
    return "::" in call["ops"][0] or call["kernel"].startswith("fused_")


def measure(folder: Path, spec: Mapping[str, Any] | None) -> dict[str, Any]:
    """Compile one model in this process; what came of it."""
    import graphopt
    from graphopt.pipeline.report import Report
    from graphopt.targets.portable import OnnxModel

    report = Report()
    with tempfile.TemporaryDirectory() as scratch:
        artifact = graphopt.compile(
            folder / "model.onnx", output=Path(scratch) / "model.gopt", report=report
        )
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        portable = OnnxModel(artifact.path / "model.onnx")
        program = json.loads((artifact.path / "manifest.json").read_text())["program"]
        row: dict[str, Any] = {
            "model": folder.name,
            "nodes": report.facts["nodes"],
            "calls": report.facts["calls"],
            "told": bool(program),  # a program with loops lists no calls
            "unfused": unfused(program),
            "seconds": round(sum(report.stages.values()), 1),
            "stages": report.stages,
            "peak_mib": round(peak),
            "compiled_error": worst_error(artifact, folder),
            "portable_error": worst_error(portable, folder),
        }
        if spec and (folder / "eval.npz").exists():
            held = judge(OnnxModel(folder / "model.onnx"), folder, spec)
            row["metric"] = {"kind": spec["kind"], "source": held.before[0]}
            for name, engine in {"compiled": artifact, "portable": portable}.items():
                row["metric"][name] = held.before[0] - held.drop(engine)
    return row


def show(rows: list[dict[str, Any]]) -> None:
    """Print the rows as a table."""
    table = Table(
        title="errors as a share of what is allowed; metric: source / compiled / portable"
    )
    for column in ("model", "nodes", "calls", "compiled", "portable", "metric", "s", "MiB"):
        table.add_column(column, justify="left" if column in ("model", "metric") else "right")
    for row in rows:
        if "failure" in row:
            table.add_row(row["model"], "", "", "", "", row["failure"], "", "")
            continue
        m = row.get("metric")
        table.add_row(
            row["model"],
            " → ".join(map(str, row["nodes"])),
            str(row["calls"]),
            f"{row['compiled_error']:.3f}",
            f"{row['portable_error']:.3f}",
            f"{m['kind']} {m['source']:.6f} / {m['compiled']:.6f} / {m['portable']:.6f}"
            if m
            else "",
            f"{row['seconds']:.1f}",
            str(row["peak_mib"]),
        )
    Console(width=150).print(table)


def show_calls(rows: list[dict[str, Any]]) -> None:
    """Calls per inference, and the ops that are a call of their own."""
    table = Table(title="kernel calls per inference of the compiled artifact")
    for column in ("model", "source nodes", "calls", "of one op", "ops not fused"):
        table.add_column(
            column, justify="left" if column in ("model", "ops not fused") else "right"
        )
    for row in (row for row in rows if "failure" not in row):
        alone = row["unfused"]
        listed = ", ".join(f"{op} {n}" if n > 1 else op for op, n in alone.items())
        of_one = str(sum(alone.values())) if row["told"] else ""
        counts = (str(row["nodes"][0]), str(row["calls"]), of_one)
        table.add_row(row["model"], *counts, listed if row["told"] else "not told: it has loops")
    Console(width=150).print(table)


def main(
    folder: Path,
    only: Annotated[str, typer.Option(help="a model's name; all by default")] = "",
    json_file: Annotated[Path | None, typer.Option("--json", help="write the rows here")] = None,
    child: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Compile and check every model of a folder."""
    described = json.loads((folder / "models.json").read_text())["models"]
    specs = {entry["name"]: entry.get("metric") for entry in described}
    names = [only] if only else sorted(path.parent.name for path in folder.glob("*/model.onnx"))
    if child:
        print(json.dumps(measure(folder / only, specs.get(only))))
        return
    rows = []
    for name in names:
        found = in_a_process(__file__, str(folder), "--only", name)
        failed = isinstance(found, Lost)
        rows.append({"model": name, "failure": found.reason} if failed else found)
        print(f"{name}: done", file=sys.stderr)
    show(rows)
    show_calls(rows)
    if json_file:
        json_file.write_text(json.dumps(rows, indent=2) + "\n")
    good = all(
        "failure" not in r and max(r["compiled_error"], r["portable_error"]) <= 1 for r in rows
    )
    raise typer.Exit(0 if good else 1)


if __name__ == "__main__":
    run_script(main)
