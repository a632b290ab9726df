"""The portable model in ONNX Runtime against its source and against other optimizers' results.

    python bench/portable.py FOLDER [--batch 1,64,512] [--only NAME] [--no-peers] [--json FILE]

FOLDER has one folder per model with `model.onnx` and, where there are any, `inputs_b*.npz`; other
batch sizes run on random valid inputs. Every variant of a model runs in ONNX Runtime, one thread,
all of its optimizations on, and is first compared with the source. Their calls alternate within one
process, so that a noisy neighbour hits all alike; a ratio is median over median, and over 1 where
the variant is faster than the source. `onnxruntime` is what ONNX Runtime's own optimizer writes,
with ops that only it has (a Gemm and its activation in one, say). So node counts are given twice:
as each file has them, a call of a local function being one node, and as ONNX Runtime runs the
source and our file, after inlining functions and after all that it fuses itself. Where another file
has fewer nodes than ours, the reason is printed: which of them are no standard ONNX.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import typer
from isolation import Lost, in_a_process, run_script
from models import loop_bags
from rich.console import Console
from rich.table import Table

from graphopt.latency import interleaved
from graphopt.measuring.peers import ENGINES

RTOL, ATOL = 1e-4, 1e-5  # float32 sums of a few hundred terms in another order
SECONDS = 1.5  # of calls per model and batch size, divided among the variants


def graphopt_optimized(source: Path, target: Path) -> None:
    """What `graphopt optimize --target onnxruntime` writes."""
    import graphopt

    graphopt.compile(source, "onnxruntime", output=target, verify=False)


def onnxruntime_optimized(source: Path, target: Path) -> None:
    """ONNX Runtime's optimizer, all levels."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.optimized_model_filepath = str(target)
    options.log_severity_level = 4
    ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])


def onnxslim_optimized(source: Path, target: Path) -> None:
    import onnxslim

    onnx.save(onnxslim.slim(onnx.load(source)), target)


def onnxsim_optimized(source: Path, target: Path) -> None:
    import onnxsim

    onnx.save(onnxsim.simplify(onnx.load(source))[0], target)


def onnxoptimizer_optimized(source: Path, target: Path) -> None:
    import onnxoptimizer

    onnx.save(onnxoptimizer.optimize(onnx.load(source)), target)


OPTIMIZERS: dict[str, Callable[[Path, Path], None]] = {
    "graphopt": graphopt_optimized,
    "onnxruntime": onnxruntime_optimized,
    "onnxslim": onnxslim_optimized,
    "onnxsim": onnxsim_optimized,
    "onnxoptimizer": onnxoptimizer_optimized,
}


def node_count(path: Path) -> int:
    """Nodes of a file, subgraphs included; constants written as nodes do not count."""

    def count(graph: onnx.GraphProto) -> int:
        inner = sum(count(a.g) for n in graph.node for a in n.attribute if a.HasField("g"))
        return inner + sum(node.op_type != "Constant" for node in graph.node)

    return count(onnx.load(path, load_external_data=False).graph)


def foreign_ops(path: Path) -> dict[str, int]:
    """How many nodes of a file are ops that neither ONNX nor the file itself defines, by op."""
    proto = onnx.load(path, load_external_data=False)
    own = {(function.domain, function.name) for function in proto.functions}

    def ops(graph: onnx.GraphProto) -> Iterator[str]:
        for node in graph.node:
            standard = node.domain in ("", "ai.onnx", "ai.onnx.ml")
            if not standard and (node.domain, node.op_type) not in own:
                yield node.op_type
            for attribute in node.attribute:
                yield from ops(attribute.g) if attribute.HasField("g") else ()

    return dict(Counter(ops(proto.graph)).most_common())


def reasons_for_more(row: Mapping[str, Any]) -> list[str]:
    """Why other files have fewer nodes: an op that ONNX lacks stands for two or more of its."""
    ours, found = row["nodes"]["graphopt"], []
    for name, count in row["nodes"].items():
        foreign = row["foreign"].get(name, {})
        if name == "source" or count >= ours:
            continue
        least = count + sum(foreign.values())
        listed = ", ".join(f"{n} {op}" for op, n in foreign.items()) or "none"
        verdict = "no fewer" if least >= ours else "fewer all the same"
        found.append(
            f"{name} has {count} nodes, ours {ours}; not ONNX among its: {listed}, "
            f"which as ONNX are {least} nodes or more ({verdict})"
        )
    return found


def executed_count(path: Path) -> int:
    """Nodes that ONNX Runtime runs: after inlining functions and its own optimizations."""
    with tempfile.TemporaryDirectory() as scratch:
        onnxruntime_optimized(path, Path(scratch) / "model.onnx")
        return node_count(Path(scratch) / "model.onnx")


def variants_of(source: Path, scratch: Path, names: list[str]) -> tuple[dict[str, Path], list[str]]:
    """The files that the named optimizers make of `source`, and why the others made none."""
    files, missing = {"source": source}, []
    for name in names:
        target = scratch / name / "model.onnx"
        target.parent.mkdir()
        try:
            OPTIMIZERS[name](source, target)
            files[name] = target
        except Exception as error:  # whatever another tool raises is its own affair
            missing.append(f"{name}: {str(error).strip().partition(chr(10))[0][:100]}")
    return files, missing


def feeds_of(source: Path, batch: int) -> Mapping[str, np.ndarray]:
    """The inputs beside the model for this batch size, else random valid ones."""
    given = source.parent / f"inputs_b{batch}.npz"
    if given.exists():
        return dict(np.load(given))
    import graphopt
    from graphopt.checking.feeds import random_feeds
    from graphopt.targets.portable import OnnxModel

    return random_feeds(graphopt.optimize(source), OnnxModel(source).run, (batch,))[0][0]


def disagreement(found: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """The largest |found - expected| / (ATOL + RTOL |expected|); at most 1 is fine."""
    worst = 0.0
    for ours, theirs in zip(found, expected):
        if ours.shape != theirs.shape:
            return math.inf
        excess = np.abs(ours - theirs) / (ATOL + RTOL * np.abs(theirs))
        worst = max(worst, float(np.max(excess, initial=0.0)))
    return worst


def measure_batch(runners: Mapping[str, Any], feeds: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Median seconds of each variant, and what is wrong with those that do not do as the source."""
    expected, faults = runners["source"](feeds)(), {}
    for name, run in runners.items():
        try:
            if not disagreement(run(feeds)(), expected) <= 1:
                faults[name] = "differs"
        except Exception as error:  # a file that another tool wrote may not run
            faults[name] = str(error).strip()[:100]
    calls = {name: run(feeds) for name, run in runners.items() if name not in faults}
    taken = interleaved(calls, SECONDS / len(runners), least=5)
    return {"seconds": {n: t.median / 1e6 for n, t in taken.items()}, "faults": faults}


def measure(source: Path, batches: list[int], names: list[str]) -> dict[str, Any]:
    """Optimize and time one model in this process."""
    with tempfile.TemporaryDirectory() as folder:
        files, missing = variants_of(source, Path(folder), names)
        (onnxruntime, _) = ENGINES["onnxruntime"]
        runners = {name: onnxruntime.open(path) for name, path in files.items()}
        row: dict[str, Any] = {"model": source.parent.name, "missing": missing, "batches": {}}
        row["loop_bags"] = loop_bags(source)
        row["nodes"] = {name: node_count(path) for name, path in files.items()}
        row["foreign"] = {name: foreign_ops(path) for name, path in files.items()}
        row["executed"] = {name: executed_count(files[name]) for name in ("source", "graphopt")}
        for batch in batches:
            try:
                row["batches"][batch] = measure_batch(runners, feeds_of(source, batch))
            except Exception as error:  # a model may refuse a batch size
                missing.append(f"batch {batch}: {str(error).strip()[:100]}")
    return row


def ratios(row: Mapping[str, Any], batch: str, name: str) -> float | None:
    """Speed of a variant relative to the source, None if it was not measured."""
    seconds = row["batches"].get(batch, {}).get("seconds", {})
    return seconds["source"] / seconds[name] if name in seconds else None


def geometric_mean(numbers: list[float]) -> float:
    return math.exp(sum(map(math.log, numbers)) / len(numbers)) if numbers else math.nan


def show_speed(rows: list[dict[str, Any]], batches: list[int], names: list[str]) -> None:
    """One table per batch size: the speed of each variant relative to the source."""
    for batch in map(str, batches):
        table = Table(title=f"batch {batch}: times as fast as the source in ONNX Runtime")
        for column in ("model", "source, µs", *names):
            table.add_column(column, justify="left" if column == "model" else "right")
        found: dict[str, list[float]] = {name: [] for name in names}
        for row in (row for row in rows if batch in row.get("batches", {})):
            measured = row["batches"][batch]
            cells = [row["model"], f"{measured['seconds']['source'] * 1e6:.0f}"]
            for name in names:
                ratio = ratios(row, batch, name)
                found[name] += [ratio] if ratio else []
                cells.append(f"{ratio:.2f}" if ratio else "")
            table.add_row(*cells)
        means = [f"{geometric_mean(found[name]):.2f}" for name in names]
        table.add_row("geometric mean", "", *means, style="bold")
        Console(width=120).print(table)


def means(rows: list[dict[str, Any]]) -> dict[int, tuple[float, float, float]]:
    """By batch size: our mean ratio over all models and those without `Loop` bags, the smallest."""
    found = {}
    for batch in _batches(rows):
        own = _ratios_at(rows, batch, "graphopt")
        plain = _ratios_at(_without_bags(rows), batch, "graphopt")
        found[batch] = geometric_mean(own), geometric_mean(plain), min(own)
    return found


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table: geometric means over models, and our smallest ratio."""
    peers = [name for name in OPTIMIZERS if name != "graphopt"]
    loops = len(rows) - len(_without_bags(rows))
    ours = ["graphopt", f"without {loops} with `Loop` bags", "smallest"]
    lines = [["batch", *ours, *peers], ["---:"] * (len(ours) + len(peers) + 1)]
    for batch, own in means(rows).items():
        numbers = [*own, *(geometric_mean(_ratios_at(rows, batch, name)) for name in peers)]
        lines.append([str(batch), *(f"{number:.2f}" for number in numbers)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _batches(rows: list[dict[str, Any]]) -> list[int]:
    return sorted({int(batch) for row in rows for batch in row.get("batches", {})})


def _without_bags(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if not row.get("loop_bags")]


def _ratios_at(rows: list[dict[str, Any]], batch: int, name: str) -> list[float]:
    """How many times as fast as their sources models are that an optimizer called `name` made."""
    every = (ratios(row, str(batch), name) for row in rows if "batches" in row)
    return [ratio for ratio in every if ratio]


def show_nodes(rows: list[dict[str, Any]], names: list[str]) -> None:
    """How many nodes each optimizer leaves, and how many ONNX Runtime runs of source and ours."""
    table = Table(title="nodes")
    for column in ("model", "source", *names, "run of source", "run of graphopt"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for row in (row for row in rows if "nodes" in row):
        counts = [str(row["nodes"].get(name, "")) for name in ("source", *names)]
        table.add_row(row["model"], *counts, *map(str, row["executed"].values()))
    Console(width=120).print(table)
    for row in rows:
        faults = {
            f"{n}: {why}" for b in row.get("batches", {}).values() for n, why in b["faults"].items()
        }
        more = reasons_for_more(row) if "foreign" in row and "graphopt" in row["nodes"] else []
        for reason in (*more, *row["missing"], *sorted(faults)):
            print(f"{row['model']}: {reason}")


def main(
    folder: Path,
    batch: Annotated[str, typer.Option(help="batch sizes, comma separated")] = "1,64,512",
    only: Annotated[str, typer.Option(help="models, comma separated; all by default")] = "",
    peers: Annotated[bool, typer.Option(help="also run the other optimizers")] = True,
    json_file: Annotated[Path | None, typer.Option("--json", help="write the rows here")] = None,
    child: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Time every model of a folder, as it is and optimized."""
    batches = [int(size) for size in batch.split(",")]
    optimizers = list(OPTIMIZERS) if peers else ["graphopt"]
    if child:
        print(json.dumps(measure(folder / only / "model.onnx", batches, optimizers)))
        return
    every = sorted(path.parent.name for path in folder.glob("*/model.onnx"))
    rows = []
    for name in only.split(",") if only else every:
        options = ["--only", name, "--batch", batch, "--peers" if peers else "--no-peers"]
        found = in_a_process(__file__, str(folder), *options)
        failed = isinstance(found, Lost)
        rows.append({"model": name, "missing": [f"failed: {found.reason}"]} if failed else found)
        print(f"{name}: done", file=sys.stderr)
    show_speed(rows, batches, optimizers)
    show_nodes(rows, optimizers)
    if json_file:
        json_file.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    run_script(main)
