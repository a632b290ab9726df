"""A stream with buffers of its own: what one call of a straight-line program needs.

The inputs of a call lie one after another in a pinned staging buffer and in an arena on the GPU, so
that one copy brings them over; so do the outputs. Between them and the end of the arena is the
workspace. The addresses of a batch shape therefore never change while the buffers live, and its
launches can be captured as a CUDA graph: from then on a call is one launch.

Arrays of the caller's that lie on the GPU are copied to the arena, one by one, the first time. Who
gives the same memory again, as frameworks with a pool do, gets a graph that works in place.
"""

from __future__ import annotations

import ctypes
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

import numpy as np

from graphopt.serving.gpu_runtime import cuda
from graphopt.serving.gpu_runtime.inputs import DeviceArray, follow
from graphopt.serving.runtime import ffi

SHAPES = 32
"""Batch shapes, each at some addresses, whose graphs a lane keeps; the one not used for longest
goes. As many that were met once are remembered."""
GRAPH_BYTES = 64 << 20
"""Calls that need more memory are not captured: launching is no part of their time to speak of."""
GRAPH_NODES = 1 << 12
"""So are calls with more launches and copies, as of long loops: a graph takes time and memory for
each of them, and the next sequence has another length."""
ALIGNMENT = 64  # bytes; what kernels take every tensor to start at a multiple of
_STEP = 64 << 20  # buffers grow to powers of 2 up to here, and then by this

Given = np.ndarray | DeviceArray
Places = tuple[int, ...]
"""Addresses of inputs, then of outputs; 0 for what lies in the arena, and nothing if all do."""
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
    """A plan at certain addresses.

    Attributes:
        addresses: as `graphopt_run` takes them.
        places: of inputs and outputs.
        inputs, outputs: views of the staging buffer.
        graphs: of the kernels, with the copy from the staging buffer or without, and with that of
            the outputs from a certain one on to it.
    """

    addresses: Any
    places: Places
    inputs: list[np.ndarray]
    outputs: list[np.ndarray]
    graphs: dict[tuple[bool, int | None], cuda.Graph] = field(default_factory=dict)


class Lane:
    """Belongs to one caller at a time.

    Attributes:
        stream: the lane's own. Callers may use another.
        refusal: why there are no graphs; None if CUDA made some or was not asked yet.
    """

    def __init__(self, launch: Launch, weights: Sequence[int], refusal: str | None = None) -> None:
        """
        Args:
            refusal: why launches cannot be captured, where that is known.
        """
        self.stream = cuda.Stream()
        self._done, self._left = cuda.Event(), False
        self._written = cuda.Event()
        self.refusal = refusal
        self._launch, self._weights = launch, weights
        self._arena, self._staging = cuda.DeviceMemory(0), cuda.HostMemory(0)
        self._bound: OrderedDict[tuple[Plan, Places], _Bound] = OrderedDict()
        self._met: OrderedDict[tuple[Plan, Places], None] = OrderedDict()
        self._warm: set[Plan] = set()  # those that ran once, so that all their code is on the GPU
        self._long: WeakSet[Plan] = WeakSet()  # those with too many launches for a graph
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
        inputs: Sequence[Given],
        stream: int,
        targets: Sequence[DeviceArray] = (),
        *,
        fetch: int | None = None,
        in_place: bool = True,
    ) -> None:
        """Run on inputs that fit `plan`, up to outputs in the arena.

        Args:
            targets: where the first outputs are wanted, if not in the arena.
            fetch: copy the outputs from this one on to the staging buffer.
            in_place: inputs need not be in the arena after.

        Raises:
            OutOfMemoryError: the GPU or the host has no room for this batch.
        """
        resident = [given for given in inputs if isinstance(given, DeviceArray)]
        if resident or targets:
            follow((*resident, *targets), stream, self._written)
        bound = self._bind(plan, self._places(plan, inputs, targets) if in_place else ())
        places = bound.places or (0,) * (len(inputs) + len(targets))
        staged = len(resident) < len(inputs)
        if staged:
            self._rest()
            for view, given in zip(bound.inputs, inputs):
                if not isinstance(given, DeviceArray):
                    view[...] = given
        strays = [
            (region, given)
            for region, given, place in zip(plan.inputs, inputs, places)
            if not place and isinstance(given, DeviceArray) and given.nbytes
        ]
        if staged and strays:  # the one copy has to come before the others
            self._bring(plan, stream)
        for region, given in strays:
            cuda.copy(self.address(region), given.address, given.nbytes, stream)
        self._compute(plan, bound, stream, staged and not strays, fetch)
        for region, target, place in zip(plan.outputs, targets, places[len(inputs) :]):
            if not place:
                self.copy_out(region, target.address, stream)

    def compute(self, plan: Plan, stream: int) -> None:
        """Launch the kernels, which read the inputs in the arena and write the outputs there."""
        self._compute(plan, self._bind(plan), stream, False, None)

    def enqueue(self, plan: Plan, stream: int, launch: Launch, *more: Any) -> None:
        """Call `graphopt_run`, or another function that takes its arguments and `more`."""
        self._enqueue(plan, self._bind(plan), stream, launch, *more)

    def copy_out(self, region: Region, address: int, stream: int) -> None:
        """Copy what a region of the arena holds to another place on the GPU."""
        if region.nbytes:
            cuda.copy(address, self.address(region), region.nbytes, stream)

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

    def _places(
        self, plan: Plan, inputs: Sequence[Given], targets: Sequence[DeviceArray]
    ) -> Places:
        """Where to work: in place if there is no graph to be had, or one that is used again."""
        places = tuple([_usable(given) for given in (*inputs, *targets)])
        key = (plan, places)
        if key in self._bound:
            return places
        if not any(places) or _overlap(inputs, targets):
            return ()
        if self._without_graph(plan) or key in self._met:
            return places
        if len(self._met) >= SHAPES:
            self._met.popitem(last=False)
        self._met[key] = None
        return ()

    def _without_graph(self, plan: Plan) -> bool:
        return plan.nbytes > GRAPH_BYTES or self.refusal is not None or plan in self._long

    def _bind(self, plan: Plan, places: Places = ()) -> _Bound:
        key = (plan, places)
        bound = self._bound.get(key)
        if bound is not None:
            self._bound.move_to_end(key)
            return bound
        self._reserve(plan)
        if len(self._bound) >= SHAPES:
            self._rest()
            self._bound.popitem(last=False)
        regions = (*plan.inputs, *plan.outputs)
        addresses = [self.address(region) for region in regions]
        for k, place in enumerate(places):
            addresses[k] = place or addresses[k]
        addresses.append(self._arena.handle + plan.workspace)
        passed = ffi().from_dlpack(np.array([*self._weights, *addresses], np.int64))
        views = [self._view(region) for region in regions]
        count = len(plan.inputs)
        self._bound[key] = bound = _Bound(passed, places, views[:count], views[count:])
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

    def _fetch(self, plan: Plan, stream: int, first: int) -> None:
        end = plan.input_bytes + plan.output_bytes
        start = plan.outputs[first].offset if first < len(plan.outputs) else end
        if start < end:
            cuda.copy(self._staging.handle + start, self._arena.handle + start, end - start, stream)

    def _enqueue(self, plan: Plan, bound: _Bound, stream: int, launch: Launch, *more: Any) -> None:
        with ffi().use_raw_stream(self._gpu, stream):
            launch(plan.dims, bound.addresses, *more)

    def _compute(
        self, plan: Plan, bound: _Bound, stream: int, bring: bool, fetch: int | None
    ) -> None:
        """Launch the kernels, and copies from the staging buffer and to it as far as asked for."""
        graph = None
        if plan in self._warm and not self._without_graph(plan):
            graph = bound.graphs.get((bring, fetch)) or self._capture(plan, bound, bring, fetch)
        if graph is not None:
            graph.launch(stream)
            return
        self._launched(plan, bound, stream, bring, fetch)
        if len(self._warm) > SHAPES:
            self._warm.clear()
        self._warm.add(plan)

    def _launched(
        self, plan: Plan, bound: _Bound, stream: int, bring: bool, fetch: int | None
    ) -> None:
        if bring:
            self._bring(plan, stream)
        self._enqueue(plan, bound, stream, self._launch)
        if fetch is not None:
            self._fetch(plan, stream, fetch)

    def _capture(
        self, plan: Plan, bound: _Bound, bring: bool, fetch: int | None
    ) -> cuda.Graph | None:
        stream = self.stream.handle
        try:
            with cuda.capturing(stream, GRAPH_NODES) as graphs:
                self._launched(plan, bound, stream, bring, fetch)
        except RuntimeError as error:
            self.refusal = str(error).strip().splitlines()[-1]
            return None
        if not graphs:
            self._long.add(plan)
            return None
        (bound.graphs[bring, fetch],) = graphs
        return bound.graphs[bring, fetch]


def _usable(given: Given) -> int:
    """The address that kernels can work at; 0 if they cannot."""
    if isinstance(given, DeviceArray) and given.nbytes and not given.address % ALIGNMENT:
        return given.address
    return 0


def _overlap(inputs: Sequence[Given], targets: Sequence[DeviceArray]) -> bool:
    """Whether what is written to a target may be what is still to be read, or was just written."""
    arrays = [*targets, *(given for given in inputs if isinstance(given, DeviceArray))]
    return any(
        target.address < other.address + other.nbytes
        and other.address < target.address + target.nbytes
        for k, target in enumerate(targets)
        for other in arrays[k + 1 :]
    )


def _rounded(nbytes: int) -> int:
    if nbytes > _STEP:
        return -(-nbytes // _STEP) * _STEP
    return 1 << max(nbytes - 1, 1).bit_length()
