"""Every kernel of every op is bound to blocks and threads, and to more than one of the latter."""

from __future__ import annotations

import pytest
import tvm
import tvm_ffi
from tvm import tirx
from upgrade_cases import CASES

from graphopt.errors import UnsupportedOpError
from graphopt.ir import onnx_io
from graphopt.ir.graph import Graph
from graphopt.targets.cpu.target import CpuTarget
from graphopt.targets.cuda import ops
from graphopt.targets.cuda.kernels import elementary
from graphopt.targets.cuda.lowering import CudaLowering
from graphopt.targets.cuda.schedule import schedule
from graphopt.targets.cuda.target import CudaTarget
from graphopt.targets.relax import converters, lowering
from graphopt.targets.relax.build import compiling, fuse
from graphopt.targets.relax.direct import LAUNCHING
from graphopt.testing import parse

# Since opset 19, or with kernels of their own for other reasons.
MORE = {
    "TensorScatter": """(float[N,2,5,3] x, float[N,2,2,3] u, int64[N] at) => (float[N,2,5,3] y)
        { y = TensorScatter(x, u, at) }""",
    "ReverseSequence": """(float[N,5] x, int64[N] n) => (float[N,5] y)
        { y = ReverseSequence<batch_axis = 0, time_axis = 1>(x, n) }""",
    "GridSample": """(float[N,2,3,5] x, float[N,4,3,2] g) => (float[N,2,4,3] y)
        { y = GridSample(x, g) }""",
    "Unique": "(int64[N] x) => (int64[M] y) { y = Unique(x) }",
    "Det": "(float[N,3,3] x) => (float[N] y) { y = Det(x) }",
    "Einsum": """(float[N,3] x, float[N,4] z) => (float[N,3,4] y)
        { y = Einsum<equation="ni,nj->nij">(x, z) }""",
    "Softmax": "(float[N,3] x) => (float[N,3] y) { y = Softmax(x) }",
    "LayerNormalization": """(float[N,8] x, float[8] s) => (float[N,8] y)
        { y = LayerNormalization(x, s) }""",
    "Range": """(int64 n) => (int64[M] y) <int64 zero = {0}, int64 one = {1}>
        { y = Range(zero, n, one) }""",
    "RoiAlign": """(float[B,2,9,8] x, float[R,4] r, int64[R] i) => (float[R,2,3,2] y)
        { y = RoiAlign<output_height=3, output_width=2, sampling_ratio=2>(x, r, i) }""",
    "ScatterND": """(float[N] x, int64[M,1] i, float[M] u) => (float[N] y)
        { y = ScatterND(x, i, u) }""",
    "GatherND": """(float[N,4] x, int64[N,1] i) => (float[N] y)
        { y = GatherND<batch_dims = 1>(x, i) }""",
    "Conv": "(float[N,2,9] x) => (float[N,3,7] y) <float[3,2,3] w> { y = Conv(x, w) }",
    "GRU": """(float[T,N,4] x) => (float[T,1,N,5] y) <float[1,15,4] w, float[1,15,5] r>
        { y = GRU<hidden_size = 5>(x, w, r) }""",
}


OPSET = 18


OPS = [op for op, found in CASES.items() if any(c.since <= OPSET <= c.until for c in found)]
OPS = [*dict.fromkeys([*OPS, *MORE])]


def graph_of(op: str) -> Graph:
    if op in MORE:
        return parse(MORE[op], 24)
    case = next(case for case in CASES[op] if case.since <= OPSET <= case.until)
    return onnx_io.from_proto(case.model(op, OPSET)[0])


def scheduled(graph: Graph) -> tvm.IRModule:
    """What is compiled of a graph, but for the code."""
    target = CudaTarget(("sm_80",))
    state = CudaLowering(target._tvm())
    elementary.register()
    lowered = lowering.lower(target.legalize(graph), lowering=state)
    with compiling():
        fused, _ = fuse(lowered.module, lowered.emitted)
        whole = schedule(fused, target._tvm())
    every = {**whole.functions, **lowered.functions}  # and the kernels of bodies
    return tvm.IRModule({name: f for name, f in every.items() if not _is_small(name, f)})


def _is_small(name: tvm.ir.GlobalVar, function: tvm.ir.BaseFunc) -> bool:
    """True for what runs on the host, and for what writes one number."""
    return LAUNCHING in (function.attrs or {}) or name.name_hint.startswith("number")


def extents_of(program: tvm.IRModule) -> dict[str, dict[str, int | None]]:
    """By kernel, what it is bound to and how many of that there are, where that is known."""
    found = {}
    for name, kernel in program.functions.items():
        if not isinstance(kernel, tirx.PrimFunc):
            continue
        extents: dict[str, int | None] = {}

        def visit(loop: tirx.For) -> None:
            if loop.thread_binding is not None:
                size = loop.extent
                fixed = int(size) if isinstance(size, tirx.IntImm) else None
                extents[loop.thread_binding.thread_tag] = fixed  # noqa: B023

        tvm_ffi.structural_walk(kernel.body, (tirx.For, visit))
        found[name.name_hint] = extents
    return found


def on_one_thread(program: tvm.IRModule) -> list[str]:
    """Kernels that no block, or a single thread of each, runs."""
    found = []
    for name, extents in extents_of(program).items():
        threads = (extents.get("threadIdx.x", 0) or 1) * (extents.get("threadIdx.y", 1) or 1)
        if threads < 2 or "blockIdx.x" not in extents:
            found.append(name)
    return found


WINDOWS = """(float[N,16,8,9] x) => (float[N,16,6,7] y, float[N,16,2,3] z) {{
    y = {op}<kernel_shape = [3, 3]>(x)
    z = {op}<kernel_shape = [7, 7]>(x)
}}"""


@pytest.mark.parametrize("op", ["AveragePool", "LpPool", "MaxPool"])
def test_a_window_has_a_thread(op: str) -> None:
    """Not a block, as 49 elements that lie one after another have."""
    found = extents_of(scheduled(parse(WINDOWS.format(op=op), OPSET)))
    assert [extents["threadIdx.x"] for extents in found.values()] == [256, 256]
    row = parse(
        "(float[N,49] x) => (float[N,1] y) { a = Constant<value_ints=[1]>() y = ReduceSum(x, a) }",
        OPSET,
    )
    (long,) = extents_of(scheduled(row)).values()
    assert long["blockIdx.x"] is None


@pytest.mark.parametrize("op", ["ScatterND", "MaxUnpool"])
def test_who_writes_last_is_found_by_many_blocks(op: str) -> None:
    found = extents_of(scheduled(graph_of(op)))
    kernels = [extents for name, extents in found.items() if op.lower() in name]
    assert kernels and all(extents["blockIdx.x"] != 1 for extents in kernels)


@pytest.mark.parametrize("op", OPS)
def test_no_kernel_runs_on_one_thread(op: str) -> None:
    graph = graph_of(op)
    try:
        program = scheduled(graph)
    except UnsupportedOpError:
        with pytest.raises(UnsupportedOpError):
            lowering.lower(CpuTarget.parse("").legalize(graph))
        return
    assert on_one_thread(program) == []


def test_a_kernel_that_is_bound_to_no_threads_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    ops.register()
    key = "cuda", "", "ReverseSequence"
    monkeypatch.delitem(converters._CONVERTERS, key)
    with pytest.raises(UnsupportedOpError, match=r"ReverseSequence.*its kernel is one for CPUs"):
        scheduled(graph_of("ReverseSequence"))


def test_what_runs_on_one_thread_is_seen() -> None:
    program = scheduled(graph_of("Det"))
    (name,) = (g for g, f in program.functions.items() if isinstance(f, tirx.PrimFunc))
    assert on_one_thread(program) == []
    program[name] = unbound(program[name])
    assert on_one_thread(program) == [name.name_hint]


def unbound(kernel: tirx.PrimFunc) -> tirx.PrimFunc:
    """The same with serial loops in the place of threads."""

    def serial(loop: tirx.For) -> tirx.For:
        return tirx.For(loop.loop_var, loop.min, loop.extent, tirx.ForKind.SERIAL, loop.body)

    return kernel.with_body(tvm_ffi.structural_map(kernel.body, (tirx.For, serial)))
