"""Programs with loops or sizes known only at run time, in Relax's virtual machine on a GPU.

They copy sizes to the host while they run, so nothing of them can be captured. All of them work on
the default stream: the machine's pool of memory takes what one thread has given back for the next
one, which is right as long as the GPU works in the same order.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from graphopt.errors import ArtifactError
from graphopt.serving.gpu_runtime import cuda, tensors
from graphopt.serving.gpu_runtime.connection import CPU, CUDA
from graphopt.serving.gpu_runtime.failures import check, is_out_of_memory, translated
from graphopt.serving.gpu_runtime.inputs import DeviceArray, follow, taken
from graphopt.serving.gpu_runtime.lane import ALIGNMENT
from graphopt.serving.gpu_runtime.weights import Weights, no_room
from graphopt.serving.runtime import Inputs, ffi, passed
from graphopt.serving.signature import Signature, TensorSpec

_ALLOCATOR = 2  # pooled
_STREAM = 0


class MachineProgram:
    """Callable from any thread. Weights and code are shared; each thread has a machine of its own.

    Attributes:
        weights: where they lie.
        refusal: why there are no CUDA graphs.
    """

    refusal = "some sizes are known only at run time"

    def __init__(
        self,
        module: Any,
        arrays: Sequence[np.ndarray],
        signature: Signature,
        messages: Sequence[str],
    ) -> None:
        """Copy the weights to the GPU.

        Args:
            messages: what the numbers of the last output stand for.

        Raises:
            ArtifactError: there is no room for them.
        """
        self._allocate = ffi().get_global_func("runtime.TVMTensorAllocWithScope")
        self._module, self._signature, self._messages = module, signature, list(messages)
        self._local = threading.local()
        nbytes = sum(array.nbytes for array in arrays)
        try:
            self._weights = [self._to_device(array) for array in arrays]
        except RuntimeError as error:
            raise (no_room(nbytes) if is_out_of_memory(error) else translated(error)) from None
        addresses = tuple(tensor.data_ptr() for tensor in self._weights)
        self.weights = Weights(addresses, (), nbytes, 0)
        self._main()

    def __call__(self, inputs: Inputs) -> list[np.ndarray]:
        """As `StraightProgram.__call__`."""
        try:
            results = [_to_host(tensor) for tensor in self._outputs(inputs)]
        except RuntimeError as error:
            raise translated(error) from None
        if self._messages:
            check(self._messages, results.pop())
        return results

    def on_device(
        self, inputs: Inputs, stream: int | None = None, out: Sequence[Any] | None = None
    ) -> list[Any]:
        """As `StraightProgram.on_device`; the results are always ready for the host.

        Raises:
            ArtifactError: `out` is given: shapes of results are not known before.
        """
        if out is not None:
            raise ArtifactError("sizes of outputs are known only at run time: leave `out` away")
        try:
            outputs = self._outputs(inputs)
            reported = [_to_host(outputs.pop())] if self._messages else []
            results = [_copy(tensor) for tensor in outputs]
            cuda.synchronize(_STREAM)
        except RuntimeError as error:
            raise translated(error) from None
        if reported:
            check(self._messages, reported[0])
        return results

    def device_times(self, inputs: Inputs, calls: int) -> np.ndarray:
        """As `StraightProgram.device_times`; what the host does between kernels counts too."""
        try:
            given = self._taken(inputs)
            run = partial(self._main(), *given, *self._weights)
            run()
            return np.array(cuda.times(run, _STREAM, calls))
        except RuntimeError as error:
            raise translated(error) from None

    # ----

    def _outputs(self, inputs: Inputs) -> list[Any]:
        return list(self._main()(*self._taken(inputs), *self._weights))

    def _taken(self, inputs: Inputs) -> list[Any]:
        given = [taken(spec, x, _STREAM) for spec, x in zip(self._signature.inputs, inputs)]
        self._signature.check(given)
        resident = [array for array in given if isinstance(array, DeviceArray)]
        follow(resident, _STREAM, cuda.Event())
        return [
            self._to_device(array)
            if isinstance(array, np.ndarray)
            else ffi().from_dlpack(array.owner)
            if array.address % ALIGNMENT == 0
            else _copy(ffi().from_dlpack(array.owner))
            for array in given
        ]

    def _main(self) -> Any:
        main = getattr(self._local, "main", None)
        if main is None:
            machine = self._module["vm_load_executable"]()
            # Sizes are computed on the CPU.
            machine["vm_initialization"](CUDA, 0, _ALLOCATOR, CPU, 0, _ALLOCATOR)
            self._local.machine = machine
            main = self._local.main = machine["main"]
        return main

    def _to_device(self, array: np.ndarray) -> Any:
        (array,) = passed([np.asarray(array, order="C")])
        shape, dtype = ffi().Shape(array.shape), ffi().dtype(str(array.dtype))
        target = self._allocate(shape, dtype, ffi().device("cuda", 0), None)
        cuda.copy(target.data_ptr(), array.ctypes.data, array.nbytes, _STREAM)
        cuda.synchronize(_STREAM)  # `array` may go
        return target


def _copy(tensor: Any) -> Any:
    """A tensor in memory of its own: that of the machine's pool may be written to again."""
    nbytes = tensor.numel() * tensor.dtype.itemsize
    memory = tensors.block(nbytes)
    cuda.copy(memory.data_ptr(), tensor.data_ptr(), nbytes, _STREAM)
    return tensors.view(memory, 0, tuple(tensor.shape), str(tensor.dtype))


def _to_host(tensor: Any) -> np.ndarray:
    dtype = TensorSpec("", str(tensor.dtype), None).numpy_dtype
    result = np.empty(tuple(tensor.shape), dtype)
    cuda.copy(result.ctypes.data, tensor.data_ptr(), result.nbytes, _STREAM)
    cuda.synchronize(_STREAM)
    return result
