"""The target's text form, and what is said where something is missing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import gpu_emulator
import numpy as np
import pytest
from conftest import EXAMPLE

import graphopt
from graphopt.analysis.cost import node_cost
from graphopt.errors import ArtifactError, OutputError, SpecError
from graphopt.ir.graph import Graph
from graphopt.ir.types import TensorType
from graphopt.ops.dynamic_matmul import DOMAIN, OP_TYPE
from graphopt.targets import base
from graphopt.targets.cuda import nvcc
from graphopt.targets.cuda.legalize import dense_layers
from graphopt.targets.cuda.target import CudaTarget

FEEDS = {
    "ids": np.zeros((3, 10), np.int64),
    "dense": np.zeros((3, 5), np.float32),
    "history": np.zeros((3, 10), np.int64),
}


def test_architectures_are_sorted_and_named_once() -> None:
    assert base.find("cuda:sm_90,sm_80,sm_90") == CudaTarget(("sm_80", "sm_90"))
    assert base.find("cuda:sm_90a") == CudaTarget(("sm_90a",))
    assert base.find("cuda") == CudaTarget(("sm_80", "sm_90"))


def test_layers_in_8_bits_have_a_cost() -> None:
    """Which is not counted by an instruction of some CPU."""
    graph = Graph(opsets={"": 18, DOMAIN: 1})
    x = graph.add_input("x", TensorType("float32", (5, 24)))
    constants = graph.constant(np.ones((24, 36), np.int8)), graph.constant(np.ones(36, np.float32))
    made = graph.insert(OP_TYPE, [x, *constants], {"levels": 255}, domain=DOMAIN)
    graph.set_outputs(made.outputs, ["y"])
    (layer,) = dense_layers(CudaTarget(("sm_80",)).legalize(graph))
    assert layer.attrs["math"] == "Codes"
    flops = node_cost(layer).flops
    assert isinstance(flops, int) and flops >= 2 * 5 * 24 * 36


def test_precisions_need_tensor_cores() -> None:
    assert base.find("cuda:sm_80").computing("tf32") == CudaTarget(("sm_80",), "tf32")
    assert base.find("cuda:sm_75").computing("fp32").math == "Fp32"
    for precision in ("tf32x3", "tf32", "bf16", "fp16"):
        with pytest.raises(
            SpecError, match=f"sm_75 has no tensor cores for --precision {precision}"
        ):
            base.find("cuda:sm_75,sm_80").computing(precision)
    for precision in ("tf32x3", "tf32", "fp16"):
        with pytest.raises(
            SpecError, match=f"target cpu has no kernels for --precision {precision}"
        ):
            base.find("cpu").computing(precision)


@pytest.mark.parametrize("text", ["cuda:80", "cuda:sm_50", "cuda:h100", "cuda:sm_80,,sm_90"])
def test_other_architectures_are_refused(text: str) -> None:
    with pytest.raises(SpecError, match=r"no GPU architecture is called .*try cuda:sm_80,sm_90"):
        base.find(text)


def test_missing_compiler_names_its_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.delenv("CUDA_HOME", raising=False)
    with pytest.raises(OutputError, match="pip install nvidia-cuda-nvcc") as caught:
        nvcc.find()
    assert len(str(caught.value).splitlines()) == 1


@pytest.fixture(scope="module")
def built(emulation: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cuda") / "ctr.gopt"
    with gpu_emulator.compiled_for_emulation(emulation):
        graphopt.compile(EXAMPLE, "cuda", output=path)
    return path


def test_report_says_that_the_code_was_not_run(built: Path) -> None:
    report = json.loads((built / "report.json").read_text())
    assert "no NVIDIA driver" in report["facts"]["obstacle"]
    assert report["verification"]["agrees"]  # the portable model
    assert "__global__" in (built / "model.cu").read_text()


def test_kernels_are_launched_with_addresses(built: Path) -> None:
    """Described arrays, which take LLVM long, are taken by what the runtime calls, and no other."""
    found = re.findall(rb"__tvm_ffi_(\w+)", (built / "model.so").read_bytes())
    assert {name.decode() for name in found} - {"_library_bin", "_library_ctx"} == {
        "graphopt_run",
        "graphopt_plan",
        "graphopt_profile",
    }


def test_no_driver(built: Path) -> None:
    with pytest.raises(ArtifactError, match=r"compiled for a GPU; .*no NVIDIA driver"):
        graphopt.load(built)


def test_wrong_architecture(built: Path, emulation: Path) -> None:
    with pytest.raises(
        gpu_emulator.LaunchError, match=r"needs a GPU of sm_80, sm_90 or newer, .*sm_75"
    ):
        gpu_emulator.run(built, [FEEDS], emulation, architecture=75)


def test_newer_architecture(built: Path, emulation: Path) -> None:
    (found,) = gpu_emulator.run(built, [FEEDS], emulation, architecture=120)
    assert found["ctr"].shape == (3, 1)
