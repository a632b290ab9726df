"""Building and running artifacts for GPUs without one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gpu_emulator
import numpy as np
import onnx
import pytest

import graphopt
from graphopt.ir.graph import Graph
from graphopt.targets.base import Oob, Precision

Feeds = Mapping[str, np.ndarray]
THOROUGH = gpu_emulator.Mode(races=True, guard=True)
Runner = Callable[..., list[dict[str, np.ndarray]]]


@pytest.fixture(scope="session")
def emulation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where emulated code lies."""
    return tmp_path_factory.mktemp("emulation")


@pytest.fixture
def run_model(emulation: Path, tmp_path: Path) -> Runner:
    """Compile a model for CUDA and run it: `run(model, *feeds, …)`."""

    def run(
        model: Graph | onnx.ModelProto,
        *feeds: Feeds,
        oob: Oob = "error",
        mode: gpu_emulator.Mode = THOROUGH,
        edit: Callable[[str], str] = str,
        target: str = "cuda",
        precision: Precision = "fp32",
        passes: str = "O0",
    ) -> list[dict[str, np.ndarray]]:
        path = tmp_path / "model.gopt"
        with gpu_emulator.compiled_for_emulation(
            emulation, races=mode.races, machine=mode.guard, edit=edit
        ):
            graphopt.compile(
                model,
                target,
                output=path,
                oob=oob,
                precision=precision,
                passes=passes,
                verify=False,
            )
        return gpu_emulator.run(path, feeds, emulation, mode)

    return run


@pytest.fixture
def run_text(run_model: Runner) -> Runner:
    """The same for a model in ONNX's text form, with constants: `run(text, *feeds, …)`."""

    def run(
        text: str, *feeds: Feeds, constants: Mapping[str, np.ndarray] | None = None, **options: Any
    ) -> list[dict[str, np.ndarray]]:
        model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 21]>\n{text}')
        for name, array in (constants or {}).items():
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        return run_model(model, *feeds, **options)

    return run


def assert_close(
    found: Sequence[Feeds], expected: Sequence[Feeds], rtol: float = 1e-4, atol: float = 1e-5
) -> None:
    """Equal up to the order of float32 additions."""
    for results, wanted in zip(found, expected, strict=True):
        for name, array in wanted.items():
            assert results[name].shape == array.shape, name
            np.testing.assert_allclose(results[name], array, rtol, atol, err_msg=name)
