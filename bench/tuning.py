"""What tuning gains: each model with default parameters and with tuned ones, in turns.

    python bench/tuning.py FOLDER [--only NAME,…] [--batch 1,64,512] [--tune SECONDS] [--json FILE]

FOLDER has one folder per model with `model.onnx`; "-" for none. Production shapes (`production.py`)
come after. A ratio is the median CPU time of the default over that of the tuned artifact: 1.15 says
that the defaults take 15 % longer.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import production
import typer
from isolation import run_script
from rich.console import Console
from rich.table import Table

import graphopt
from graphopt import Tuning, api
from graphopt.errors import InputError
from graphopt.ir import onnx_io
from graphopt.ir.graph import Graph
from graphopt.latency import interleaved
from graphopt.serving.artifact import Artifact


def measure(
    model: Path | Graph, batches: Sequence[int], tune: float, seconds: float, cache: Path
) -> dict[int, float]:
    """The default's time over the tuned one's, for each batch size."""
    with tempfile.TemporaryDirectory() as folder:
        made = {}
        for name, tuning in (
            ("default", None),
            ("tuned", Tuning(cache, seconds=tune, batches=tuple(batches))),
        ):
            output = Path(folder) / f"{name}.gopt"
            made[name] = graphopt.compile(model, output=output, tuning=tuning, verify=False)
        found = {}
        for batch in batches:
            with suppress(InputError):  # the model's batch is another one, and fixed
                found[batch] = _ratio(made, batch, seconds)
        return found


def _ratio(made: dict[str, Any], batch: int, seconds: float) -> float:
    default, tuned = made["default"], made["tuned"]
    assert isinstance(default, Artifact)
    feeds = api.random_inputs(default.path, default, batch)
    calls = {"default": lambda: default.run(feeds), "tuned": lambda: tuned.run(feeds)}
    taken = interleaved(calls, seconds, clock=time.thread_time)
    return round(taken["default"].median / taken["tuned"].median, 3)


def main(
    folder: Path,
    only: Annotated[str, typer.Option(help="names of models; all by default")] = "",
    batch: Annotated[str, typer.Option(help="batch sizes")] = "1,64,512",
    tune: Annotated[float, typer.Option(help="seconds for each model")] = 45.0,
    seconds: Annotated[float, typer.Option(help="per artifact and batch size")] = 1.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="write it all here")] = None,
) -> None:
    """Tune models and compare with the defaults."""
    batches = [int(size) for size in batch.split(",")]
    real = sorted(path.parent.name for path in folder.glob("*/model.onnx"))
    names = only.split(",") if only else [*real, *production.MODELS]
    found: dict[str, dict[int, float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in names:
            print(name, file=sys.stderr, flush=True)
            model: Path | Graph = folder / name / "model.onnx"
            sizes = batches
            if name in production.MODELS:
                make, most = production.MODELS[name]
                model, sizes = Path(scratch) / "model.onnx", [b for b in batches if b <= most]
                onnx_io.save(make(), model)
            found[name] = measure(model, sizes, tune, seconds, Path(scratch) / "tuned.db")
            if json_file:
                json_file.write_text(json.dumps(found, indent=1) + "\n")
    show(found, batches)


def show(found: dict[str, dict[int, float]], batches: Sequence[int]) -> None:
    """Print the ratios, their median and the largest."""
    table = Table(title="default over tuned")
    for column in ("model", *(f"batch {batch}" for batch in batches)):
        table.add_column(column, justify="left" if column == "model" else "right")
    for name, row in found.items():
        table.add_row(name, *(f"{row[b]:.2f}" if b in row else "" for b in batches))
    ratios = [ratio for row in found.values() for ratio in row.values()]
    Console().print(table)
    Console().print(f"median {median(ratios):.2f}, largest {max(ratios):.2f}")


if __name__ == "__main__":
    run_script(main)
