"""Builds models for GPUs, which needs no GPU: how long it takes, and what kernels take of one.

    python bench/gpu_build.py FOLDER [--target cuda:sm_80,sm_90] [--only NAME] [--json FILE]

FOLDER holds one folder a model, each with a `model.onnx`. Registers, shared memory and spilled
bytes are the largest over all kernels and architectures, as ptxas reports them. Launches are those
of one inference where nothing loops.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import graphopt
from graphopt.pipeline.report import Report

COLUMNS = (
    *("optimize", "lower", "build", "nvcc", "kernels", "launches"),
    *("registers", "shared", "spills", "MB"),
)


def measured(model: Path, target: str) -> dict[str, Any]:
    """Seconds by stage, and the kernels' appetite."""
    report = Report()
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "model.gopt"
        graphopt.compile(model, target, output=output, verify=False, report=report)
        size = (output / "model.so").stat().st_size
    kernels = [k for each in report.facts["gpu_kernels"].values() for k in each.values()]
    return {
        **{stage: report.stages[stage] for stage in ("optimize", "lower", "build")},
        "nvcc": report.facts["nvcc_seconds"],
        "kernels": report.facts["kernels"],
        "launches": report.facts["calls"],
        "registers": max(kernel["registers"] for kernel in kernels),
        "shared": max(kernel["shared_bytes"] for kernel in kernels),
        "spills": max(kernel["spill_bytes"] for kernel in kernels),
        "MB": round(size / 1e6, 2),
    }


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The README's table."""
    lines = [
        "| model | seconds to build, of them nvcc | launches | most registers | shared bytes "
        "| spilled bytes |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, row in rows.items():
        seconds = sum(row[stage] for stage in ("optimize", "lower", "build"))
        numbers = (row[column] for column in ("launches", "registers", "shared", "spills"))
        cells = [name, f"{seconds:.0f}, {row['nvcc']:.0f}", *map(str, numbers)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--target", default="cuda:sm_80,sm_90")
    parser.add_argument("--only", default="")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print(f"{'model':24}" + "".join(f"{name:>10}" for name in COLUMNS))
    rows = {}
    for model in sorted(options.folder.glob("*/model.onnx")):
        name = model.parent.name
        if options.only not in name:
            continue
        rows[name] = row = measured(model, options.target)
        print(f"{name:24}" + "".join(f"{row[column]:>10}" for column in COLUMNS), flush=True)
        if options.json:
            options.json.write_text(json.dumps(rows, indent=2) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
