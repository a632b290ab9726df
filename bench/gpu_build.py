"""Builds models for GPUs, which needs no GPU: how long it takes, and what kernels take of one.

    python bench/gpu_build.py FOLDER [--target cuda:sm_80,sm_90] [--only NAME] [--json FILE]
    python bench/gpu_build.py --variants

FOLDER holds one folder a model, each with a `model.onnx`. Seconds are those of CPUs, which other
work on the machine changes little: of this process, and of the compilers that it starts. Registers,
shared memory and spilled bytes are the largest over all kernels and architectures, as ptxas reports
them. Launches are those of one inference where nothing loops. With `--variants` it builds, instead
of models, every variant that the tuner may give a dense layer, and prints the registers and spilled
bytes of each.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
from pathlib import Path
from typing import Any, get_args

import tvm

import graphopt
from graphopt.pipeline.report import Report
from graphopt.targets.cuda import nvcc
from graphopt.targets.cuda.gemm_family import GpuGemmFamily, GpuGemmProblem
from graphopt.targets.cuda.kernels import elementary
from graphopt.targets.cuda.kernels.gemm import MAX_DOTS, Math, Variant, with_device_code
from graphopt.targets.cuda.target import DEFAULT

COLUMNS = ("python", "nvcc", "kernels", "launches", "registers", "shared", "spills", "MB")


def measured(model: Path, target: str) -> dict[str, Any]:
    """Seconds of CPUs, and the kernels' appetite."""
    report, who = Report(), {"python": resource.RUSAGE_SELF, "nvcc": resource.RUSAGE_CHILDREN}
    before = {name: _seconds(whose) for name, whose in who.items()}
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "model.gopt"
        graphopt.compile(model, target, output=output, verify=False, report=report)
        size = (output / "model.so").stat().st_size
    kernels = [k for each in report.facts["gpu_kernels"].values() for k in each.values()]
    return {
        **{name: round(_seconds(whose) - before[name], 1) for name, whose in who.items()},
        "kernels": report.facts["kernels"],
        "launches": report.facts["calls"],
        "registers": max(kernel["registers"] for kernel in kernels),
        "shared": max(kernel["shared_bytes"] for kernel in kernels),
        "spills": max(kernel["spill_bytes"] for kernel in kernels),
        "MB": round(size / 1e6, 2),
    }


def _seconds(whose: int) -> float:
    """Of CPUs, by this process or by those that it started and that have ended."""
    used = resource.getrusage(whose)
    return used.ru_utime + used.ru_stime


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The table of `bench/FIGURES.md`."""
    lines = [
        "| model | CPU seconds: Python, nvcc | launches | most registers | shared bytes "
        "| spilled bytes |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, row in rows.items():
        numbers = (row[column] for column in ("launches", "registers", "shared", "spills"))
        cells = [name, f"{row['python']:.1f}, {row['nvcc']:.1f}", *map(str, numbers)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


Chosen = list[tuple[GpuGemmProblem, Variant]]


def variants(math: Math, k: int = 429, n: int = 400) -> Chosen:
    """All that the tuner may give a layer, for few rows and for many; and one of few columns."""
    family = GpuGemmFamily()
    problems = [
        GpuGemmProblem(k, columns, math, rows) for columns in (n, MAX_DOTS) for rows in (8, 8192)
    ]
    found = {v: p for p in problems for v in family.candidates(p)}
    return [(problem, variant) for variant, problem in found.items()]


def resources(chosen: Chosen, architectures: tuple[str, ...] = DEFAULT) -> list[dict[str, int]]:
    """Of each variant, the most registers and spilled bytes on any of the architectures."""
    elementary.register()
    family = GpuGemmFamily()
    kernels = {
        f"variant{k}": family.kernel(problem, variant).with_attr("global_symbol", f"variant{k}")
        for k, (problem, variant) in enumerate(chosen)
    }
    with tvm.target.Target(
        {"kind": "cuda", "arch": architectures[0], "host": {"kind": "llvm"}}
    ) as target:
        module = tvm.compile(tvm.IRModule(kernels), target=target).mod
    source = with_device_code(module.imports[0].inspect_source("cuda"))
    _, taken = nvcc.fatbin(source, architectures)
    return [
        {
            what: max(own[f"variant{k}_kernel"][what] for own in taken.values())
            for what in ("registers", "spill_bytes")
        }
        for k in range(len(chosen))
    ]


def print_variants() -> None:
    for math in get_args(Math):
        chosen = variants(math)
        for (problem, variant), taken in zip(chosen, resources(chosen)):
            print(f"{math:8}{problem.k} x {problem.n:<5}{taken} {variant}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--variants", action="store_true")
    parser.add_argument("--target", default="cuda:sm_80,sm_90")
    parser.add_argument("--only", default="")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.variants:
        print_variants()
        return
    if options.folder is None:
        parser.error("FOLDER or --variants is needed")
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


if __name__ == "__main__":
    main()
