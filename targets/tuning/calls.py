"""Kernels of a family made callable on arrays."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import tvm
import tvm_ffi

from graphopt.latency import Call
from graphopt.serving.signature import aligned_copy
from graphopt.targets.relax.scratch import ON_STACK
from graphopt.targets.tuning.family import KernelFamily


def calls_of(
    family: KernelFamily, problem: Any, params: Any, target: tvm.target.Target
) -> Iterator[tuple[Call, np.ndarray]]:
    """A call for each size that `problem` is tuned at, and the array that it writes."""
    kernel = family.kernel(problem, params).with_attr("global_symbol", "main")
    run = tvm.compile(kernel, target=target, tir_pipeline=ON_STACK)["main"]
    for trial in family.trials(problem, params):
        arrays = [aligned_copy(array) for array in trial.inputs]
        shape, dtype = trial.output
        output = aligned_copy(np.zeros(shape, dtype))
        arguments = [tvm_ffi.from_dlpack(array) for array in (*arrays, output)]
        yield partial(run, *arguments), output
