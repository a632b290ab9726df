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
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import relax, tirx
from tvm.ir import GenericConst, Op, PointerType, PrimType, StringImm
from tvm_ffi import StructuralKey

from graphopt.targets.kernels.storage import element_bytes
from graphopt.targets.relax.primfunc import int64, with_root
from graphopt.targets.relax.sharing import Sharing, with_atomics
from graphopt.targets.relax.workspace import Slot, Workspace

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
        shared: how long `progress` of `graphopt_share` is, and how many bytes of weights its wide
            layers have; None if there is no such function.
    """

    module: tvm.IRModule
    sizes: tuple[tuple[int, int], ...]
    shaping: int
    embedded: tuple[np.ndarray, ...]
    calls: tuple[tuple[str, str], ...]
    shared: tuple[int, int] | None


@dataclass(eq=False)
class Root:
    """Memory that holds values: an input, an output, constant number `weight`, or a slot."""

    buffer: Any = None
    weight: int | None = None
    slot: Slot | None = None
    last_use: int = -1


@dataclass(frozen=True)
class Tensor:
    """A value: memory, and the Relax type that it is read with."""

    root: Root
    type: Any


@dataclass(frozen=True)
class Call:
    """A call of kernel `symbol`, which computes `variable` of `main`."""

    symbol: str
    variable: str
    operands: list[Any]  # tensors and sizes
    results: list[Tensor]


def straighten(module: tvm.IRModule) -> Straight | None:
    """The program of `module` (fused and scheduled) as one function; None if it is not straight."""
    reader = read(module)
    if reader is None:
        return None
    kernels = {
        name.name_hint: unaligned(kernel).with_attr("global_symbol", name.name_hint)
        for name, kernel in module.functions.items()
        if isinstance(kernel, tirx.PrimFunc)
    }
    sharing = Sharing(kernels, [call.symbol for call in reader.calls])
    writer = _HostWriter(reader, sharing)
    return Straight(
        tvm.IRModule({**kernels, **sharing.kernels, **writer.functions()}),
        tuple(writer.sizes.values()),
        writer.shaping,
        tuple(constant.value.numpy() for constant in reader.embedded),
        tuple((call.symbol, call.variable) for call in reader.calls),
        (sharing.slots, sharing.weights) if sharing.slots else None,
    )


def read(module: tvm.IRModule) -> Reader | None:
    """`main` of a fused and scheduled module, taken apart; None if it is not straight."""
    main = module["main"]
    inputs = main.params[: int(main.attrs["num_input"])]
    reader = Reader(inputs, main.params[len(inputs) :])
    return reader if reader.read(main.body) else None


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
                declarations.append(_at(parameter, tirx.address_of(given)))
                parameter = given
        params.append(parameter)
    if not declarations:
        return kernel
    body = tirx.SeqStmt([*declarations, kernel.body])
    return with_root(tirx.PrimFunc(params, body, kernel.ret_type, kernel.attrs))


def buffer_of(shape: Sequence[Any], dtype: str, name: str) -> Any:
    """A buffer that may start anywhere an element may."""
    return tirx.decl_buffer(shape, dtype, name, data_alignment=element_bytes(dtype))


def _at(buffer: Any, address: Any) -> tirx.DeclBuffer:
    """The statement that lets `buffer` lie at an address."""
    pointer = PointerType(PrimType(str(buffer.ty.dtype)))
    return tirx.DeclBuffer(buffer, data=tirx.reinterpret(pointer, address))


class Reader:
    """`main`, checked and taken apart.

    Attributes:
        inputs, outputs: the tensors that a caller gives.
        sizes: each size variable of the inputs, and the (input, axis) that it is read from.
        calls: the kernel calls in order.
        embedded: the constants that are not parameters, in order of use.
    """

    def __init__(self, inputs: Sequence[Any], weights: Sequence[Any]) -> None:
        self.inputs = [Tensor(Root(), parameter.ty) for parameter in inputs]
        self.outputs: list[Tensor] = []
        self.sizes: dict[Any, tuple[int, int]] = {}
        self.calls: list[Call] = []
        self.embedded: list[Any] = []
        self.weights = len(weights)
        self._values: dict[Any, list[Tensor]] = {
            parameter: [tensor] for parameter, tensor in zip(inputs, self.inputs)
        }
        for k, parameter in enumerate(weights):
            self._values[parameter] = [Tensor(Root(weight=k), parameter.ty)]
        for k, parameter in enumerate(inputs):
            for axis, dim in enumerate(parameter.ty.shape.values):
                if isinstance(dim, tirx.Var):
                    self.sizes.setdefault(dim, (k, axis))

    def read(self, body: relax.SeqExpr) -> bool:
        """Take in the body of `main`; False if something in it is no kernel call and no reshape."""
        for block in body.blocks:
            for binding in block.bindings:
                if not isinstance(binding, relax.VarBinding):
                    return False
                values = self._bound(binding.value, binding.var.name)
                if values is None or not self._are_known(values):
                    return False
                self._values[binding.var] = values
        if not isinstance(body.body, relax.Tuple):
            return False
        self.outputs = [self._tensor(field) for field in body.body.fields]
        roots = [tensor.root for tensor in self.outputs]
        computed = {tensor.root for call in self.calls for tensor in call.results}
        return len(set(roots)) == len(roots) and computed.issuperset(roots)

    def _bound(self, value: Any, name: str) -> list[Tensor] | None:
        if isinstance(value, relax.Var):
            return self._values.get(value)
        if isinstance(value, relax.TupleGetItem):
            return [self._values[value.tuple_value][value.index]]
        if not isinstance(value, relax.Call):
            return None
        if value.op == Op.get("relax.reshape"):
            return [Tensor(self._tensor(value.args[0]).root, value.ty)]
        if value.op != Op.get("relax.call_tir") or len(value.args) != 2:
            return None
        return self._called(value, name)

    def _called(self, call: relax.Call, name: str) -> list[Tensor]:
        operands = [
            self._tensor(a) if isinstance(a.ty, relax.TensorType) else a for a in call.args[1]
        ]
        type_ = call.ty_args[0]
        types = list(type_.fields) if isinstance(type_, relax.TupleType) else [type_]
        results = [Tensor(Root(), each) for each in types]
        for operand in (*operands, *results):
            if isinstance(operand, Tensor):
                operand.root.last_use = len(self.calls)
        self.calls.append(Call(call.args[0].name_hint, name, operands, results))
        return results

    def _tensor(self, expr: Any) -> Tensor:
        if isinstance(expr, GenericConst):
            self.embedded.append(expr)
            weight = self.weights + len(self.embedded) - 1
            return Tensor(Root(weight=weight), expr.ty)
        (tensor,) = self._values[expr]
        return tensor

    def _are_known(self, tensors: Sequence[Tensor]) -> bool:
        """True if the dims of the tensors depend on the sizes of the inputs alone.

        bfloat16 is not passed from function to function: TVM makes it uint16 on one side only.
        """
        if any(str(tensor.type.dtype) == "bfloat16" for tensor in tensors):
            return False
        dims = [dim for tensor in tensors for dim in tensor.type.shape.values]
        used = {var for dim in dims for var in tirx.analysis.undefined_vars(dim)}
        return self.sizes.keys() >= used


class Writer:
    """Statements that call the kernels of a program, its values in memory that a caller gives.

    Attributes:
        offsets: where in the workspace each slot lies, in bytes.
        needed: bytes of workspace.
    """

    def __init__(self, program: Reader) -> None:
        self.program = program
        self._scalars: dict[Any, tirx.Bind] = {}
        self.offsets, self.needed = self._assign_slots()

    def address(self, root: Root) -> Any:
        """Where memory lies."""
        raise NotImplementedError

    def called(self, call: Call, symbol: str = "", more: Sequence[Any] = ()) -> list[Any]:
        """The statements of one kernel call, perhaps of another kernel that takes `more`."""
        statements: list[Any] = []
        args = []
        for operand in (*call.operands, *call.results):
            if isinstance(operand, Tensor):
                statements.append(self._declared(operand))
                operand = statements[-1].buffer
            args.append(operand)
        return [*statements, tirx.Evaluate(tirx.call_cpacked(symbol or call.symbol, *args, *more))]

    def scalar(self, value: Any) -> Any:
        """`value`, computed once. TVM's own search for common subexpressions fails on this code."""
        if isinstance(value, (tirx.Var, tirx.IntImm)):
            return value
        bind = tirx.Bind(tirx.Var(f"size{len(self._scalars)}", "int64"), value)
        return self._scalars.setdefault(StructuralKey(value), bind).var

    @property
    def scalars(self) -> list[Any]:
        """The statements that compute what `scalar` gave."""
        return list(self._scalars.values())

    def output_dims(self) -> list[Any]:
        """The dims of all outputs, one after another."""
        return [dim for tensor in self.program.outputs for dim in tensor.type.shape.values]

    def _assign_slots(self) -> tuple[dict[Slot, Any], Any]:
        workspace = Workspace(self.program.sizes)
        given = {tensor.root for tensor in self.program.outputs}
        for step, call in enumerate(self.program.calls):
            roots = [tensor.root for tensor in call.results]
            for tensor in call.results:
                if tensor.root not in given:
                    tensor.root.slot = workspace.take(bytes_of(tensor.type))
            roots += [operand.root for operand in call.operands if isinstance(operand, Tensor)]
            for root in dict.fromkeys(roots):
                if root.slot is not None and root.last_use == step:
                    workspace.give_back(root.slot)
        return workspace.layout()

    def _declared(self, tensor: Tensor) -> tirx.DeclBuffer:
        shape = [self.scalar(dim) for dim in tensor.type.shape.values]
        buffer = buffer_of(shape, str(tensor.type.dtype), "value")
        return _at(buffer, self.address(tensor.root))


class _HostWriter(Writer):
    """The functions that take the place of `main` on a CPU.

    Attributes:
        sizes: those of the program, the first `shaping` of which the shapes of outputs depend on.
    """

    def __init__(self, program: Reader, sharing: Sharing) -> None:
        super().__init__(program)
        self.sharing = sharing
        self.inputs = _given("in", program.inputs)
        self.outputs = _given("out", program.outputs)
        count = max(1, program.weights + len(program.embedded))
        self.weights = buffer_of((int64(count),), "int64", "weights")
        self.room = tirx.Var("room", "int64")
        self.workspace = buffer_of((self.room,), "uint8", "workspace")
        shapes = {var for dim in self.output_dims() for var in tirx.analysis.undefined_vars(dim)}
        ordered = sorted(program.sizes.items(), key=lambda size: size[0] not in shapes)
        self.sizes, self.shaping = dict(ordered), len(shapes)

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
        return found | ({SHARE: self._share()} if self.sharing.slots else {})

    def _run(self) -> tirx.PrimFunc:
        body = [statement for call in self.program.calls for statement in self.called(call)]
        return self._running(RUN, [], body)

    def _profile(self) -> tirx.PrimFunc:
        clock = buffer_of((int64(2 + 2 * len(self.program.calls)),), "int64", "clock")
        body = [_read_clock(clock, 0)]
        for k, call in enumerate(self.program.calls):
            body += [*self.called(call), _read_clock(clock, k + 1)]
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
        checked = require(self.room >= self.needed, "graphopt: the workspace is too small")
        params = [*self.inputs, *self.outputs, self.weights, self.workspace, *more]
        return function_of(name, params, [*self.scalars, checked, *body])

    def _plan(self) -> tirx.PrimFunc:
        dims = self.output_dims()
        plan = buffer_of((int64(1 + len(dims)),), "int64", "plan")
        body = [
            tirx.BufferStore(plan, int64(value), [int64(k)])
            for k, value in enumerate([self.needed, *dims])
        ]
        return function_of(PLAN, [*self.sizes, plan], body)


def _given(name: str, tensors: Sequence[Tensor]) -> list[Any]:
    """Buffers that a caller gives, for the roots of `tensors`."""
    for k, tensor in enumerate(tensors):
        shape, dtype = tensor.type.shape.values, str(tensor.type.dtype)
        tensor.root.buffer = buffer_of(shape, dtype, f"{name}{k}")
    return [tensor.root.buffer for tensor in tensors]


def function_of(name: str, params: list[Any], body: list[Any]) -> tirx.PrimFunc:
    """A function that others find by `name`."""
    function = tirx.PrimFunc(params, tirx.SeqStmt(body) if len(body) > 1 else body[0])
    return function.with_attr({"global_symbol": name, "s_tir": True, "tirx.noalias": True})


def _read_clock(clock: Any, place: int) -> Any:
    at = tirx.address_of(clock[int64(2 * place)])
    return tirx.Evaluate(tirx.call_extern("int32", "clock_gettime", _CLOCK_MONOTONIC, at))


def require(condition: Any, message: str) -> Any:
    """The statement that stops a program unless `condition` is true."""
    return tirx.AssertStmt(condition, StringImm("RuntimeError"), [StringImm(message)])


def bytes_of(type_: Any) -> Any:
    """Bytes of a tensor of this type, an expression."""
    sizes = [int64(dim) for dim in type_.shape.values]
    return functools.reduce(operator.mul, sizes, int64(element_bytes(str(type_.dtype))))
