"""Straight-line programs for a GPU: one host function that launches the kernels.

As on a CPU (see `relax/straight.py`) two functions take the place of `main`, but everything that
lies on the device is given by its address, so that a call costs no tensor objects and allocates
nothing:

    graphopt_run(dims, addresses)
    graphopt_plan(dims, plan)

`dims` (int64) holds the dims of all inputs, one after another. `addresses` (int64) holds those of
the weights, the inputs, the outputs and the workspace; both arrays are the host's. `graphopt_plan`
checks the dims, which `graphopt_run` does not do again.

    graphopt_profile(dims, addresses, events)

does what `graphopt_run` does, and records CUDA events before the first kernel and after each.
`events` (int64) holds the handle of the stream, then those of the events.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import tirx

from graphopt.targets.relax.direct import CUDA, DirectKernel, on_device
from graphopt.targets.relax.primfunc import int64, sequence
from graphopt.targets.relax.reader import Reader, Root, read
from graphopt.targets.relax.straight import (
    PLAN,
    PROFILE,
    RUN,
    Writer,
    buffer_of,
    function_of,
    require,
)


@dataclass(frozen=True)
class Straight:
    """A program without control flow.

    Attributes:
        module: the kernels, `graphopt_run` and `graphopt_plan`.
        embedded: small constants, whose addresses follow those of the other weights.
        calls: for each kernel call its symbol and the variable of `main` that it computes.
    """

    module: tvm.IRModule
    embedded: tuple[np.ndarray, ...]
    calls: tuple[tuple[str, str], ...]


def straighten(module: tvm.IRModule) -> Straight | None:
    """The program of `module` (fused and scheduled) as one function; None if it is not straight."""
    reader = read(module)
    if reader is None:
        return None
    kernels = {
        name.name_hint: DirectKernel(name.name_hint, kernel)
        for name, kernel in module.functions.items()
        if isinstance(kernel, tirx.PrimFunc)
    }
    embedded = tuple(constant.value.numpy() for constant in reader.embedded)
    calls = tuple((call.symbol, call.variable) for call in reader.calls)
    launches = {kernel.name: kernel.function for kernel in kernels.values()}
    functions = _DeviceWriter(reader, kernels).functions()
    return Straight(tvm.IRModule({**launches, **functions}), embedded, calls)


class _DeviceWriter(Writer):
    """The functions that take the place of `main` on a GPU."""

    def __init__(self, program: Reader, kernels: Mapping[str, DirectKernel]) -> None:
        super().__init__(program, kernels)
        weights = program.weights + len(program.embedded)
        given = [tensor.root for tensor in (*program.inputs, *program.outputs)]
        self._places = {root: weights + k for k, root in enumerate(given)}
        self._room = weights + len(given)
        self._addresses = buffer_of((int64(self._room + 1),), "int64", "addresses")
        self._given_dims = [
            (k, axis, dim)
            for k, tensor in enumerate(program.inputs)
            for axis, dim in enumerate(tensor.type.shape.values)
        ]
        self._dims = buffer_of((int64(max(1, len(self._given_dims))),), "int64", "dims")

    def address(self, root: Root) -> Any:
        if root.slot is not None:
            return self._addresses[int64(self._room)] + self.scalar(self.offsets[root.slot])
        place = root.weight if root.weight is not None else self._places[root]
        return self._addresses[int64(place)]

    def functions(self) -> dict[str, tirx.PrimFunc]:
        """`graphopt_run`, `graphopt_plan` and `graphopt_profile`."""
        functions = {RUN: self._run(), PLAN: self._plan(), PROFILE: self._profile()}
        return {
            name: function.with_attr("tirx.is_host_func", True)
            for name, function in functions.items()
        }

    def _run(self) -> tirx.PrimFunc:
        return self._running(
            RUN, [], [statement for call in self.program.calls for statement in self.called(call)]
        )

    def _profile(self) -> tirx.PrimFunc:
        count = 2 + len(self.program.calls)
        events = buffer_of((int64(count),), "int64", "events")
        body = [_record(events, 1)]
        for k, call in enumerate(self.program.calls):
            body += [*self.called(call), _record(events, k + 2)]
        return self._running(PROFILE, [events], body)

    def _running(self, name: str, more: list[Any], launches: list[Any]) -> tirx.PrimFunc:
        """A function that takes what `graphopt_run` takes and `more`."""
        body = on_device(sequence([*self.scalars, *launches]), CUDA)
        params = [self._dims, self._addresses, *more]
        return function_of(name, params, [*self._sizes(), body])

    def _sizes(self) -> list[Any]:
        """The statements that read the sizes of a call from `dims`."""
        positions = {(k, axis): at for at, (k, axis, _) in enumerate(self._given_dims)}
        return [
            tirx.Bind(size, self._dims[int64(positions[place])])
            for size, place in self.program.sizes.items()
        ]

    def _plan(self) -> tirx.PrimFunc:
        values = [self.needed, *self.output_dims()]
        plan = buffer_of((int64(len(values)),), "int64", "plan")
        checks = [
            require(self._dims[int64(at)] == int64(dim), f"input {k}: axis {axis} does not fit")
            for at, (k, axis, dim) in enumerate(self._given_dims)
        ]
        stores = [
            tirx.BufferStore(plan, int64(value), [int64(k)]) for k, value in enumerate(values)
        ]
        return function_of(PLAN, [self._dims, plan], [*self._sizes(), *checks, *stores])


def _record(events: Any, place: int) -> Any:
    record = tirx.call_extern("int32", "cudaEventRecord", events[int64(place)], events[int64(0)])
    return tirx.Evaluate(record)
