"""Runs libraries compiled for NVIDIA GPUs.

Straight-line programs (`straight`) run in lanes: a stream, buffers and CUDA graphs that belong to
one caller at a time. The others run in Relax's virtual machine (`machine`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.errors import ArtifactError
from graphopt.serving.gpu_runtime.connection import connect, device_name, obstacle
from graphopt.serving.gpu_runtime.machine import MachineProgram
from graphopt.serving.gpu_runtime.straight import StraightProgram
from graphopt.serving.runtime import ffi
from graphopt.serving.signature import Signature

__all__ = ["MachineProgram", "StraightProgram", "device_name", "load_program", "obstacle"]


def load_program(
    library: Path,
    weights: Sequence[np.ndarray],
    signature: Signature,
    facts: dict[str, Any],
    share: float,
) -> StraightProgram | MachineProgram:
    """The program in a library for GPUs, its weights copied to where kernels can read them.

    Args:
        facts: `manifest["gpu"]`.
        share: of the GPU's free memory, how much weights may take; larger tables stay in the memory
            of the host.

    Raises:
        ArtifactError: this machine cannot run it.
    """
    connect()
    try:
        module = ffi().load_module(str(library))
        if facts["straight"]:
            decisions = facts.get("decisions", ())
            return StraightProgram(module, weights, signature, facts["demands"], share, decisions)
        return MachineProgram(module, weights, signature, facts["demands"])
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ArtifactError(f"{library.parent}: the GPU refuses it ({reason})") from None
