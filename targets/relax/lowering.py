"""Graph → Relax module with symbolic sizes.

Every op is emitted through TE with the output shape that the IR inferred, so Relax never has to
prove anything about sizes. Shape arithmetic is not lowered at all where a value's content is known:
sizes are read off the inputs. Constants become parameters, in the order of `Lowered.constants`.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from tvm import relax, tirx
from tvm.error import InternalError

from graphopt.errors import UnsupportedOpError
from graphopt.ir.content import as_array
from graphopt.ir.dims import Dim, Sym, is_name, symbols
from graphopt.ir.graph import Graph, Node, Value
from graphopt.ir.types import TensorType, dtype_to_numpy
from graphopt.targets.relax.converters import converter_of, lowers
from graphopt.targets.relax.emitter import Emitter, outside
from graphopt.targets.relax.primfunc import OPAQUE, Check, compute, int64
from graphopt.targets.relax.sizes import UnboundSizeError, chosen_by_place, evaluated

_OPEN_RANKS = {
    "Squeeze": "; where a model squeezes, write reshape or squeeze(1)",
    "If": "; its branches give tensors of different rank: reshape them to one",
}

__all__ = ["OPAQUE", "Check", "Lowered", "Lowering", "compute", "int64", "lower", "lowers"]

Oob = Literal["error", "clamp", "zero"]

DTYPES = frozenset(
    ["bool", "float16", "bfloat16", "float32", "float64"]
    + [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
)
EMBEDDED_ELEMENTS = 16


@dataclass(frozen=True, eq=False)
class Report:
    """What a part of a program says was wrong.

    Attributes:
        expr: int32 [messages, parts], not 0 where it was.
        messages: what each row stands for.
    """

    expr: relax.Expr
    messages: Sequence[str]


@dataclass(frozen=True)
class Lowered:
    """A Relax module and what it must be called with.

    Attributes:
        module: an IRModule whose `main` takes the graph's inputs, then the constants, and returns
            a tuple of the outputs; bfloat16 tensors are passed as uint16.
        constants: the constants, in parameter order.
        emitted: for each variable of `main` that a kernel computes, the node that it comes from.
        functions: what kernels call.
    """

    module: Any
    constants: tuple[Value, ...]
    emitted: Mapping[str, Node]
    functions: Mapping[Any, tirx.PrimFunc]


def lower(graph: Graph, oob: Oob = "error", lowering: Lowering | None = None) -> Lowered:
    """Lower a graph (its function-body ops expanded) to a module with symbolic sizes.

    Args:
        lowering: a new state to do it with; that of the CPU and of `oob` by default.

    Raises:
        UnsupportedOpError: names the op and node that cannot be compiled, and why.
    """
    lowering = lowering or Lowering(oob)
    inputs = [lowering.parameter(value) for value in graph.inputs]
    module = lowering.module(inputs, graph, graph.outputs)
    return Lowered(module, tuple(lowering.constants), lowering.emitted, lowering.functions)


@contextmanager
def _discarding(bb: relax.BlockBuilder) -> Iterator[None]:
    """Ends the blocks that an error leaves open, which TVM would complain of on stderr."""
    try:
        yield
    except BaseException:
        with suppress(InternalError):
            while True:
                bb._end_block()
        raise


class Lowering(Emitter):
    """The state of lowering one graph; what converters build with.

    Attributes:
        target: the kind of target, which chooses among converters.
        oob: what an id outside its table does.
        constants: the parameters that stand for constants so far, in order of first use.
        functions: what kernels call, as `DirectKernel` makes it; `bodies` has more of this.
    """

    target: ClassVar[str] = "cpu"
    in_parts: ClassVar[bool] = False  # long reductions; see `reduction.Region`

    def __init__(self, oob: Oob = "error") -> None:
        super().__init__()
        self.oob = oob
        self.constants: dict[Value, relax.Var] = {}
        self.functions: dict[Any, tirx.PrimFunc] = {}
        self._exprs: dict[Value, relax.Expr] = {}
        self._raw: dict[Value, relax.Var] = {}
        self._fresh = itertools.count()

    # ---- reading the graph

    def parameter(self, value: Value) -> relax.Var:
        """A new function parameter that stands for `value`; sizes named in its type are bound."""
        if not isinstance(value.type, TensorType) or value.type.shape is None:
            kind = "has no known rank" if isinstance(value.type, TensorType) else "is not a tensor"
            raise UnsupportedOpError(
                "Input",
                f"{kind} ({value.type}); give it a fixed rank when exporting",
                (value.name,),
            )
        if value.dtype not in DTYPES:
            unread = "" if value.uses else "; nothing reads it: take it out of the model's inputs"
            raise UnsupportedOpError("Input", _no_code_for(value.dtype) + unread, (value.name,))
        for dim in value.type.shape:
            if isinstance(dim, Sym):
                self.name_size(dim)
        type_ = relax.TensorType(self.shape(value), outside(value.dtype))
        parameter = relax.Var(_identifier(value.name), type_)
        (self._exprs if outside(value.dtype) == value.dtype else self._raw)[value] = parameter
        return parameter

    def expr(self, value: Value) -> relax.Expr:
        """The Relax expression of a value, computed from its content where that is all there is.

        Raises:
            UnsupportedOpError: its dtype has no machine form.
        """
        found = self._exprs.get(value)
        if found is not None:
            return found
        if value in self._raw:
            found = self.reinterpreted(self._raw[value], value.dtype)
        elif value.const is not None:
            found = self._constant(value)
        elif value.content is not None:
            found = self._from_content(value)
        else:
            raise AssertionError(f"{value} is used before it is lowered")
        self._exprs[value] = found
        return found

    def moved(self, value: Value) -> relax.Expr:
        """The same of a value that is not computed with: bfloat16 as the bits, uint16.

        A large constant is then read where it lies, and not made bfloat16 as a whole.
        """
        if value in self._raw:
            return self._raw[value]
        if value.dtype == "bfloat16" and value.const is not None and value not in self._exprs:
            return self.reinterpreted(self.stored(value), "uint16")
        return self.reinterpreted(self.expr(value), outside(value.dtype))

    def dim(self, dim: Dim) -> Any:
        """A size as an int or an int64 PrimExpr.

        Raises:
            UnsupportedOpError: it depends on a size that nothing has bound.
        """
        try:
            return evaluated(dim, self.sizes)
        except UnboundSizeError as error:
            raise self.unsupported(f"the size {error.name!r} is known only at run time") from None

    def shape(self, value: Value) -> list[Any]:
        """The shape of a value as ints and PrimExprs.

        Raises:
            UnsupportedOpError: its rank is unknown, or a size is known only at run time.
        """
        if not isinstance(value.type, TensorType) or value.type.shape is None:
            raise self.unsupported(f"the rank of {value.name!r} is known only at run time")
        return [self.dim(dim) for dim in value.type.shape]

    def knows(self, dim: Dim) -> bool:
        """True if every size that `dim` depends on is bound."""
        return symbols(dim) <= self.sizes.keys()

    def name_size(self, dim: Sym) -> None:
        """Make a variable for the size `dim` if it is a name that nothing has bound yet."""
        if is_name(dim) and dim.text not in self.sizes:
            self.sizes[dim.text] = tirx.Var(_identifier(dim.text), "int64")

    def bind_size(self, name: str, scalar: relax.Expr) -> tirx.Var:
        """Let the size called `name` be what an int64 tensor of one element holds at run time."""
        return self.bind_sizes([name], self.reshape(scalar, [1]))[0]

    def bind_sizes(self, names: Sequence[str], vector: relax.Expr) -> list[tirx.Var]:
        """Let the sizes called `names` be the elements of an int64 vector at run time."""
        sizes = [tirx.Var(_identifier(name), "int64") for name in names]
        # An impure call keeps fusion from moving what uses the sizes to before they are known.
        read = relax.ExternFunc("vm.builtin.tensor_to_shape")
        type_ = relax.ShapeType(ndim=len(sizes))
        shape = self.bb.emit(relax.Call(read, [vector], ty_args=[type_]))
        self.bb.match_cast(shape, relax.ShapeType(sizes))
        self.sizes.update(zip(names, sizes))
        return sizes

    def fresh_size(self, stem: str) -> str:
        """A name for `bind_sizes` that no other size has."""
        return f"{stem}.{next(self._fresh)}"

    def unsupported(self, reason: str) -> UnsupportedOpError:
        """The error that the node being lowered cannot be compiled, for the caller to raise."""
        node = self.node
        return UnsupportedOpError(node.op if node else "Graph", reason, node.where if node else ())

    def checked_dtype(self, dtype: str) -> str:
        """`dtype`, if compiled code can hold it.

        Raises:
            UnsupportedOpError: strings, 8-bit floats, 4-bit and complex types.
        """
        if dtype not in DTYPES:
            raise self.unsupported(_no_code_for(dtype))
        return dtype

    # ---- emitting

    def body(self, graph: Graph) -> list[relax.Expr]:
        """Lower the nodes of `graph` here, in order; returns its outputs.

        Inputs of a subgraph must have been given by `scope`.
        """
        for node in _needed(graph, self.sizes.keys()):
            self._lower(node)
        return [self.expr(value) for value in graph.outputs]

    def module(self, inputs: list[relax.Var], graph: Graph, outputs: Sequence[Value]) -> Any:
        """An IRModule whose `main` takes `inputs`, then the constants, and gives `outputs`."""
        with _discarding(self.bb), self.bb.function("main", inputs, pure=False):
            self.body(graph)
            results = self.results([self.expr(value) for value in outputs])
            self.bb.emit_func_output(relax.Tuple(results))
        module = self.bb.get()
        body, params = module["main"], [*inputs, *self.constants.values()]
        module["main"] = relax.Function(params, body.body, body.ret_ty, body.is_pure).with_attr(
            {"global_symbol": "main", "num_input": len(inputs)}
        )
        return module

    def within(self, loose: Collection[Value]) -> Lowering:
        """A new state for a subgraph, where the sizes are known that are known here.

        Args:
            loose: its inputs that may begin where no vector does.
        """
        inner = type(self)(self.oob)
        inner.sizes, inner.functions = dict(self.sizes), self.functions
        return inner

    @contextmanager
    def reporting(self) -> Iterator[list[Report]]:
        """Within, what kernels report is for a part of the program that may not run.

        Yields a list that after it has what the part has to give for that.
        """
        yield []

    def report(self, broken: relax.Expr, messages: Sequence[str]) -> None:
        """Let the program report what a part of it gives for that."""
        raise NotImplementedError

    @contextmanager
    def scope(self, values: dict[Value, relax.Expr], *, function: bool = False) -> Iterator[None]:
        """What is lowered within is not visible after it; `values` are visible only within.

        Args:
            function: nothing from outside is visible, neither expressions nor sizes.
        """
        outer = self._exprs, self.sizes
        self._exprs = values if function else {**self._exprs, **values}
        self.sizes = {} if function else dict(self.sizes)
        try:
            yield
        finally:
            self._exprs, self.sizes = outer

    def constant(self, array: np.ndarray) -> relax.Expr:
        """An array made while lowering, such as packed weights."""
        return self.expr(Graph().constant(array))

    # ---- inner workings

    def _lower(self, node: Node) -> None:
        converter = converter_of(node.op_type, node.domain, self.target)
        outer, self.node = self.node, node
        try:
            if converter is None:
                raise self.unsupported(
                    "the target has no code for this op; --target onnxruntime keeps it"
                )
            for value in (*node.inputs, *node.outputs):
                if value is not None and isinstance(value.type, TensorType) and value.rank is None:
                    hint = _OPEN_RANKS.get(node.op, "")
                    why = f"the rank of {value.name!r} is known only at run time{hint}"
                    raise self.unsupported(why)
            result = converter(self, node)
        finally:
            self.node = outer
        outputs = result if isinstance(result, (list, tuple)) else [result]
        self._exprs.update(zip(node.outputs, outputs))

    def _constant(self, value: Value) -> relax.Expr:
        return self.reinterpreted(self.stored(value), value.dtype)

    def stored(self, value: Value) -> relax.Expr:
        """A constant as it is handed over: bfloat16 as uint16, unless it is part of the code."""
        array = value.const
        assert array is not None
        dtype = self.checked_dtype(value.dtype)
        if array.size <= EMBEDDED_ELEMENTS:
            return relax.const(np.ascontiguousarray(array).reshape(array.shape), dtype)
        if value not in self.constants:
            type_ = relax.TensorType(array.shape, outside(dtype))
            self.constants[value] = relax.Var(f"const{len(self.constants)}", type_)
        return self.constants[value]

    def _from_content(self, value: Value) -> relax.Expr:
        content = value.content
        assert content is not None
        array = as_array(content, value.dtype)
        if array is not None:
            return self.constant(array.astype(dtype_to_numpy(value.dtype)))
        elements = [int64(self.dim(dim)) for dim in content.flat]
        shape = content.shape
        return self.te(lambda: chosen_by_place(elements, shape, value.dtype), name="sizes")


def _no_code_for(dtype: str) -> str:
    return f"tensors of type {dtype or 'unknown'} are not compiled"


def _needed(graph: Graph, known: Collection[str]) -> list[Node]:
    """The nodes that must run, in order: for their outputs, or for the sizes that they find.

    A value with content is not computed from its operands but from the sizes it stands for.

    Args:
        known: sizes that no node has to find.
    """
    wanted = set(graph.outputs)
    sizes = _in_contents(graph.outputs)
    needed: list[Node] = []
    for node in reversed(list(graph.nodes)):
        found = _in_types(node.outputs) - _in_types(node.operands) - _in_contents(node.operands)
        is_wanted = any(v in wanted and v.content is None for v in node.outputs)
        if not is_wanted and not found.difference(known) & sizes:
            continue
        needed.append(node)
        inner = [n for subgraph in node.subgraphs for n in subgraph.walk()]
        read = [value for reader in (node, *inner) for value in reader.operands]
        wanted.update(read)
        wanted.update(v for subgraph in node.subgraphs for v in subgraph.outputs)
        sizes |= _in_types(node.outputs) | _in_contents(read)
        sizes -= found
    return needed[::-1]


def _in_types(values: Iterable[Value]) -> set[str]:
    """The names of sizes in the shapes of `values`."""
    types = (value.type for value in values)
    shapes = (type_.shape for type_ in types if isinstance(type_, TensorType))
    return set().union(*(symbols(dim) for shape in shapes for dim in shape or ()))


def _in_contents(values: Iterable[Value]) -> set[str]:
    """The names of sizes in the contents of `values`."""
    contents = (value.content for value in values if value.content is not None)
    return set().union(*(symbols(dim) for content in contents for dim in content.flat))


def _identifier(name: str) -> str:
    """`name` as generated code may spell it."""
    plain = "".join(c if c.isascii() and (c.isalnum() or c == "_") else "_" for c in name)
    return plain if plain and not plain[0].isdigit() else f"_{plain}"
