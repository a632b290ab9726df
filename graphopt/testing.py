"""For tests of passes, converters and kernels: run a model compiled, compare two answers."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import onnx

from graphopt.ir import onnx_io
from graphopt.ir.graph import Graph
from graphopt.ir.types import dtype_to_numpy


def run_compiled(
    model: onnx.ModelProto | Graph,
    feeds: Mapping[str, np.ndarray],
    oob: Literal["error", "clamp", "zero"] = "error",
) -> dict[str, np.ndarray]:
    """The outputs of a model compiled for this machine, without any pass having run on it.

    Args:
        model: sizes left symbolic in it stay symbolic in the compiled code.
        feeds: an array per input.

    Raises:
        GraphoptError: it cannot be compiled, or an id is out of range.
    """
    return Compiled(model, oob)(feeds)


class Compiled:
    """A model compiled for this machine, to be called with a dict of arrays as often as needed."""

    def __init__(
        self, model: onnx.ModelProto | Graph, oob: Literal["error", "clamp", "zero"] = "error"
    ) -> None:
        from graphopt.runtime import Program
        from graphopt.targets.cpu.target import CpuTarget

        graph = model if isinstance(model, Graph) else onnx_io.from_proto(model)
        self._inputs = [value.name for value in graph.inputs]
        self._outputs = [
            (name, dtype_to_numpy(value.dtype))
            for name, value in zip(graph.output_names, graph.outputs)
        ]
        with tempfile.TemporaryDirectory() as folder:
            library = Path(folder) / "model.so"
            compiled = CpuTarget.parse("").compile(graph, library, oob, lambda stage: None)
            self._program = Program(library, [_owned(array) for array in compiled.constants])

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        results = self._program([_owned(feeds[name]) for name in self._inputs])
        return {name: array.view(dtype) for (name, dtype), array in zip(self._outputs, results)}


def _owned(array: np.ndarray) -> np.ndarray:
    """A copy aligned as compiled code demands, which may also be handed over through DLPack."""
    from graphopt.signature import aligned_copy

    return aligned_copy(np.asarray(array))
