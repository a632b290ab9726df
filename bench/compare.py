"""graphopt against the other engines: real models of a folder, and production shapes made here.

    python bench/compare.py FOLDER [--only NAME,…] [--batch 1,8,64,512,2048] [--precision bf16]
                            [--peers onnxruntime,openvino,torch,tvm] [--no-shapes] [--json FILE]

FOLDER has one folder per model with `model.onnx`; "-" for none. Each model is compiled and measured
in a process of its own, by `graphopt.measuring.benchmark`: one thread, all engines on the same
inputs, taking turns. A ratio is the median of the fastest peer of the same precision over ours:
over 1 we are faster. The floor is what our kernels' operations and bytes take at least, by peaks
that are measured first. In bf16 the error is the largest difference from ONNX Runtime's outputs in
fp32, over the largest of these. Models whose batch is fixed have one row, and din_candidates200
(20,000 pairs a sample) has those up to 8. `pages.py` makes tables of the JSON files.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import geometric_mean
from typing import TYPE_CHECKING, Annotated, Any

import production
import typer
from isolation import Lost, in_a_process, run_script
from other_peers import PEERS
from rich.console import Console
from rich.table import Table

from graphopt.cli.options import PrecisionName
from graphopt.measuring.benchmark import left_out_lines

if TYPE_CHECKING:
    from graphopt.targets.base import Precision

TIMEOUT = 1800  # seconds for one model
BF16 = "openvino-bf16"


def measure(
    folder: Path,
    name: str,
    batches: Sequence[int],
    peers: str,
    seconds: float,
    precision: Precision = "fp32",
) -> dict[str, Any]:
    """Compile and measure one model in this process."""
    from models import loop_bags

    from graphopt.ir import onnx_io
    from graphopt.measuring.benchmark import bench
    from graphopt.measuring.roofline import roofline

    with tempfile.TemporaryDirectory() as scratch:
        model = folder / name / "model.onnx"
        if name in production.MODELS:
            make, most = production.MODELS[name]
            model, batches = Path(scratch) / "model.onnx", [b for b in batches if b <= most]
            onnx_io.save(make(), model)
        settings = {"peers": peers, "seconds": seconds, "precision": precision}
        found = bench(model, batches=batches, peaks=roofline(), others=PEERS, **settings)
        return found.to_json() | {"model": name, "loop_bags": loop_bags(model)}


def best_ratio(row: dict[str, Any]) -> float | None:
    """The fastest peer of the same precision over ours."""
    return row["ratios"][row["best"]] if row["best"] else None


def ratios_at(results: Iterable[dict[str, Any]], batch: int) -> dict[str, float]:
    """The ratio to the best peer of each model that was measured at this batch size."""
    found = {}
    for result in results:
        for row in result.get("rows", ()):
            ratio = best_ratio(row)
            if row["batch"] == batch and ratio is not None:
                found[result["model"]] = ratio
    return found


def errors_at(results: Iterable[dict[str, Any]], batch: int) -> dict[str, Any]:
    """The largest error at this batch size of each engine that does not compute in fp32."""
    worst: dict[str, float] = {}
    for row in (row for result in results for row in result.get("rows", ())):
        for name, error in row.get("errors", {}).items():
            if row["batch"] == batch and row["precisions"][name] != "fp32":
                worst[name] = max(worst.get(name, 0.0), error)
    return {"largest_error": worst} if "graphopt" in worst else {}


def summary(results: Sequence[dict[str, Any]], batches: Sequence[int]) -> dict[str, Any]:
    """Per batch size: the ratios' geometric mean, the smallest, how many are below 1, errors."""
    found = {}
    for batch in batches:
        ratios = ratios_at(results, batch)
        if ratios:
            worst = min(ratios, key=lambda name: ratios[name])
            found[str(batch)] = {
                "geometric_mean": round(geometric_mean(ratios.values()), 3),
                "smallest": {"model": worst, "ratio": ratios[worst]},
                "slower": sum(ratio < 1 for ratio in ratios.values()),
                "models": len(ratios),
                **errors_at(results, batch),
            }
    return found


def show(results: Sequence[dict[str, Any]], batches: Sequence[int]) -> None:
    """Print the ratios and medians of all models."""
    table = Table(title="best peer's median over ours (our µs, and our time over the floor)")
    table.add_column("model")
    for batch in batches:
        table.add_column(f"batch {batch}", justify="right")
    for result in results:
        if "failure" in result:
            table.add_row(result["model"], result["failure"])
            continue
        cells = {row["batch"]: _cell(row) for row in result["rows"]}
        table.add_row(result["model"], *(cells.get(batch, "") for batch in batches))
    means = summary(results, batches)
    table.add_section()
    for key in ("geometric_mean", "slower"):
        cells_of = (str(means[str(b)][key]) if str(b) in means else "" for b in batches)
        table.add_row(key.replace("_", " "), *cells_of)
    console = Console(width=140)
    console.print(table)
    for result in results:
        for line in left_out_lines(result.get("left_out", {})):
            console.print(f"{result['model']}: {line}")
    for batch, found in means.items():
        for name, error in found.get("largest_error", {}).items():
            console.print(f"batch {batch}: largest error of {name}: {error:.1e}")


def markdown(machines: Mapping[str, Mapping[str, Any]]) -> str:
    """The tables of the JSON files of some machines, by what these are called there."""
    engines = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
    return "\n\n".join(
        f"{name}: {_measured_with(file, engines)}\n\n{_table(file['results'])}"
        for name, file in machines.items()
    )


def compilers_markdown(file: Mapping[str, Any]) -> str:
    """The table of a file with other compilers: their times over ours, by model."""
    results, peers = file["results"], {"torch.compile": "torch.compile", "tvm": "TVM"}
    batches = sorted({row["batch"] for r in results for row in r.get("rows", ())})
    columns = [(peer, batch) for peer in peers for batch in batches]
    head = ["model", *(f"{peers[peer]}, batch {batch}" for peer, batch in columns)]
    lines = [head, ["---", *["---:"] * len(columns)]]
    found: dict[tuple[str, int], list[float]] = {column: [] for column in columns}
    for result in results:
        ratios = {
            (p, row["batch"]): r for row in result.get("rows", ()) for p, r in row["ratios"].items()
        }
        lines.append([f"`{result['model']}`", *(_multiple(ratios.get(c)) for c in columns)])
        for column in columns:
            found[column] += [ratios[column]] if column in ratios else []
    means = (geometric_mean(found[c]) if found[c] else None for c in columns)
    lines.append(["geometric mean", *map(_multiple, means)])
    heading = _measured_with(file, {"torch": "PyTorch", "apache-tvm": "TVM"})
    return "\n".join([heading, "", *(f"| {' | '.join(cells)} |" for cells in lines)])


def _multiple(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.1f}" if ratio < 100 else f"{ratio:.0f}"


def _measured_with(file: Mapping[str, Any], engines: Mapping[str, str]) -> str:
    """The CPU, the date, and the versions of engines, by how they are called here."""
    machine = next(r["machine"] for r in file["results"] if "machine" in r)
    versions = [f"{title} {machine['versions'][key]}" for key, title in engines.items()]
    return f"{', '.join([machine['cpu'], machine['date'], *versions])}."


def means(results: Sequence[dict[str, Any]]) -> dict[int, tuple[float, float, float, str]]:
    """By batch size: the mean ratio of all models and of those without `Loop` bags, the smallest
    ratio, and whose it is."""
    plain = _without_bags(results)
    found = {}
    for batch in sorted({row["batch"] for r in results for row in r.get("rows", ())}):
        every, some = ratios_at(results, batch), ratios_at(plain, batch)
        worst = min(every, key=lambda name: every[name])
        both = geometric_mean(every.values()), geometric_mean(some.values())
        found[batch] = (*both, every[worst], worst)
    return found


def _without_bags(results: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [result for result in results if not result.get("loop_bags")]


def _table(results: Sequence[dict[str, Any]]) -> str:
    plain = _without_bags(results)
    head = ["batch", "all models", f"without {len(results) - len(plain)} with `Loop` bags"]
    lines = [[*head, "smallest", "without bags, over OpenVINO in bf16"], ["---:"] * 5]
    for batch, (every, some, smallest, whose) in means(results).items():
        rows = [row for r in plain for row in r.get("rows", ()) if row["batch"] == batch]
        rounded = [row["ratios"][BF16] for row in rows if BF16 in row["ratios"]]
        cells = [str(batch), f"{every:.1f}", f"{some:.1f}", f"{smallest:.2f} ({whose})"]
        lines.append([*cells, f"{geometric_mean(rounded):.1f}"])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cell(row: dict[str, Any]) -> str:
    ratio, ours = best_ratio(row), row["latencies"]["graphopt"]["median"]
    floor = f", {ours / row['floor']:.1f}" if row["floor"] else ""
    return f"{ratio:.2f} ({ours:.0f}{floor})" if ratio is not None else f"({ours:.0f}{floor})"


def main(
    folder: Path,
    only: Annotated[str, typer.Option(help="names of models; all by default")] = "",
    batch: Annotated[str, typer.Option(help="batch sizes")] = "1,8,64,512,2048",
    peers: Annotated[str, typer.Option(help="engines")] = "onnxruntime,openvino",
    seconds: Annotated[float, typer.Option(help="per engine and batch size")] = 1.0,
    precision: Annotated[
        PrecisionName, typer.Option(help="of ours, and of the peers that count")
    ] = PrecisionName.FP32,
    json_file: Annotated[Path | None, typer.Option("--json", help="write it all here")] = None,
    shapes: Annotated[bool, typer.Option(help="measure the production shapes, too")] = True,
    child: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Measure models and compare."""
    batches = [int(size) for size in batch.split(",")]
    if child:
        print(json.dumps(measure(folder, only, batches, peers, seconds, precision.value)))
        return
    real = sorted(path.parent.name for path in folder.glob("*/model.onnx"))
    names = only.split(",") if only else [*real, *(production.MODELS if shapes else ())]
    shared = [str(folder), "--batch", batch, "--peers", peers, "--seconds", str(seconds)]
    shared += ["--precision", precision.value]
    results = []
    for name in names:
        print(name, file=sys.stderr, flush=True)
        found = in_a_process(__file__, *shared, "--only", name, timeout=TIMEOUT)
        failed = isinstance(found, Lost)
        results.append({"model": name, "failure": found.reason} if failed else found)
        if json_file:
            text = {"summary": summary(results, batches), "results": results}
            json_file.write_text(json.dumps(text, indent=1) + "\n")
    show(results, batches)


if __name__ == "__main__":
    run_script(main)
