"""What goes wrong on a GPU, as errors of ours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graphopt.errors import ArtifactError, GraphoptError, IdError, InputError
from graphopt.serving.runtime import ID_ERROR


def check(messages: Sequence[str], broken: np.ndarray) -> None:
    """Raise what kernels reported: they cannot stop a program, so they note what was wrong.

    Args:
        messages: what each number stands for (`manifest["gpu"]["demands"]`).
        broken: int32 [messages, parts]; not 0 where some part of the data breaks a demand.

    Raises:
        IdError: an id lies outside its table.
        InputError: sizes of inputs disagree in another way.
    """
    for message in (messages[k] for k in np.flatnonzero(broken.any(axis=1)).tolist()):
        _, found, rest = message.partition(ID_ERROR)
        if found:
            raise IdError(f"an id is out of range: {rest}")
        raise InputError(message)


def translated(error: RuntimeError) -> GraphoptError:
    """An error of CUDA or of TVM's runtime as the user is to see it."""
    if is_out_of_memory(error):
        return InputError("the GPU has no room for this batch; run smaller ones")
    reason = str(error).strip().splitlines()[-1]
    found = getattr(error, "__tvm_ffi_error__", None)
    if found is not None and found.kind == "RuntimeError":  # of the program, which demands sizes
        return InputError(f"the inputs do not fit together: {reason}")
    return ArtifactError(f"the GPU failed: {reason}")


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error of CUDA or of TVM's runtime says that there is no memory left."""
    return "out of memory" in str(error).lower()
