"""What a model takes and gives, and the checks that every call passes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from graphopt.errors import InputError

ALIGNMENT = 64  # bytes: a cache line
HOST_DEVICES = (1, 3)
"""DLPack's numbers of devices whose memory the CPU reads: its own, and what CUDA has pinned."""


class Runnable(Protocol):
    """Anything that computes named outputs from named inputs."""

    def run(self, feeds: Mapping[str, Any]) -> dict[str, np.ndarray]: ...


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: sizes that are text are free, and equal text means equal size."""

    name: str
    dtype: str
    shape: tuple[int | str, ...] | None

    @cached_property
    def numpy_dtype(self) -> np.dtype[Any]:
        if self.dtype == "string":
            return np.dtype(object)
        try:
            return np.dtype(self.dtype)
        except TypeError:
            import ml_dtypes

            return np.dtype(getattr(ml_dtypes, self.dtype))

    def __str__(self) -> str:
        shape = "*" if self.shape is None else ", ".join(map(str, self.shape))
        return f"{self.name}: {self.dtype}[{shape}]"


@dataclass(frozen=True)
class Signature:
    """The inputs and outputs of a model, in order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def bind(self, feeds: Mapping[str, Any]) -> list[np.ndarray]:
        """Copies of the arrays of `feeds` in input order, contiguous, aligned and writable.

        Raises:
            InputError: a name, dtype, rank or size does not fit; says which and what would.
        """
        given = self.ordered(feeds)
        arrays = [on_host(spec, array) for spec, array in zip(self.inputs, given)]
        self.check(arrays)
        return [aligned_copy(array) for array in arrays]

    def ordered(self, feeds: Mapping[str, Any]) -> list[Any]:
        """What `feeds` holds, in input order.

        Raises:
            InputError: a name is missing or unknown.
        """
        if not isinstance(feeds, Mapping):
            raise InputError(f"give a dict of an array per input name, not {type(feeds).__name__}")
        if len(feeds) != len(self.inputs) or any(spec.name not in feeds for spec in self.inputs):
            self._complain_of_names(feeds)
        return [feeds[spec.name] for spec in self.inputs]

    def check(self, arrays: Sequence[Any]) -> None:
        """See that arrays, in input order, fit; they need no more than a shape and a dtype.

        Raises:
            InputError: a dtype, rank or size does not fit; says which and what would.
        """
        sizes: dict[str, tuple[int, str]] = {}
        for spec, array in zip(self.inputs, arrays):
            _check(spec, array, sizes)
        for spec, array in zip(self.inputs, arrays):
            _check_sums(spec, array, sizes)

    def _complain_of_names(self, feeds: Mapping[str, Any]) -> None:
        wanted = [spec.name for spec in self.inputs]
        missing = [name for name in wanted if name not in feeds]
        extra = [name for name in feeds if name not in wanted]
        parts = []
        if missing:
            parts.append(f"missing input{_s(missing)} {', '.join(map(repr, missing))}")
        if extra:
            parts.append(f"unknown input{_s(extra)} {', '.join(map(repr, extra))}")
        raise InputError(f"{'; '.join(parts)}; the model takes {', '.join(map(repr, wanted))}")


def on_host(spec: TensorSpec, given: Any) -> np.ndarray:
    """What was given for an input, as an array; not copied if it is one or speaks DLPack.

    Raises:
        InputError: it is on a device, or cannot be read.
    """
    if isinstance(given, np.ndarray):
        return given
    if not hasattr(given, "__dlpack_device__"):
        try:
            return np.asarray(given)
        except ValueError:
            reason = f"input {spec.name!r}: its rows differ in length"
            raise InputError(f"{reason}; the model takes {spec}") from None
    try:
        if given.__dlpack_device__()[0] in HOST_DEVICES:
            return np.from_dlpack(given)
        raise InputError(
            f"input {spec.name!r} is on a GPU, the model runs on the CPU; copy it there first"
        )
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"input {spec.name!r} cannot be read through DLPack: {reason}") from None


def _check(spec: TensorSpec, array: Any, sizes: dict[str, tuple[int, str]]) -> None:
    if array.dtype != spec.numpy_dtype:
        raise InputError(
            f"input {spec.name!r} is {array.dtype}, the model takes {spec.dtype}; "
            f"convert it with .astype({spec.dtype!r})"
        )
    if spec.shape is None:
        return
    if len(array.shape) != len(spec.shape):
        raise InputError(f"input {spec.name!r} has shape {array.shape}, expected {spec}")
    for axis, (size, declared) in enumerate(zip(array.shape, spec.shape)):
        _check_size(spec, axis, size, declared, sizes)


def _check_size(
    spec: TensorSpec, axis: int, size: int, declared: int | str, sizes: dict[str, tuple[int, str]]
) -> None:
    if isinstance(declared, int):
        if size != declared:
            raise InputError(f"input {spec.name!r} has {size} on axis {axis}, expected {declared}")
        return
    known = sizes.setdefault(declared, (size, spec.name))
    if size != known[0]:
        advice = "; 1 is not broadcast: repeat the array, or declare the size as 1 in the model"
        raise InputError(
            f"input {spec.name!r} has {size} on axis {axis} where input {known[1]!r} has {known[0]}"
            f"; both are {declared!r} and must agree{advice if 1 in (size, known[0]) else ''}"
        )


def _check_sums(spec: TensorSpec, array: Any, sizes: dict[str, tuple[int, str]]) -> None:
    """See that sizes such as `2*n + 1` are what they say, where `n` is known."""
    for axis, (size, declared) in enumerate(zip(array.shape, spec.shape or ())):
        expected = _sum(declared, sizes) if isinstance(declared, str) else size
        if expected not in (None, size):
            raise InputError(
                f"input {spec.name!r} has {size} on axis {axis}, expected {expected}: "
                f"it is {declared!r} by the sizes of other inputs"
            )


def _sum(text: str, sizes: dict[str, tuple[int, str]]) -> int | None:
    """The value of a sum of products of known sizes and numbers, None of any other text."""
    total = 0
    for term in text.split(" + "):
        product = 1
        for factor in term.split("*"):
            number = re.fullmatch(r"-?[0-9]{1,18}", factor)
            if number is None and factor not in sizes:
                return None
            product *= int(factor) if number else sizes[factor][0]
        total += product
    return total


def aligned_copy(array: np.ndarray) -> np.ndarray:
    """A writable C-contiguous copy that starts at a multiple of `ALIGNMENT` bytes.

    Of text, which only ONNX Runtime reads, an ordinary copy.
    """
    if array.dtype.hasobject:
        return np.array(array, order="C")
    copy = aligned_empty(array.nbytes).view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def aligned_empty(nbytes: int) -> np.ndarray:
    """Room for `nbytes` bytes that starts at a multiple of `ALIGNMENT`."""
    room = np.empty(nbytes + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    return room[start : start + nbytes]


def _s(items: Sequence[Any]) -> str:
    return "s" if len(items) != 1 else ""
