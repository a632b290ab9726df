"""Opening what is on disk. Serving needs no more than this, so it imports no compiler."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from graphopt.artifact import Artifact

if TYPE_CHECKING:
    from graphopt.ir.graph import Graph


def load(path: str | Path) -> Graph | Artifact:
    """A compiled artifact ready to run, or a model file as a graph.

    Raises:
        ArtifactError: the folder is not a usable artifact.
        InvalidModelError, UnsafePathError, UnsupportedOpError: the file is not a usable model.
    """
    if Path(path).is_dir():
        return Artifact.load(path)
    from graphopt.ir import onnx_io

    return onnx_io.load(path)
