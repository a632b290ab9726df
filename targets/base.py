"""What a target is, and finding one by its text: `cpu`, `cpu:x86-64-v3`, `onnxruntime`."""

from __future__ import annotations

import difflib
import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np

from graphopt.errors import SpecError
from graphopt.ir.graph import Graph
from graphopt.machine import sums_bytes_exactly
from graphopt.ops.dynamic_matmul import EXACT_LEVELS, LEVELS
from graphopt.targets.tuning.options import Tuning

Oob = Literal["error", "clamp", "zero"]
OOB_POLICIES: tuple[str, ...] = get_args(Oob)
Precision = Literal["fp32", "tf32x3", "tf32", "bf16", "fp16"]
"""What dense layers multiply: float32, each as the sum of two tf32 numbers (less the smallest of
their products), or operands rounded to tf32, to bfloat16 or to float16 (11, 8 and 11 significant
bits). Products add up in float32."""
PRECISIONS: tuple[str, ...] = get_args(Precision)

_TARGETS = {
    "cpu": "graphopt.targets.cpu.target:CpuTarget",
    "cuda": "graphopt.targets.cuda.target:CudaTarget",
    "onnxruntime": "graphopt.targets.portable:OnnxRuntimeTarget",
    "reference": "graphopt.targets.portable:ReferenceTarget",
}


@dataclass(frozen=True)
class Compiled:
    """What a compiling target made of a graph.

    Attributes:
        constants: the arrays to call the library with after the inputs, in order.
        facts: entries for the manifest (target, machine, CPU features).
        kernels: how many functions the library has, how many calls one inference makes, and what
            else the report should say of them.
    """

    constants: tuple[np.ndarray, ...]
    facts: dict[str, Any]
    kernels: dict[str, Any]


class Target(ABC):
    """Where a graph runs.

    Attributes:
        name: the first word of its text form.
        portable: True if the result is an `.onnx` file, False if it is a compiled artifact.
        own_passes: what pays on this target alone, run after all others, as the text of a pipeline;
            what follows the first pass runs if that changed something.
    """

    name: ClassVar[str]
    portable: ClassVar[bool]
    own_passes: ClassVar[str] = ""

    @property
    def multiplies_bytes(self) -> bool | None:
        """True if layers are faster in 8 bits than in float32; None if only measuring tells."""
        return False

    @property
    def row_levels(self) -> int:
        """Steps in the range of a row, where layers multiply rows with a range each; else 0."""
        return 0

    @property
    def verified_levels(self) -> int:
        """The most steps whose products this machine's ONNX Runtime, which verifies, has right."""
        return LEVELS if sums_bytes_exactly() else EXACT_LEVELS

    @property
    def multiplies_bfloat16(self) -> bool:
        """True if layers whose operands are rounded to bfloat16 are faster than in float32."""
        return False

    @property
    def runs_here(self) -> bool:
        """True if this machine runs what `compile` makes, so that it can be timed."""
        return False

    @classmethod
    @abstractmethod
    def parse(cls, argument: str) -> Target:
        """The target for the text after the colon ("" for none).

        Raises:
            SpecError: it is not understood.
        """

    def computing(self, precision: Precision) -> Target:
        """This target with dense layers that multiply in `precision`.

        Raises:
            SpecError: it has no way to.
        """
        if precision != "fp32":
            raise SpecError(f"target {self.name} has no kernels for --precision {precision}")
        return self

    def legalize(self, graph: Graph) -> Graph:
        """`graph` (not changed) in the ops that this target has kernels for."""
        return graph

    def compile(
        self,
        graph: Graph,
        library: Path,
        oob: Oob,
        stage: Callable[[str], Any],
        tuning: Tuning | None = None,
    ) -> Compiled:
        """Write the compiled code of `graph` (not changed) to `library`.

        Args:
            stage: called with the name of each step as it begins.
            tuning: where the parameters of kernels come from; their defaults if None.

        Raises:
            TuningMissError, TuningCacheError: the tuning cache is of no use.
            UnsupportedOpError: names the op and the source node that cannot be compiled.
        """
        raise NotImplementedError(f"{self.name} does not compile")


def find(text: str) -> Target:
    """The target that `text` describes.

    Raises:
        SpecError: there is none.
    """
    name, _, argument = text.partition(":")
    if name not in _TARGETS:
        close = difflib.get_close_matches(name, _TARGETS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(_TARGETS)}"
        raise SpecError(f"no target is called {name!r}; {hint}")
    module, _, cls = _TARGETS[name].partition(":")
    target: Target = getattr(importlib.import_module(module), cls).parse(argument)
    return target
