"""A stream with buffers of its own: what one call of a straight-line program needs.

The inputs of a call lie one after another in a pinned staging buffer and in an arena on the GPU, so
that one copy brings them over; so do the outputs. Between them and the end of the arena is the
workspace. The addresses of a batch shape therefore never change while the buffers live, and its
launches can be captured as a CUDA graph: from then on a call is one launch.
"""

from __future__ import annotations

import ctypes
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from graphopt.gpu_runtime import cuda
from graphopt.gpu_runtime.inputs import DeviceArray, follow
from graphopt.runtime import ffi

SHAPES = 32
"""Batch shapes whose graphs a lane keeps; the one not used for longest goes."""
GRAPH_BYTES = 64 << 20
"""Calls that need more memory are not captured: launching is no part of their time to speak of."""
_STEP = 64 << 20  # buffers grow to powers of 2 up to here, and then by this

Launch = Callable[..., None]
"""`graphopt_run` and the like: launches the kernels on the current stream."""


@dataclass(frozen=True)
class Region:
    """Where a tensor lies, in bytes from the start of its buffer."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    nbytes: int


@dataclass(frozen=True, eq=False)
class Plan:
    """What calls with inputs of certain sizes need.

    Attributes:
        dims: of all inputs, int64, as `graphopt_run` takes them.
        inputs, outputs: places in the arena and in the staging buffer.
        input_bytes: where the outputs begin.
        output_bytes: how many bytes they take together.
        workspace: where it begins in the arena.
        nbytes: size of the arena.
    """

    dims: Any
    inputs: tuple[Region, ...]
    outputs: tuple[Region, ...]
    input_bytes: int
    output_bytes: int
    workspace: int
    nbytes: int


@dataclass(eq=False)
class _Bound:
    """A plan at the addresses of a lane.

    Attributes:
        addresses: as `graphopt_run` takes them.
        inputs, outputs: views of the staging buffer.
        graphs: of the kernels alone (False), and of the copies too (True).
        warm: whether it ran once without a graph, so that all code is on the GPU.
    """

    addresses: Any
    inputs: list[np.ndarray]
    outputs: list[np.ndarray]
    graphs: dict[bool, cuda.Graph] = field(default_factory=dict)
    warm: bool = False


class Lane:
    """Belongs to one caller at a time.

    Attributes:
        stream: the lane's own. Callers may use another.
        refusal: why CUDA would not capture; None if it did or was not asked yet.
    """

    def __init__(self, launch: Launch, weights: Sequence[int]) -> None:
        self.stream = cuda.Stream()
        self._done, self._left = cuda.Event(), False
        self.refusal: str | None = None
        self._launch, self._weights = launch, weights
        self._arena, self._staging = cuda.DeviceMemory(0), cuda.HostMemory(0)
        self._bound: OrderedDict[Plan, _Bound] = OrderedDict()
        self._gpu = ffi().device("cuda", 0)

    def enter(self, stream: int) -> None:
        """Let `stream` begin after what the lane was left to do."""
        if self._left:
            cuda.wait(stream, self._done)

    def leave(self, stream: int) -> None:
        """Say that the lane is in use until `stream` has done what it was given."""
        self._done.record(stream)
        self._left = True

    def run(
        self,
        plan: Plan,
        inputs: Sequence[np.ndarray | DeviceArray],
        stream: int,
        *,
        fetch: bool = False,
    ) -> None:
        """Run on inputs that fit `plan`, up to outputs in the arena.

        Args:
            fetch: copy the outputs on to the staging buffer.

        Raises:
            OutOfMemoryError: the GPU or the host has no room for this batch.
        """
        bound = self._bind(plan)
        on_device = [given for given in inputs if isinstance(given, DeviceArray)]
        copies = fetch and not on_device  # then both copies are part of a graph
        if len(on_device) < len(inputs):
            self._rest()
            for view, given in zip(bound.inputs, inputs):
                if not isinstance(given, DeviceArray):
                    view[...] = given
            if not copies:
                self._bring(plan, stream)
        if on_device:
            follow(on_device, stream)
            for region, given in zip(plan.inputs, inputs):
                if isinstance(given, DeviceArray) and given.nbytes:
                    cuda.copy(self.address(region), given.address, given.nbytes, stream)
        self.compute(plan, stream, copies=copies)
        if fetch and not copies:
            self.fetch(plan, stream)

    def compute(self, plan: Plan, stream: int, *, copies: bool = False) -> None:
        """Launch the kernels, which read the inputs in the arena and write the outputs there.

        Args:
            copies: bring the inputs from the staging buffer first, and the outputs to it after.
        """
        bound = self._bind(plan)
        if plan.nbytes > GRAPH_BYTES or self.refusal is not None:
            self._compute(plan, stream, copies)
        elif not bound.warm:
            self._compute(plan, stream, copies)
            bound.warm = True
        else:
            graph = bound.graphs.get(copies) or self._capture(plan, bound, copies)
            if graph is None:
                self._compute(plan, stream, copies)
            else:
                graph.launch(stream)

    def enqueue(self, plan: Plan, stream: int, launch: Launch, *more: Any) -> None:
        """Call `graphopt_run`, or another function that takes its arguments and `more`."""
        with ffi().use_raw_stream(self._gpu, stream):
            launch(plan.dims, self._bind(plan).addresses, *more)

    def fetch(self, plan: Plan, stream: int, first: int = 0) -> None:
        """Copy the outputs from number `first` on to the staging buffer, in one copy."""
        end = plan.input_bytes + plan.output_bytes
        start = plan.outputs[first].offset if plan.outputs else end
        if start < end:
            cuda.copy(self._staging.handle + start, self._arena.handle + start, end - start, stream)

    def result(self, plan: Plan, number: int) -> np.ndarray:
        """A copy of an output in the staging buffer."""
        return self._bind(plan).outputs[number].copy()

    @property
    def arena(self) -> int:
        """Where the arena is on the GPU."""
        return self._arena.handle

    def address(self, region: Region) -> int:
        """Where a region is on the GPU."""
        return self._arena.handle + region.offset

    # ----

    def _bind(self, plan: Plan) -> _Bound:
        bound = self._bound.get(plan)
        if bound is not None:
            self._bound.move_to_end(plan)
            return bound
        self._reserve(plan)
        if len(self._bound) >= SHAPES:
            self._rest()
            self._bound.popitem(last=False)
        regions = (*plan.inputs, *plan.outputs)
        places = [self.address(region) for region in regions]
        places.append(self._arena.handle + plan.workspace)
        addresses = ffi().from_dlpack(np.array([*self._weights, *places], np.int64))
        views = [self._view(region) for region in regions]
        count = len(plan.inputs)
        self._bound[plan] = bound = _Bound(addresses, views[:count], views[count:])
        return bound

    def _view(self, region: Region) -> np.ndarray:
        raw = (ctypes.c_uint8 * region.nbytes).from_address(self._staging.handle + region.offset)
        return np.ctypeslib.as_array(raw).view(region.dtype).reshape(region.shape)

    def _reserve(self, plan: Plan) -> None:
        """Let the buffers be large enough. All that was bound to smaller ones goes."""
        staged = plan.input_bytes + plan.output_bytes
        if plan.nbytes <= self._arena.nbytes and staged <= self._staging.nbytes:
            return
        self._rest()
        self._bound.clear()
        arena, staging = self._arena.nbytes, self._staging.nbytes
        self._arena, self._staging = cuda.DeviceMemory(0), cuda.HostMemory(0)  # free before taking
        self._arena = cuda.DeviceMemory(max(arena, _rounded(plan.nbytes)))
        self._staging = cuda.HostMemory(max(staging, _rounded(staged)))

    def _rest(self) -> None:
        """Wait until the lane is not in use."""
        if self._left:
            self._done.synchronize()
            self._left = False

    def _bring(self, plan: Plan, stream: int) -> None:
        if plan.input_bytes:
            cuda.copy(self._arena.handle, self._staging.handle, plan.input_bytes, stream)

    def _compute(self, plan: Plan, stream: int, copies: bool) -> None:
        if copies:
            self._bring(plan, stream)
        self.enqueue(plan, stream, self._launch)
        if copies:
            self.fetch(plan, stream)

    def _capture(self, plan: Plan, bound: _Bound, copies: bool) -> cuda.Graph | None:
        stream = self.stream.handle
        try:
            with cuda.capturing(stream) as graphs:
                self._compute(plan, stream, copies)
        except RuntimeError as error:
            self.refusal = str(error).strip().splitlines()[-1]
            return None
        (bound.graphs[copies],) = graphs
        return bound.graphs[copies]


def _rounded(nbytes: int) -> int:
    if nbytes > _STEP:
        return -(-nbytes // _STEP) * _STEP
    return 1 << max(nbytes - 1, 1).bit_length()
