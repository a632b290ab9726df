"""`main` of a module taken apart, if it is a list of kernel calls, reshapes and sizes read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import relax, tirx
from tvm.ir import GenericConst, Op

from graphopt.targets.relax.workspace import Slot


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


@dataclass(frozen=True)
class Reading:
    """Sizes that are the elements of an int64 vector, from before call number `step` on."""

    step: int
    sizes: list[Any]
    vector: Tensor


def read(module: tvm.IRModule, may_find_sizes: bool = False) -> Reader | None:
    """`main` of a fused and scheduled module, taken apart; None if it is not straight.

    Args:
        may_find_sizes: whether sizes may be read that kernels find.
    """
    main = module["main"]
    inputs = main.params[: int(main.attrs["num_input"])]
    reader = Reader(inputs, main.params[len(inputs) :])
    is_straight = reader.read(main.body) and (may_find_sizes or not reader.readings)
    return reader if is_straight else None


class Reader:
    """`main`, checked and taken apart.

    Attributes:
        inputs: the tensors that a caller gives.
        outputs: the results, in order.
        late: numbers of the outputs whose sizes kernels find; the caller gives room for the others.
        sizes: each size variable of the inputs, and the (input, axis) that it is read from.
        calls: the kernel calls in order.
        readings: the sizes that some of them find, in order.
        embedded: the constants that are not parameters, in order of use.
    """

    def __init__(self, inputs: Sequence[Any], weights: Sequence[Any]) -> None:
        self.inputs = [Tensor(Root(), parameter.ty) for parameter in inputs]
        self.outputs: list[Tensor] = []
        self.late: list[int] = []
        self.sizes: dict[Any, tuple[int, int]] = {}
        self.calls: list[Call] = []
        self.readings: list[Reading] = []
        self.embedded: list[Any] = []
        self.weights = len(weights)
        self._vectors: dict[Any, Tensor] = {}
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
        """Take in the body of `main`; False if something in it is none of these."""
        for block in body.blocks:
            for binding in block.bindings:
                if isinstance(binding, relax.MatchCast) and self._sizes_read(binding):
                    continue
                if not isinstance(binding, relax.VarBinding):
                    return False
                if self._is_vector_read(binding):
                    continue
                values = self._bound(binding.value, binding.var.name)
                if values is None or not self._are_known(values):
                    return False
                self._values[binding.var] = values
        if not isinstance(body.body, relax.Tuple):
            return False
        self.outputs = [self._tensor(field) for field in body.body.fields]
        roots = [tensor.root for tensor in self.outputs]
        computed = {tensor.root for call in self.calls for tensor in call.results}
        self.late = [
            k for k, tensor in enumerate(self.outputs) if not self.sizes.keys() >= _sizes_of(tensor)
        ]
        for k in self.late:
            roots[k].last_use = len(self.calls)
        return len(set(roots)) == len(roots) and computed.issuperset(roots)

    def _is_vector_read(self, binding: relax.VarBinding) -> bool:
        """Takes in what `Lowering.bind_sizes` emits first."""
        call = binding.value
        if not isinstance(call, relax.Call) or not isinstance(call.op, relax.ExternFunc):
            return False
        if call.op.global_symbol != "vm.builtin.tensor_to_shape":
            return False
        self._vectors[binding.var] = self._tensor(call.args[0])
        return True

    def _sizes_read(self, binding: relax.MatchCast) -> bool:
        """Takes in what it emits then; False if that is a comparison with sizes known before."""
        sizes, vector = list(binding.ty.values), self._vectors.get(binding.value)
        if vector is None or not all(isinstance(size, tirx.Var) for size in sizes):
            return False
        if set(sizes) & (self.sizes.keys() | self.found):
            return False
        vector.root.last_use = len(self.calls)
        self.readings.append(Reading(len(self.calls), sizes, vector))
        return True

    @property
    def given(self) -> list[Tensor]:
        """The outputs that a caller gives room for."""
        return [tensor for k, tensor in enumerate(self.outputs) if k not in self.late]

    @property
    def found(self) -> set[Any]:
        """The sizes that kernels find."""
        return {size for reading in self.readings for size in reading.sizes}

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
        """True if the dims of the tensors depend on sizes of the inputs and those found before.

        bfloat16 is not passed from function to function: TVM makes it uint16 on one side only.
        """
        if any(str(tensor.type.dtype) == "bfloat16" for tensor in tensors):
            return False
        known = self.sizes.keys() | self.found
        return all(known >= _sizes_of(tensor) for tensor in tensors)


def _sizes_of(tensor: Tensor) -> set[Any]:
    """The variables of the dims of a tensor."""
    dims = tensor.type.shape.values
    return {var for dim in dims for var in tirx.analysis.undefined_vars(dim)}
