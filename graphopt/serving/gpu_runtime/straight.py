"""Straight-line programs on a GPU: their library launches all kernels in one call."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice, pairwise
from typing import Any

import numpy as np

from graphopt.errors import GraphoptError, InputError
from graphopt.serving.gpu_runtime import cuda, tensors
from graphopt.serving.gpu_runtime.failures import check, translated
from graphopt.serving.gpu_runtime.inputs import DeviceArray, taken
from graphopt.serving.gpu_runtime.lane import Given, Lane, Plan, Region
from graphopt.serving.gpu_runtime.producers import Framework
from graphopt.serving.gpu_runtime.weights import Weights, aligned, place
from graphopt.serving.runtime import Inputs, ffi
from graphopt.serving.signature import Signature, TensorSpec

_PLANS = 4096  # plans kept, one for each combination of shapes met
_WARM_UP = 2  # calls, after which there is a graph


def _pool(inputs: Sequence[Given], stream: int, *, waits: bool) -> Framework | None:
    """A framework that gave inputs and whose pool results may come from.

    Its memory is for work that its current stream is given from now on. So it is for what `stream`
    does once that has waited for inputs, if nothing comes back before the host has waited, or if
    the two streams are one.
    """
    found = (given.framework for given in inputs if isinstance(given, DeviceArray))
    pool = next((f for f in found if f is not None and f.allocates), None)
    return pool if pool is not None and (waits or pool.stream() == stream) else None


class StraightProgram:
    """Callable from any thread; each call has a lane for itself.

    Attributes:
        weights: where they lie.
        refusal: why a call is no CUDA graph; None if it is one or CUDA was not asked yet.
    """

    def __init__(
        self,
        module: Any,
        arrays: Sequence[np.ndarray],
        signature: Signature,
        messages: Sequence[str],
        share: float,
        decisions: Sequence[str] = (),
    ) -> None:
        """Copy the weights to the GPU.

        Args:
            messages: what the numbers of the last output stand for.
            share: of the GPU's free memory, how much weights may take.
            decisions: nodes for which the host waits for data during a call.

        Raises:
            ArtifactError: there is no room for them.
        """
        self._module = module  # kept alive
        self._run, self._plan = module["graphopt_run"], module["graphopt_plan"]
        self._signature, self._messages = signature, list(messages)
        self._outputs = list(signature.outputs)
        if messages:
            self._outputs.append(TensorSpec("broken demands", "int32", (len(messages), "parts")))
        self.weights: Weights = place(arrays, share)
        self.refusal = f"data decides what runs ({', '.join(decisions)})" if decisions else None
        self._plans: dict[Any, Plan] = {}
        self._lanes: list[Lane] = []  # the ones at rest

    def __call__(self, inputs: Inputs) -> list[np.ndarray]:
        """Run on arrays in signature order, which may lie on the GPU.

        Raises:
            IdError: an id lies outside its table.
            InputError: the arrays do not fit, or the GPU has no room for this batch.
            ArtifactError: the GPU failed.
        """
        with self._lane() as lane:
            stream = lane.stream.handle
            plan = self._start(lane, inputs, stream, fetch=0)
            cuda.synchronize(stream)
            results = [lane.result(plan, k) for k in range(len(self._outputs))]
        if self._messages:
            check(self._messages, results.pop())
        return results

    def on_device(
        self, inputs: Inputs, stream: int | None = None, out: Sequence[Any] | None = None
    ) -> list[Any]:
        """As `__call__`, with results that stay on the GPU: tensors that speak DLPack.

        Args:
            stream: handle of the stream to work on. Then the results are ready for what is given
                to it later; else they are ready at once. The host waits for a program that has to
                report broken demands, and where there is no stream.
            out: arrays on the GPU to write the results to.
        """
        reported = None
        with self._lane() as lane:
            on = lane.stream.handle if stream is None else stream
            plan, given = self._prepared(inputs, on)
            targets = [] if out is None else self._targets(plan, out, on)
            pool = _pool(given, on, waits=stream is None) if out is None else None
            results = [] if pool is None else self._pooled(plan, pool)  # before it is waited for
            flags = len(self._signature.outputs) if self._messages else None
            lane.enter(on)
            lane.run(plan, given, on, targets, fetch=flags)
            if pool is not None:
                for region, result in zip(plan.outputs, results):
                    lane.copy_out(region, result.data_ptr(), on)
            else:
                results = self._copies(lane, plan, on) if out is None else list(out)
            if self._messages or stream is None:
                cuda.synchronize(on)
            else:
                lane.leave(on)
            if self._messages:
                reported = lane.result(plan, len(results))
        if reported is not None:
            check(self._messages, reported)
        return results

    def device_times(self, inputs: Inputs, calls: int) -> np.ndarray:
        """Microseconds of the kernels in each of `calls` runs, inputs and outputs on the GPU."""
        with self._lane() as lane:
            stream = lane.stream.handle
            plan = self._start(lane, inputs, stream, in_place=False)
            for _ in range(_WARM_UP):
                lane.compute(plan, stream)
            return np.array(cuda.times(partial(lane.compute, plan, stream), stream, calls))

    def profile(self, inputs: Inputs, calls: int) -> np.ndarray:
        """Nanoseconds of each of the program's kernel calls, during one run without a graph.

        Args:
            calls: how many kernel calls the program has.
        """
        with self._lane() as lane:
            stream = lane.stream.handle
            plan = self._start(lane, inputs, stream, in_place=False)
            events = [cuda.Event() for _ in range(calls + 1)]
            handles = np.array([stream, *(event.handle for event in events)], np.int64)
            lane.enqueue(plan, stream, self._module["graphopt_profile"], ffi().from_dlpack(handles))
            cuda.synchronize(stream)
            pairs = pairwise(events)
            return np.array([1e3 * end.microseconds_since(start) for start, end in pairs])

    # ----

    @contextmanager
    def _lane(self) -> Iterator[Lane]:
        """A lane that nobody else has; it comes back unless something failed half way."""
        lane = None
        try:
            try:
                lane = self._lanes.pop()
            except IndexError:
                lane = Lane(self._run, self.weights.addresses, self.refusal)
            yield lane
        except GraphoptError:
            raise
        except RuntimeError as error:
            lane = None
            raise translated(error) from None
        except BaseException:
            lane = None
            raise
        finally:
            if lane is not None:
                self.refusal = lane.refusal or self.refusal
                self._lanes.append(lane)

    def _start(self, lane: Lane, inputs: Inputs, stream: int, **options: Any) -> Plan:
        """Run on `inputs`, with `stream`, up to outputs in the arena of the lane (`Lane.run`)."""
        plan, given = self._prepared(inputs, stream)
        lane.enter(stream)
        lane.run(plan, given, stream, **options)
        return plan

    def _prepared(self, inputs: Inputs, stream: int) -> tuple[Plan, list[Given]]:
        """Inputs where they lie, and the plan for their shapes."""
        given = [taken(spec, x, stream) for spec, x in zip(self._signature.inputs, inputs)]
        key = tuple([(array.shape, array.dtype) for array in given])
        return self._plans.get(key) or self._planned(key, given), given

    def _targets(self, plan: Plan, out: Sequence[Any], stream: int) -> list[DeviceArray]:
        """Arrays on the GPU that the outputs fit.

        Raises:
            InputError: one lies elsewhere or has another shape or dtype.
        """
        found = []
        for spec, region, given in zip(self._signature.outputs, plan.outputs, out):
            target = taken(spec, given, stream, "output")
            if not isinstance(target, DeviceArray):
                raise InputError(f"output {spec.name!r} is on the host; `run` returns it there")
            if target.shape != region.shape or target.dtype != region.dtype:
                raise InputError(
                    f"output {spec.name!r} is {spec.dtype}{list(region.shape)}, "
                    f"room for {target.dtype}{list(target.shape)} was given"
                )
            found.append(target)
        return found

    def _pooled(self, plan: Plan, pool: Framework) -> list[Any]:
        """Room for the outputs."""
        specs = self._signature.outputs
        return [pool.allocate(r.shape, r.dtype) for r, _ in zip(plan.outputs, specs)]

    def _copies(self, lane: Lane, plan: Plan, stream: int) -> list[Any]:
        """The outputs in memory of their own."""
        start, memory = plan.input_bytes, tensors.block(plan.output_bytes)
        if plan.output_bytes:
            source = lane.arena + start
            cuda.copy(memory.data_ptr(), source, plan.output_bytes, stream)
        return [
            tensors.view(memory, region.offset - start, region.shape, spec.dtype)
            for region, spec in zip(plan.outputs, self._signature.outputs)
        ]

    def _planned(self, key: Any, given: Sequence[Given]) -> Plan:
        self._signature.check(given)
        dims = np.array([size for array in given for size in array.shape] or [0], np.int64)
        ranks = [len(spec.shape or ()) for spec in self._outputs]
        found = np.empty(1 + sum(ranks), np.int64)
        passed = ffi().from_dlpack(dims)
        try:
            self._plan(passed, ffi().from_dlpack(found))
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise InputError(f"sizes of inputs do not fit together: {reason}") from None
        workspace, *flat = found.tolist()
        sizes = iter(flat)
        inputs, end = _regions([array.shape for array in given], self._signature.inputs, 0)
        shapes = [tuple(islice(sizes, rank)) for rank in ranks]
        outputs, total = _regions(shapes, self._outputs, end)
        plan = Plan(passed, inputs, outputs, end, total - end, total, total + workspace)
        if len(self._plans) >= _PLANS:
            self._plans.clear()
        self._plans[key] = plan
        return plan


def _regions(
    shapes: Sequence[tuple[int, ...]], specs: Sequence[TensorSpec], start: int
) -> tuple[tuple[Region, ...], int]:
    """Places for tensors one after another from `start`, and where they end."""
    regions = []
    for shape, spec in zip(shapes, specs):
        nbytes = math.prod(shape) * spec.numpy_dtype.itemsize
        regions.append(Region(start, tuple(shape), spec.numpy_dtype, nbytes))
        start += aligned(nbytes)
    return tuple(regions), start
