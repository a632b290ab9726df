"""Models on a GPU: are answers right, how fast are they, and how close to what the GPU can do.

    python bench/gpu.py FOLDER… [--batches 1,512,8192] [--peers torch,onnxruntime] [--json FILE]
    python bench/gpu.py FOLDER… --payload bench.pyz [--python 3.12]
    python bench/gpu.py --production --payload production.pyz

A FOLDER has a `model.onnx`, or folders that have one; `--production` adds the shapes of
`production.py`. Each model is compiled for GPUs and checked
at every batch size against outputs that are stored beside it or that ONNX Runtime gives, then timed
(`gpu_timing` says how) next to `torch.compile(mode="max-autotune")` and ONNX Runtime's CUDA
provider. With --payload nothing is run: a file is written that does all that with `python FILE` on
a machine that has a GPU, Python and NumPy only; its options are those of `gpu_measure`.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import gpu_device
import gpu_lookup
import gpu_measure
import gpu_payload
import production
import typer
from gpu_cases import make_case, make_production_case
from isolation import run_script

from graphopt.errors import GraphoptError


def models_in(folders: list[Path]) -> list[Path]:
    """The folders that have a model, without repetition."""
    found = []
    for folder in folders:
        inside = [path.parent for path in sorted(folder.glob("*/model.onnx"))]
        found += [folder] if (folder / "model.onnx").exists() else inside
    return list(dict.fromkeys(found))


def main(
    folders: Annotated[list[Path] | None, typer.Argument()] = None,
    only: Annotated[str, typer.Option(help="names of models; all by default")] = "",
    batches: Annotated[str, typer.Option(help="batch sizes to time")] = "1,512,8192,65536",
    precisions: Annotated[str, typer.Option(help="of products in our kernels")] = "fp32,tf32",
    architectures: Annotated[str, typer.Option(help="of GPUs; those it has by default")] = "",
    shapes: Annotated[
        bool, typer.Option("--production", help="models of production shapes too")
    ] = False,
    lookups: Annotated[bool, typer.Option(help="lookups in 13 GB of tables too")] = False,
    peers: Annotated[str, typer.Option(help="torch, onnxruntime")] = "",
    seconds: Annotated[float, typer.Option(help="for each measurement")] = 0.2,
    json_file: Annotated[Path | None, typer.Option("--json", help="write it all here")] = None,
    payload: Annotated[Path | None, typer.Option(help="write this file and run nothing")] = None,
    python: Annotated[str, typer.Option(help="whose payload; this one by default")] = "",
) -> None:
    """Check and time models on this GPU, or pack them for another machine."""
    makers: dict[str, Callable[..., None]] = {
        folder.name: partial(make_case, folder) for folder in models_in(folders or [])
    }
    if shapes:
        makers |= {name: partial(make_production_case, name) for name in production.MODELS}
    if only:
        makers = {name: make for name, make in makers.items() if name in only.split(",")}
    if not makers:
        sys.exit(f"{', '.join(map(str, folders or ['no FOLDER']))}: no model.onnx there")
    try:
        if payload is None:
            gpu_device.describe()
    except GraphoptError as error:
        sys.exit(f"{error}; make a file for a machine that has one with --payload FILE")
    with tempfile.TemporaryDirectory() as scratch:
        cases = Path(scratch)
        for name, make in makers.items():
            print(f"compile {name}", file=sys.stderr, flush=True)
            sizes = [int(batch) for batch in batches.split(",")]
            try:
                make(cases / name, architectures, precisions.split(","), sizes)
            except GraphoptError as error:
                sys.exit(f"{name}: {error}")
        if lookups:
            gpu_lookup.make_case(cases / gpu_lookup.NAME, architectures)
        if payload is not None:
            size = gpu_payload.pack(cases, payload, python)
            print(f"{payload}: {size / 2**20:.1f} MiB, run it with: python {payload.name}")
            return
        options = ["--batches", batches, "--peer-batches", batches]
        options += ["--seconds", str(seconds), "--peers", peers]
        options += ["--json", str(json_file)] if json_file else []
        sys.exit(gpu_measure.main([str(cases), *options]))


if __name__ == "__main__":
    run_script(main)
