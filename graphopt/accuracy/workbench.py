"""Where candidates are tried: in ONNX Runtime, with constants that they share written once."""

from __future__ import annotations

import itertools
from pathlib import Path

from graphopt.ir import onnx_io
from graphopt.ir.atomic import scratch_folder
from graphopt.ir.external_data import TensorWriter
from graphopt.ir.graph import Graph
from graphopt.targets.portable import OnnxModel


class Workbench:
    """Loads graphs into ONNX Runtime, one after another.

    All of them refer to one file of constants, which only grows. A candidate adds what it changed;
    tables that it shares with others are neither written again nor copied into memory, because
    ONNX Runtime maps the file. The folder goes when the workbench does.
    """

    def __init__(self) -> None:
        self._folder = scratch_folder()
        self._writer = TensorWriter(Path(self._folder.name) / "constants.bin")
        self._numbers = itertools.count()

    def load(self, graph: Graph) -> OnnxModel:
        """`graph`, ready to run; it may outlive the workbench."""
        path = Path(self._folder.name) / f"{next(self._numbers)}.onnx"
        proto = onnx_io.to_proto(graph, self._writer)
        self._writer.flush()
        path.write_bytes(proto.SerializeToString())
        try:
            return OnnxModel(path)
        finally:
            path.unlink()

    def close(self) -> None:
        """Remove what was written; models that are loaded go on."""
        self._writer.close()
        self._folder.cleanup()
