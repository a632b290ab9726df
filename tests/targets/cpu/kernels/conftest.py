"""Compile kernels for the machine that runs the tests, alone or inside a Relax module."""

import ctypes
import mmap
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import tvm
from tvm import relax, tirx

from graphopt.targets.cpu.target import CpuTarget

Call = Callable[..., list[np.ndarray]]
Param = tuple[Sequence[int | str], str]


def _call(function, inputs: Sequence[np.ndarray], outs: Sequence[tuple]) -> list[np.ndarray]:
    """Run a destination-passing kernel; `outs` are (shape, dtype), filled with junk beforehand."""
    results = [tvm.runtime.empty(shape, dtype) for shape, dtype in outs]
    for result in results:
        result.copyfrom(np.full(result.shape, 77).astype(result.numpy().dtype))
    function(*[tvm.runtime.tensor(x) for x in inputs], *results)
    return [result.numpy() for result in results]


@pytest.fixture(scope="session")
def compile_kernels() -> Callable[[dict[str, tirx.PrimFunc]], dict[str, Call]]:
    """Compile named kernels in one module; each is then called as f(inputs, outs) -> outputs."""

    def compile_all(kernels: dict[str, tirx.PrimFunc]) -> dict[str, Call]:
        named = {name: f.with_attr("global_symbol", name) for name, f in kernels.items()}
        library = tvm.compile(tvm.IRModule(named), target=CpuTarget.parse("").llvm)
        return {
            name: lambda inputs, outs, f=library[name]: _call(f, inputs, outs) for name in kernels
        }

    return compile_all


@pytest.fixture(scope="session")
def compile_relax() -> Callable[..., Call]:
    """Compile `main(*params)` through the CPU pipeline, its body written by `emit(builder, *vars)`.

    A parameter is (shape, dtype); equal strings in shapes are the same symbolic dimension.
    """

    def compile_main(params: Sequence[Param], emit: Callable[..., relax.Expr]) -> Call:
        dims: dict[str, tirx.Var] = {}

        def sized(shape):
            return [
                dims.setdefault(d, tirx.Var(d, "int64")) if isinstance(d, str) else d for d in shape
            ]

        inputs = [
            relax.Var(f"x{i}", relax.TensorType(sized(shape), dtype))
            for i, (shape, dtype) in enumerate(params)
        ]
        builder = relax.BlockBuilder()
        with builder.function("main", inputs):
            with builder.dataflow():
                result = builder.emit_output(emit(builder, *inputs))
            builder.emit_func_output(result)
        target = CpuTarget.parse("").llvm
        pipeline = relax.backend.cpu_generic.get_default_pipeline(target)
        machine = relax.VirtualMachine(
            tvm.compile(builder.get(), target, relax_pipeline=pipeline), tvm.cpu()
        )

        def run(*arrays: np.ndarray) -> list[np.ndarray]:
            out = machine["main"](*[tvm.runtime.tensor(a) for a in arrays])
            return [x.numpy() for x in (out if not isinstance(out, tvm.runtime.Tensor) else [out])]

        return run

    return compile_main


@pytest.fixture
def at_the_end() -> Callable[[np.ndarray], np.ndarray]:
    """Makes a copy of an array after which there is no memory that one may read."""

    def placed(array: np.ndarray) -> np.ndarray:
        page = mmap.PAGESIZE
        room = -(-array.nbytes // page) * page
        memory = mmap.mmap(-1, room + page)
        base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(base + room), page, 0) == 0
        whole = np.frombuffer(memory, np.uint8, room)[room - array.nbytes :]
        copy = whole.view(array.dtype).reshape(array.shape)
        copy[...] = array
        return copy

    return placed
