"""CUDA's runtime by ctypes: memory, copies, streams, events and graphs."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any

from graphopt.serving.gpu_runtime.connection import cudart

_OUT_OF_MEMORY = 2
_NON_BLOCKING = 1  # streams that do not wait for the default stream
_PORTABLE, _MAPPED = 1, 2  # host memory that every context can use, and that kernels can read
_ANY_DIRECTION = 4  # copies: the driver sees which side the host is
_THREAD_LOCAL = 1  # captures: what other threads do meanwhile is none of their business
_SIGNATURES = {
    "Malloc": "pz",
    "Free": "p",
    "HostAlloc": "pzu",
    "FreeHost": "p",
    "HostGetDevicePointer": "ppu",
    "MemGetInfo": "pp",
    "MemcpyAsync": "ppzip",
    "StreamCreateWithFlags": "pu",
    "StreamDestroy": "p",
    "StreamSynchronize": "p",
    "StreamWaitEvent": "ppu",
    "StreamBeginCapture": "pi",
    "StreamEndCapture": "pp",
    "GraphGetNodes": "ppp",
    "GraphInstantiate": "ppl",
    "GraphLaunch": "pp",
    "GraphDestroy": "p",
    "GraphExecDestroy": "p",
    "EventCreate": "p",
    "EventDestroy": "p",
    "EventRecord": "pp",
    "EventSynchronize": "p",
    "EventElapsedTime": "ppp",
}
_TYPES = {
    "p": ctypes.c_void_p,
    "z": ctypes.c_size_t,
    "u": ctypes.c_uint,
    "i": ctypes.c_int,
    "l": ctypes.c_ulonglong,
}


class CudaError(RuntimeError):
    """A call of CUDA's runtime failed."""


class OutOfMemoryError(CudaError):
    """There is not as much memory as was asked for."""


@lru_cache(maxsize=1)
def _functions() -> dict[str, Any]:
    library = cudart()
    functions = {}
    for name, arguments in _SIGNATURES.items():
        function = getattr(library, f"cuda{name}")
        function.argtypes, function.restype = [_TYPES[a] for a in arguments], ctypes.c_int
        functions[name] = function
    library.cudaGetErrorString.restype = ctypes.c_char_p
    return functions


def call(name: str, *arguments: Any) -> None:
    """Call `cuda<name>`.

    Raises:
        CudaError: it fails.
    """
    code = _functions()[name](*arguments)
    if code:
        library = cudart()
        library.cudaGetLastError()  # forgets the error, which later calls would report again
        kind = OutOfMemoryError if code == _OUT_OF_MEMORY else CudaError
        raise kind(library.cudaGetErrorString(code).decode())


def created(name: str, *arguments: Any) -> int:
    """What `cuda<name>` writes to its first argument."""
    result = ctypes.c_void_p()
    call(name, ctypes.byref(result), *arguments)
    return result.value or 0


def _release(name: str, handle: int) -> None:
    with suppress(CudaError):
        call(name, handle)


class _Owned:
    """Something of CUDA's that is released when the object goes.

    Nothing is released at the end of the process: the driver does that, and may be gone already.
    """

    def __init__(self, handle: int, release: str) -> None:
        self.handle = handle
        weakref.finalize(self, _release, release, handle).atexit = False


class DeviceMemory(_Owned):
    """Memory of the GPU, at address `handle`."""

    def __init__(self, nbytes: int) -> None:
        """Raises OutOfMemoryError where there is not so much."""
        self.nbytes = nbytes
        super().__init__(created("Malloc", max(nbytes, 1)), "Free")


class HostMemory(_Owned):
    """Pinned memory of the host, which kernels can read too.

    Attributes:
        device_address: where kernels see it.
    """

    def __init__(self, nbytes: int) -> None:
        """Raises OutOfMemoryError where there is not so much."""
        self.nbytes = nbytes
        super().__init__(created("HostAlloc", max(nbytes, 1), _PORTABLE | _MAPPED), "FreeHost")
        self.device_address = created("HostGetDevicePointer", self.handle, 0)


class Event(_Owned):
    """A point in the work of a stream."""

    def __init__(self) -> None:
        super().__init__(created("EventCreate"), "EventDestroy")

    def record(self, stream: int) -> None:
        """Let the event be the end of what `stream` was given so far."""
        call("EventRecord", self.handle, stream)

    def synchronize(self) -> None:
        """Wait until it has come."""
        call("EventSynchronize", self.handle)

    def microseconds_since(self, start: Event) -> float:
        """Time between two events that have come."""
        found = ctypes.c_float()
        call("EventElapsedTime", ctypes.byref(found), start.handle, self.handle)
        return 1000.0 * found.value


class Stream(_Owned):
    """A queue of work for the GPU, which does not wait for other streams."""

    def __init__(self) -> None:
        super().__init__(created("StreamCreateWithFlags", _NON_BLOCKING), "StreamDestroy")


class Graph(_Owned):
    """Work that is launched as a whole, again and again, on the same addresses."""

    def launch(self, stream: int) -> None:
        """Give it to `stream`."""
        call("GraphLaunch", self.handle, stream)


def synchronize(stream: int) -> None:
    """Wait until `stream` has done its work.

    Raises:
        CudaError: something in it failed.
    """
    call("StreamSynchronize", stream)


def wait(stream: int, event: Event) -> None:
    """Let `stream` wait for `event`, not the host."""
    call("StreamWaitEvent", stream, event.handle, 0)


def times(run: Callable[[], object], stream: int, calls: int) -> list[float]:
    """Microseconds that `stream` takes for what each of `calls` calls of `run` gives it."""
    events = [(Event(), Event()) for _ in range(calls)]
    for start, end in events:
        start.record(stream)
        run()
        end.record(stream)
    synchronize(stream)
    return [end.microseconds_since(start) for start, end in events]


def copy(target: int, source: int, nbytes: int, stream: int) -> None:
    """Copy bytes between two addresses, on either side, in the order of `stream`."""
    call("MemcpyAsync", target, source, nbytes, _ANY_DIRECTION, stream)


def free_bytes() -> int:
    """How much of the GPU's memory is free."""
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    call("MemGetInfo", ctypes.byref(free), ctypes.byref(total))
    return free.value


@contextmanager
def capturing(stream: int, most: int) -> Iterator[list[Graph]]:
    """Within, what `stream` is given is not done, but becomes the graph that is in the list after.

    Args:
        most: nodes of a graph; of more nothing is made.

    Raises:
        CudaError: it cannot be captured.
    """
    captured: list[Graph] = []
    call("StreamBeginCapture", stream, _THREAD_LOCAL)
    try:
        yield captured
    except BaseException:
        with suppress(CudaError):
            _release("GraphDestroy", _end_capture(stream))
        raise
    graph = _end_capture(stream)
    try:
        if _nodes(graph) <= most:
            captured.append(Graph(created("GraphInstantiate", graph, 0), "GraphExecDestroy"))
    finally:
        _release("GraphDestroy", graph)


def _nodes(graph: int) -> int:
    count = ctypes.c_size_t()
    call("GraphGetNodes", graph, None, ctypes.byref(count))
    return count.value


def _end_capture(stream: int) -> int:
    graph = ctypes.c_void_p()
    call("StreamEndCapture", stream, ctypes.byref(graph))
    return graph.value or 0
