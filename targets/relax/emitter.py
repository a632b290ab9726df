"""Kernels put into a Relax function, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tvm_ffi
from tvm import relax, te, tirx
from tvm.ir import Op

from graphopt.ir.graph import Node
from graphopt.targets.relax.primfunc import Check, compute, from_te, int64, with_root
from graphopt.targets.relax.scalar import bitcast
from graphopt.targets.relax.schedule import SCHEDULED


class Emitter:
    """What emits TE computations, TIR kernels and views.

    Attributes:
        bb: the Relax block builder.
        sizes: the int64 variables that stand for symbolic sizes, by name.
        node: the node that is being lowered.
        emitted: for each variable that a kernel computes, the node that it comes from.
    """

    def __init__(self) -> None:
        self.bb = relax.BlockBuilder()
        self.sizes: dict[str, tirx.Var] = {}
        self.node: Node | None = None
        self.emitted: dict[str, Node] = {}

    def te(
        self,
        function: Callable[..., Any],
        *args: relax.Expr,
        name: str = "",
        checks: Sequence[Check] = (),
    ) -> relax.Var:
        """Emit one TE computation: `function(*te_tensors) -> te.Tensor | tuple of them`.

        `function` may use sizes from `dim` and `shape`. Several outputs come as a tuple variable:
        see `untuple`.

        Args:
            checks: conditions on sizes, and what the run-time error says where one is false.
        """
        tensors = [
            te.placeholder(shape_of(arg), arg.ty.dtype, name=f"in{k}") for k, arg in enumerate(args)
        ]
        result = function(*tensors)
        outs = [result] if isinstance(result, te.Tensor) else list(result)
        kernel, free = from_te(tensors, outs, self.sizes.values(), checks)
        types = [relax.TensorType(list(out.shape), out.dtype) for out in outs]
        return self._call(kernel, [*args, *free], types, name)

    def kernel(
        self,
        function: tirx.PrimFunc,
        args: Sequence[relax.Expr],
        out: Sequence[tuple[Sequence[Any], str]],
    ) -> Sequence[relax.Expr]:
        """Emit a call of a TIR kernel that writes outputs of the given (shape, dtype)."""
        name = str(function.attrs["global_symbol"]) if "global_symbol" in function.attrs else ""
        types = [relax.TensorType(list(shape), dtype) for shape, dtype in out]
        kernel = with_root(function.without_attr("global_symbol")).with_attr(SCHEDULED, True)
        call = self._call(kernel, list(args), types, name)
        return self.untuple(call, len(types))

    def reshape(self, expr: relax.Expr, shape: Sequence[Any]) -> relax.Expr:
        """The same elements in order under another shape, where possible without a copy."""
        wanted = [int64(d) for d in shape]
        if tvm_ffi.structural_equal(shape_of(expr), wanted):
            return expr
        return self.bb.emit(relax.op.reshape(expr, relax.ShapeExpr(wanted)), "view")

    def untuple(self, result: relax.Expr, count: int) -> list[relax.Expr]:
        """The outputs of a computation with `count` of them."""
        if count == 1:
            return [result]
        return [self.bb.emit(relax.TupleGetItem(result, k), "part") for k in range(count)]

    def reinterpreted(self, expr: relax.Expr, dtype: str) -> relax.Expr:
        """A bfloat16 tensor as uint16 bits, or bits as bfloat16."""
        if str(expr.ty.dtype) == dtype:
            return expr

        def bits(x: te.Tensor) -> te.Tensor:
            return compute(x.shape, lambda *i: bitcast(x(*i), dtype), "bits")

        return self.te(bits, expr, name="bits")

    def results(self, exprs: Sequence[relax.Expr]) -> list[relax.Expr]:
        """The tensors as `main` returns them, copied where one is a parameter or comes twice.

        A caller may write to what it gets, which must change neither its inputs nor the weights.
        """
        exprs = [self.reinterpreted(expr, outside(str(expr.ty.dtype))) for expr in exprs]
        taken: set[relax.Expr] = set()
        result = []
        for expr in exprs:
            memory = self.viewed(expr)
            computed = isinstance(memory, relax.Var) and self.bb.lookup_binding(memory) is not None
            if memory in taken or not computed:
                expr = self.te(lambda x: compute(x.shape, lambda *i: x(*i)), expr, name="copy")
            taken.add(memory)
            result.append(expr)
        return result

    def viewed(self, expr: relax.Expr) -> relax.Expr:
        """The value whose memory `expr` is: what reshapes are made of."""
        while isinstance(expr, relax.Var):
            binding = self.bb.lookup_binding(expr)
            if not isinstance(binding, relax.Call) or binding.op != Op.get("relax.reshape"):
                break
            expr = binding.args[0]
        return expr

    def _call(
        self, kernel: tirx.PrimFunc, args: list[Any], types: list[relax.TensorType], name: str
    ) -> relax.Var:
        name = name or (self.node.op_type.lower() if self.node else "kernel")
        symbol = self.bb.add_func(kernel, name)
        call = relax.op.call_tir(symbol, args, types[0] if len(types) == 1 else types)
        result = self.bb.emit(call, f"{name}_result")  # FuseOps calls what it makes gv
        if self.node is not None:
            self.emitted[result.name] = self.node
        return result


def outside(dtype: str) -> str:
    """How parameters and results of `dtype` are declared.

    NumPy has no bfloat16 of its own and cannot hand one over through DLPack: its bits are passed.
    """
    return "uint16" if dtype == "bfloat16" else dtype


def shape_of(expr: relax.Expr) -> list[Any]:
    """The sizes of a tensor as expressions."""
    return list(expr.ty.shape.values)
