"""Opening what is on disk. Serving needs no more than this, so it imports no compiler."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from graphopt.errors import ArtifactError, SpecError
from graphopt.serving.artifact import GPU_MEMORY_SHARE, Artifact
from graphopt.serving.auto_engine import AutoEngine

if TYPE_CHECKING:
    from graphopt.ir.graph import Graph


@overload
def load(
    path: str | Path,
    engine: Literal["compiled"] = ...,
    *,
    gpu_memory_share: float = ...,
    large_pages: bool = ...,
) -> Any: ...  # the path says which of two; a union would have every caller tell them apart


@overload
def load(
    path: str | Path,
    engine: Literal["auto"],
    *,
    gpu_memory_share: float = ...,
    large_pages: bool = ...,
) -> AutoEngine: ...


def load(
    path: str | Path,
    engine: str = "compiled",
    *,
    gpu_memory_share: float = GPU_MEMORY_SHARE,
    large_pages: bool = True,
) -> Graph | Artifact | AutoEngine:
    """A compiled artifact ready to run, or a model file as a graph.

    Type checkers take the result for either; `Artifact.load` has the one type.

    Args:
        engine: "compiled", or "auto" for the one that was measured to be faster at each batch size
            when the artifact was made.
        gpu_memory_share: for a GPU, how much of its free memory weights may take; larger tables
            stay in the host's memory, and kernels read them there.
        large_pages: whether weights may be mapped in pages of 2 MB, which is faster where tables
            are large. If not, only what is read becomes resident, in pages of 4 KB, or a
            RuntimeWarning says why Linux (from 6.7 on) does not do that here. A process forked
            from this one has to load for itself.

    Raises:
        ArtifactError: the folder is not a usable artifact, or engines were not measured.
        InvalidModelError, UnsafePathError, UnsupportedOpError: the file is not a usable model.
        SpecError: there is no such engine, or no choice of one, as for model files.
    """
    if engine not in ("compiled", "auto"):
        raise SpecError(f"engine is compiled or auto, not {engine!r}")
    try:
        is_artifact = Path(path).is_dir()
    except OSError as error:  # it may not be looked at, or its name is too long
        raise ArtifactError(f"{str(path)[:80]}: cannot be read ({error.strerror})") from None
    if is_artifact:
        if not 0 <= gpu_memory_share <= 1:
            raise SpecError(f"gpu_memory_share is between 0 and 1, not {gpu_memory_share}")
        artifact = Artifact.load(path, gpu_memory_share, large_pages)
        return AutoEngine(artifact) if engine == "auto" else artifact
    if engine == "auto":
        raise SpecError(f"{path}: only an artifact has engines to choose from")
    from graphopt.ir import onnx_io

    return onnx_io.load(path)
