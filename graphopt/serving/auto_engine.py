"""An artifact run by whichever engine was measured to be the faster one for the batch size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.errors import ArtifactError
from graphopt.serving.artifact import Artifact
from graphopt.serving.manifest import PORTABLE

if TYPE_CHECKING:
    from graphopt.targets.portable import OnnxModel

COMPILED, ONNXRUNTIME = "compiled", "onnxruntime"


class AutoEngine:
    """Runs the compiled code, or the portable model in ONNX Runtime where that was faster.

    What was measured is in the artifact's manifest (`graphopt.deployment.engine_choice`); a batch
    size between two that were goes to the nearer one, by ratio.

    Attributes:
        path: the artifact's folder.
        signature: what `run` takes and gives.
        fastest: the engine for each batch size that was measured.
    """

    def __init__(self, artifact: Artifact) -> None:
        found = artifact.manifest.get("engines")
        if found is None:
            raise ArtifactError(
                f"{artifact.path}: nobody has measured which engine is faster; optimize the model "
                "again with --verify-latency"
            )
        self.path, self.signature, self._artifact = artifact.path, artifact.signature, artifact
        self.fastest = {int(row["batch"]): str(row["fastest"]) for row in found}
        self._leading = leading_input(artifact)

    def engine_for(self, batch: int) -> str:
        """The engine that runs batches of this size."""
        nearest = min(self.fastest, key=lambda size: abs(math.log(size / max(1, batch))))
        return self.fastest[nearest]

    def run(self, feeds: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """As `Artifact.run`."""
        try:
            batch = len(feeds[self._leading])
        except (KeyError, TypeError):  # there is none, or what was given is for `run` to refuse
            batch = 1
        if self.engine_for(batch) == ONNXRUNTIME:
            return self._portable.run(feeds)
        return self._artifact.run(feeds)

    @cached_property
    def _portable(self) -> OnnxModel:
        from graphopt.targets.portable import OnnxModel

        return OnnxModel(self.path / PORTABLE, signature=self.signature)


def leading_input(artifact: Artifact) -> str:
    """The first input whose first size is free: the batch. Empty if there is none."""
    for spec in artifact.signature.inputs:
        if spec.shape and isinstance(spec.shape[0], str):
            return spec.name
    return ""
