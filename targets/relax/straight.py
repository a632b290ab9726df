"""Straight-line programs as one function that calls the kernels, without a virtual machine.

`main` of nearly every recommender is a list of kernel calls and reshapes. Relax's virtual machine
checks each parameter, allocates each tensor and computes each size while it runs: for one sample
that takes longer than the kernels of a small model. Here all of it is settled while compiling. Two
functions take the place of `main`:

    graphopt_run(inputs…, outputs…, weights, workspace)
    graphopt_plan(sizes…, plan)

`weights` holds the addresses of the constants, and `workspace` is room for all values between
kernels. `plan` receives the number of bytes that it must have, then the dims of the outputs.

    graphopt_profile(inputs…, outputs…, weights, workspace, clock)

does what `graphopt_run` does and writes into the int64 array `clock` the time, as two numbers
(seconds and nanoseconds of CLOCK_MONOTONIC), before the first kernel and after each.

    graphopt_share(inputs…, outputs…, weights, workspace, progress, helps)

is there if some layers are so wide that several threads are worth it (`sharing`). One thread calls
it with `helps` 0 and gets what `graphopt_run` gives; others, with the same arguments but `helps` 1,
take part in the wide layers and come back once `progress[0]` is the largest number.

Sizes that kernels find, as that of what `NonZero` gives, are read when they are there. If values of
such sizes need more room than `workspace` has, the function writes how many bytes that takes into
the first eight of it and fails; its caller comes back with a larger one. Outputs of such sizes are
left in `workspace`, which then begins with where each lies in it, in bytes, and its dims.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import tirx
from tvm.ir import StringImm
from tvm_ffi import StructuralKey

from graphopt.targets.kernels.storage import element_bytes
from graphopt.targets.relax.direct import DirectKernel, at
from graphopt.targets.relax.given import GivenArrays
from graphopt.targets.relax.primfunc import int64, sequence, with_root
from graphopt.targets.relax.reader import Call, Reader, Reading, Root, Tensor, read
from graphopt.targets.relax.sharing import Sharing, with_atomics
from graphopt.targets.relax.workspace import Slot, Workspace, analyzer_of, not_below_0

RUN, PLAN, PROFILE = "graphopt_run", "graphopt_plan", "graphopt_profile"
SHARE = "graphopt_share"
_CLOCK_MONOTONIC = 1


@dataclass(frozen=True)
class Straight:
    """A program without control flow.

    Attributes:
        module: the kernels, `graphopt_run`, `graphopt_plan` and `graphopt_profile`.
        sizes: where `graphopt_plan`'s arguments are read: (input, axis) of each.
        shaping: how many of these, the first ones, the shapes of outputs depend on.
        embedded: small constants, whose addresses follow those of the others in `weights`.
        calls: for each kernel call its symbol and the variable of `main` that it computes.
        late: numbers of the outputs that are left in the workspace.
        shared: how long `progress` of `graphopt_share` is, and how many bytes of weights its wide
            layers have; None if there is no such function.
    """

    module: tvm.IRModule
    sizes: tuple[tuple[int, int], ...]
    shaping: int
    embedded: tuple[np.ndarray, ...]
    calls: tuple[tuple[str, str], ...]
    late: tuple[int, ...]
    shared: tuple[int, int] | None


def straighten(module: tvm.IRModule) -> Straight | None:
    """The program of `module` (fused and scheduled) as one function; None if it is not straight."""
    reader = read(module, may_find_sizes=True)
    if reader is None:
        return None
    kernels = {
        name.name_hint: unaligned(kernel)
        for name, kernel in module.functions.items()
        if isinstance(kernel, tirx.PrimFunc)
    }
    # Threads that take part would need the sizes that another one finds.
    shareable = [] if reader.readings else [call.symbol for call in reader.calls]
    sharing = Sharing(kernels, shareable)
    every = {**kernels, **sharing.kernels}
    direct = {name: DirectKernel(name, kernel) for name, kernel in every.items()}
    writer = _HostWriter(reader, sharing, direct)
    functions = {kernel.name: kernel.function for kernel in direct.values()}
    return Straight(
        tvm.IRModule({**functions, **writer.functions()}),
        tuple(writer.sizes.values()),
        writer.shaping,
        tuple(constant.value.numpy() for constant in reader.embedded),
        tuple((call.symbol, call.variable) for call in reader.calls),
        tuple(reader.late),
        (sharing.slots, sharing.weights) if sharing.slots else None,
    )


def unaligned(kernel: tirx.PrimFunc) -> tirx.PrimFunc:
    """`kernel` for operands that start anywhere an element may.

    TVM takes every array to start at a multiple of 64 bytes, which those of NumPy do not.
    """
    params, declarations = [], []
    for parameter in kernel.params:
        if isinstance(parameter.ty, tirx.BufferType):
            dtype = str(parameter.ty.dtype)
            if int(parameter.ty.data_alignment) > element_bytes(dtype):
                given = buffer_of(parameter.ty.shape, dtype, parameter.name)
                declarations.append(at(parameter, tirx.address_of(given)))
                parameter = given
        params.append(parameter)
    if not declarations:
        return kernel
    body = tirx.SeqStmt([*declarations, kernel.body])
    return with_root(tirx.PrimFunc(params, body, kernel.ret_type, kernel.attrs))


def buffer_of(shape: Sequence[Any], dtype: str, name: str) -> Any:
    """A buffer that may start anywhere an element may."""
    return tirx.decl_buffer(shape, dtype, name, data_alignment=element_bytes(dtype))


class Writer:
    """Statements that call the kernels of a program, its values in memory that a caller gives.

    Attributes:
        offsets: where in the workspace each slot lies, in bytes.
        ends: bytes of workspace that are needed from each reading of sizes on; `needed` from the
            start, an expression of sizes of the inputs alone.
    """

    def __init__(self, program: Reader, kernels: Mapping[str, DirectKernel]) -> None:
        self.program, self.kernels = program, kernels
        self._scalars: dict[Any, tirx.Bind] = {}
        self.offsets, self.ends = self._assign_slots()
        self.needed = self.ends[0].value
        self._found = program.found.union(end.var for end in self.ends)

    def address(self, root: Root) -> Any:
        """Where memory lies."""
        raise NotImplementedError

    def called(self, call: Call, symbol: str = "", more: Sequence[Any] = ()) -> list[Any]:
        """The statements of one kernel call, perhaps of another kernel that takes `more`."""
        operands: list[Any] = []
        shapes: list[Any] = []
        for operand in (*call.operands, *call.results):
            is_tensor = isinstance(operand, Tensor)
            operands.append(self.address(operand.root) if is_tensor else operand)
            shapes.append(operand.type.shape.values if is_tensor else None)
        for operand in more:
            is_buffer = isinstance(operand.ty, tirx.BufferType)
            operands.append(tirx.address_of(operand) if is_buffer else operand)
            shapes.append(operand.ty.shape if is_buffer else None)
        return self.kernels[symbol or call.symbol].called(operands, shapes, self.scalar)

    def scalar(self, value: Any) -> Any:
        """`value`, computed once. TVM's own search for common subexpressions fails on this code."""
        if isinstance(value, (tirx.Var, tirx.IntImm)):
            return value
        bind = tirx.Bind(tirx.Var(f"size{len(self._scalars)}", "int64"), value)
        return self._scalars.setdefault(StructuralKey(value), bind).var

    @property
    def scalars(self) -> list[Any]:
        """The statements that compute what `scalar` gave of sizes of the inputs."""
        return [bind for bind in self._scalars.values() if not self._is_found(bind)]

    def _is_found(self, bind: tirx.Bind) -> bool:
        """Whether a statement takes a size that a kernel finds."""
        return not self._found.isdisjoint(tirx.analysis.undefined_vars(bind.value))

    def output_shapes(self) -> list[list[Any]]:
        """The shapes of the outputs that a caller gives."""
        analyzer = analyzer_of(self.program.sizes)
        return [
            [not_below_0(dim, analyzer) for dim in tensor.type.shape.values]
            for tensor in self.program.given
        ]

    def output_dims(self) -> list[Any]:
        """The dims of these outputs, one after another."""
        return [dim for shape in self.output_shapes() for dim in shape]

    def _late_shapes(self) -> list[Any]:
        return [self.program.outputs[k].type.shape.values for k in self.program.late]

    def _assign_slots(self) -> tuple[dict[Slot, Any], list[tirx.Bind]]:
        readings = self.program.readings
        workspace = Workspace(self.program.sizes, [reading.sizes for reading in readings])
        if self.program.late:
            workspace.take(sum(8 + 8 * len(shape) for shape in self._late_shapes()))
        given = {tensor.root for tensor in self.program.given}
        for step, call in enumerate(self.program.calls):
            roots = [tensor.root for tensor in call.results]
            for tensor in call.results:
                if tensor.root not in given:
                    tensor.root.slot = workspace.take(bytes_of(tensor.type))
            roots += [operand.root for operand in call.operands if isinstance(operand, Tensor)]
            roots += [reading.vector.root for reading in readings if reading.step == step]
            for root in dict.fromkeys(roots):
                if root.slot is not None and root.last_use == step:
                    workspace.give_back(root.slot)
        return workspace.layout()


class _HostWriter(Writer):
    """The functions that take the place of `main` on a CPU.

    Attributes:
        sizes: those of the program, the first `shaping` of which the shapes of outputs depend on.
    """

    def __init__(
        self, program: Reader, sharing: Sharing, kernels: Mapping[str, DirectKernel]
    ) -> None:
        super().__init__(program, kernels)
        self.sharing = sharing
        shapes = [tensor.type.shape.values for tensor in program.inputs]
        self.inputs = _given("in", program.inputs, shapes)
        self.outputs = _given("out", program.given, self.output_shapes())
        self.given = GivenArrays([*self.inputs, *self.outputs])
        count = max(1, program.weights + len(program.embedded))
        self.weights = buffer_of((int64(count),), "int64", "weights")
        self.room = tirx.Var("room", "int64")
        self.workspace = buffer_of((self.room,), "uint8", "workspace")
        self.kept = tirx.decl_buffer((int64(len(self.ends)),), "int64", "ends", scope="local")
        decisive = {var for dim in self.output_dims() for var in tirx.analysis.undefined_vars(dim)}
        ordered = sorted(program.sizes.items(), key=lambda size: size[0] not in decisive)
        self.sizes, self.shaping = dict(ordered), len(decisive)
        self._steps = [self._step(k) for k in range(len(program.calls))]
        if program.late:
            self._steps[-1] += self._told()

    def address(self, root: Root) -> Any:
        if root.buffer is not None:
            return tirx.address_of(root.buffer)
        if root.weight is not None:
            return self.weights[int64(root.weight)]
        assert root.slot is not None
        return tirx.address_of(self.workspace[self.scalar(self.offsets[root.slot])])

    def functions(self) -> dict[str, tirx.PrimFunc]:
        """`graphopt_run`, `graphopt_plan` and `graphopt_profile`, and perhaps `graphopt_share`."""
        found = {RUN: self._run(), PLAN: self._plan(), PROFILE: self._profile()}
        found |= self.given.functions()
        return found | ({SHARE: self._share()} if self.sharing.slots else {})

    def _step(self, k: int) -> list[Any]:
        """The statements of call `k`, after those that read sizes which were found before it."""
        before = len(self._scalars)
        read = [
            statement
            for level, reading in enumerate(self.program.readings, 1)
            if reading.step == k
            for statement in self._read(reading, level)
        ]
        called = self.called(self.program.calls[k])
        scalars = [bind for bind in list(self._scalars.values())[before:] if self._is_found(bind)]
        return [*read, *scalars, *called]

    def _read(self, reading: Reading, level: int) -> list[Any]:
        vector = buffer_of((int64(len(reading.sizes)),), "int64", "found")
        loads = [tirx.Bind(size, vector[int64(k)]) for k, size in enumerate(reading.sizes)]
        statements = [at(vector, self.address(reading.vector.root)), *loads, *self._kept(level)]
        needed = self.ends[level].var
        if not self.ends[level].value.same_as(self.ends[level - 1].var):
            first = buffer_of((int64(1),), "int64", "first")
            statements += [
                at(first, tirx.address_of(self.workspace[int64(0)])),
                tirx.IfThenElse(
                    self.room < needed, tirx.BufferStore(first, needed, [int64(0)]), None
                ),
                require(self.room >= needed, "graphopt: the workspace is too small"),
            ]
        return statements

    def _kept(self, level: int) -> list[Any]:
        """The statements that compute where a level ends.

        TVM writes out what is computed from numbers alone wherever it is used, but not what is read
        from memory. LLVM keeps it in a register all the same.
        """
        end, place = self.ends[level], int64(level)
        return [
            tirx.BufferStore(self.kept, end.value, [place]),
            tirx.Bind(end.var, self.kept[place]),
        ]

    def _told(self) -> list[Any]:
        """The statements that say where the outputs in the workspace lie, and their dims."""
        numbers: list[Any] = []
        for k, shape in zip(self.program.late, self._late_shapes()):
            slot = self.program.outputs[k].root.slot
            assert slot is not None
            numbers += [self.offsets[slot], *shape]
        start = buffer_of((int64(len(numbers)),), "int64", "start")
        stores = [tirx.BufferStore(start, int64(n), [int64(k)]) for k, n in enumerate(numbers)]
        return [at(start, tirx.address_of(self.workspace[int64(0)])), *stores]

    def _run(self) -> tirx.PrimFunc:
        return self._running(RUN, [], [statement for step in self._steps for statement in step])

    def _profile(self) -> tirx.PrimFunc:
        clock = buffer_of((int64(2 + 2 * len(self.program.calls)),), "int64", "clock")
        body = [_read_clock(clock, 0)]
        for k, step in enumerate(self._steps):
            body += [*step, _read_clock(clock, k + 1)]
        return self._running(PROFILE, [clock], body)

    def _share(self) -> tirx.PrimFunc:
        body: list[Any] = []
        for call in self.program.calls:
            if self.sharing.is_shared(call.symbol):
                other = self.sharing.next_layer(call.symbol)
                body += self.sharing.together(call.symbol, self.called(call, *other))
            else:
                body.append(self.sharing.alone(self.called(call)))
        more = [self.sharing.progress, self.sharing.helps]
        return self._running(SHARE, more, [with_atomics(body)])

    def _running(self, name: str, more: list[Any], body: list[Any]) -> tirx.PrimFunc:
        """A function that takes what `graphopt_run` takes and `more`."""
        checked = [require(self.room >= self.needed, "graphopt: the workspace is too small")]
        if self.program.readings:
            checked += [tirx.AllocBuffer(self.kept), *self._kept(0)]
        params = [*self.given.params, self.weights, self.workspace, *more]
        return function_of(name, params, [*self.given.declared(), *self.scalars, *checked, *body])

    def _plan(self) -> tirx.PrimFunc:
        dims = self.output_dims()
        plan = buffer_of((int64(1 + len(dims)),), "int64", "plan")
        body = [
            tirx.BufferStore(plan, int64(value), [int64(k)])
            for k, value in enumerate([self.needed, *dims])
        ]
        return function_of(PLAN, [*self.sizes, plan], body)


def _given(name: str, tensors: Sequence[Tensor], shapes: Sequence[Sequence[Any]]) -> list[Any]:
    """Buffers that a caller gives, for the roots of `tensors`."""
    for k, (tensor, shape) in enumerate(zip(tensors, shapes)):
        dtype = str(tensor.type.dtype)
        tensor.root.buffer = buffer_of(shape, dtype, f"{name}{k}")
    return [tensor.root.buffer for tensor in tensors]


def function_of(name: str, params: list[Any], body: list[Any]) -> tirx.PrimFunc:
    """A function that others find by `name`."""
    function = tirx.PrimFunc(params, sequence(body))
    return function.with_attr({"global_symbol": name, "s_tir": True, "tirx.noalias": True})


def _read_clock(clock: Any, place: int) -> Any:
    at = tirx.address_of(clock[int64(2 * place)])
    return tirx.Evaluate(tirx.call_extern("int32", "clock_gettime", _CLOCK_MONOTONIC, at))


def require(condition: Any, message: str, kind: str = "RuntimeError") -> Any:
    """The statement that stops a program unless `condition` is true.

    Args:
        kind: of the error; RuntimeError is the fault of the inputs.
    """
    return tirx.AssertStmt(condition, StringImm(kind), [StringImm(message)])


def bytes_of(type_: Any) -> Any:
    """Bytes of a tensor of this type, an expression."""
    sizes = [int64(dim) for dim in type_.shape.values]
    return functools.reduce(operator.mul, sizes, int64(element_bytes(str(type_.dtype))))
