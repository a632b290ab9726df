"""Every model, its kernels executed thread by thread, gives the answers of its source."""

from __future__ import annotations

from pathlib import Path

import gpu_emulator
import numpy as np
import pytest
import tvm
import tvm_ffi
from conftest import EXAMPLE, shared_models
from tvm import tirx

import graphopt
from graphopt.checking.feeds import random_feeds
from graphopt.targets.cuda.straight import straighten
from graphopt.targets.portable import OnnxModel

from .conftest import Feeds, assert_close

FOLDER = shared_models()
NAMES = sorted(p.parent.name for p in FOLDER.glob("*/model.onnx")) if FOLDER else []


@pytest.mark.parametrize("order", [0, 1, 7])
def test_example(order: int, emulation: Path, tmp_path: Path) -> None:
    mode = gpu_emulator.Mode(races=True, guard=True, order=order)
    with gpu_emulator.compiled_for_emulation(emulation, races=True, machine=True):
        graphopt.compile(EXAMPLE, "cuda", output=tmp_path / "ctr.gopt", verify=False)
    source = OnnxModel(EXAMPLE)
    feeds, _ = random_feeds(graphopt.load(EXAMPLE), source.run, (1, 3, 40))
    found = gpu_emulator.run(tmp_path / "ctr.gopt", feeds, emulation, mode)
    assert_close(found, [source.run(feed) for feed in feeds])


@pytest.mark.skipif(FOLDER is None, reason="no real models (set GRAPHOPT_MODELS)")
@pytest.mark.parametrize("name", NAMES)
def test_real_model(name: str, models: Path, emulation: Path, tmp_path: Path) -> None:
    mode = gpu_emulator.Mode(guard=True)
    found, wanted = answers(models / name, emulation, tmp_path, mode, machine=True, times=1)
    assert_close(found, wanted)


@pytest.mark.skipif(FOLDER is None, reason="no real models (set GRAPHOPT_MODELS)")
@pytest.mark.parametrize("name", NAMES[2::6])
def test_real_model_as_shipped(name: str, models: Path, emulation: Path, tmp_path: Path) -> None:
    mode = gpu_emulator.Mode()  # the third time each batch is a graph
    found, wanted = answers(models / name, emulation, tmp_path, mode, machine=False, times=3)
    assert_close(found, wanted)


def on_one_block(program: tvm.IRModule) -> list[str]:
    """Kernels that run on one block, or outside any, although their data grow with the batch."""
    found = []
    for name, kernel in program.functions.items():
        if not isinstance(kernel, tirx.PrimFunc):
            continue
        blocks: list[tirx.For] = []

        def visit(loop: tirx.For) -> None:
            if loop.thread_binding is not None and "block" in loop.thread_binding.thread_tag:
                blocks.append(loop)  # noqa: B023

        tvm_ffi.structural_walk(kernel.body, (tirx.For, visit))
        shapes = [p.ty.shape for p in kernel.params if isinstance(p.ty, tirx.BufferType)]
        grows = any(not isinstance(dim, tirx.IntImm) for shape in shapes for dim in shape)
        if grows and all(str(loop.extent) in ("1", "T.int64(1)") for loop in blocks):
            found.append(name.name_hint)
    return found


def answers(
    folder: Path,
    emulation: Path,
    tmp_path: Path,
    mode: gpu_emulator.Mode,
    *,
    machine: bool,
    times: int,
) -> tuple[list[Feeds], list[Feeds]]:
    """What a model answers to its own inputs, and what it should."""
    with gpu_emulator.compiled_for_emulation(emulation, machine=machine) as programs:
        graphopt.compile(folder / "model.onnx", "cuda", output=tmp_path / "m.gopt", verify=False)
    (program,) = programs
    assert straighten(program) is not None, "it needs the virtual machine"
    assert not on_one_block(program), "kernels that do not spread over the GPU"
    feeds, wanted = (
        [dict(np.load(file)) for file in sorted(folder.glob(f"{kind}_b*.npz"))] * times
        for kind in ("inputs", "expected")
    )
    return list(gpu_emulator.run(tmp_path / "m.gopt", feeds, emulation, mode)), list(wanted)
