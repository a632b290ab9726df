"""Subgraphs as calls of kernels within one kernel: what runs many times, or perhaps not at all.

The program around sees one kernel, so what is done to programs holds for loops and branches as
well: memory is planned, sizes are computed once, calls are timed. And as a subgraph is lowered like
a program, loops and branches hold one another.

Where kernels run on another device, what calls them runs on the host (`cuda/launching`): numbers
that it decides by then lie on either side, and are brought over.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import tvm
from tvm import relax, s_tir, tirx
from tvm_ffi import structural_map

from graphopt.ir.graph import Graph, Value
from graphopt.targets.kernels.storage import element_bytes
from graphopt.targets.relax.build import fuse
from graphopt.targets.relax.direct import DirectKernel, at
from graphopt.targets.relax.loops import free_sizes
from graphopt.targets.relax.lowering import OPAQUE, Lowering, int64
from graphopt.targets.relax.primfunc import sequence, with_root
from graphopt.targets.relax.reader import Root, read
from graphopt.targets.relax.schedule import schedule
from graphopt.targets.relax.straight import Writer, buffer_of, unaligned
from graphopt.targets.relax.workspace import LINE

_FAR = 1 << 40  # bytes; how much scratch there is shows last


@dataclass
class Caller:
    """A kernel in the making that calls others, on a CPU.

    Attributes:
        args, buffers: what it is given, and the buffers that stand for it.
        outs: the buffers that it writes.
        attributes: of the kernel.
    """

    attributes: ClassVar[dict[str, Any]] = {}

    lower: Lowering
    args: list[relax.Expr] = field(default_factory=list)
    buffers: list[Any] = field(default_factory=list)
    outs: list[Any] = field(default_factory=list)
    _used: Any = field(default_factory=lambda: int64(LINE))  # there is some
    _scratch: Any = field(default_factory=lambda: buffer_of((int64(_FAR),), "uint8", "scratch"))

    def given(self, expr: relax.Expr) -> Any:
        """The buffer that stands for a value of the program around."""
        for arg, buffer in zip(self.args, self.buffers):
            if arg is expr:
                return buffer
        name = f"given{len(self.args)}"
        self.args.append(expr)
        self.buffers.append(_buffer(expr.ty.shape.values, str(expr.ty.dtype), name))
        return self.buffers[-1]

    def output(self, shape: Sequence[Any], dtype: str) -> Any:
        """A buffer for a result."""
        self.outs.append(_buffer(shape, dtype, f"result{len(self.outs)}"))
        return self.outs[-1]

    def room(self, size: Any) -> Any:
        """The place of `size` bytes of scratch."""
        place = self._used
        self._used = place + (int64(size) + (LINE - 1)) // LINE * LINE
        return place

    def scratch(self, place: Any) -> Any:
        """The address of a byte of scratch."""
        return tirx.address_of(self._scratch[place])

    def number(self, dtype: str) -> tuple[Any, list[Any]]:
        """A number that the kernel itself keeps, and the statements that make room for it."""
        buffer = buffer_of((int64(1),), dtype, "number")
        return buffer, [at(buffer, self.scratch(self.room(int64(element_bytes(dtype)))))]

    def value(self, expr: relax.Expr) -> tuple[Any, list[Any]]:
        """A tensor of one element as a number, and the statements that bring it here."""
        return self.given(self.lower.reshape(expr, []))[()], []

    def shown(self, number: Any) -> tuple[Any, list[Any]]:
        """Where kernels read a number, and the statements that bring it there."""
        return tirx.address_of(number), []

    def told(self, number: Any) -> tuple[Any, list[Any]]:
        """Where kernels write a number, and the statements that bring it from there."""
        return tirx.address_of(number), []

    def noted(self, number: Any) -> list[Any]:
        """The statements that make a number one more output."""
        output = self.output([1], str(number.ty.dtype))
        return [tirx.BufferStore(output, number[0], [0])]

    def copied(self, to: Any, source: Any, size: Any) -> Any:
        """The statement that copies `size` bytes from one address to another."""
        return tirx.Evaluate(tirx.call_extern("handle", "memcpy", to, source, int64(size)))

    def scheduled(self, module: tvm.IRModule) -> tvm.IRModule:
        """A module of fused kernels as the target runs them."""
        return schedule(module)

    def direct(self, name: str, kernel: tirx.PrimFunc) -> DirectKernel:
        """A scheduled kernel as this one calls it."""
        return DirectKernel(name, unaligned(kernel))

    def reported(self, inner: Lowering) -> Any:
        """Where a body writes what it has to report, which `inner` has lowered."""
        raise NotImplementedError

    def emit(self, statements: Sequence[Any]) -> list[relax.Expr]:
        """Emit the call of a kernel that does `statements`; returns its outputs."""
        scratch = _buffer((self._used,), "uint8", "room")
        outs = [*self.outs, scratch]
        body = sequence([at(self._scratch, tirx.address_of(scratch)), *statements])
        kernel = tirx.PrimFunc([*self.buffers, *outs], body)
        shapes = [list(buffer.ty.shape) for buffer in (*self.buffers, *outs)]
        free = free_sizes(kernel, shapes)
        kernel = tirx.PrimFunc([*self.buffers, *free, *outs], body)
        kernel = with_root(kernel).with_attr(
            {"tirx.noalias": True, "s_tir": True, "op_pattern": OPAQUE, **self.attributes}
        )
        kinds = [(buffer.ty.shape, str(buffer.ty.dtype)) for buffer in outs]
        return list(self.lower.kernel(s_tir.renew_defs(kernel), [*self.args, *free], kinds))[:-1]


class Body(Writer):
    """A subgraph as calls of kernels.

    Attributes:
        inputs, outputs: the memory of what the caller gives and takes.
        places: the address of each of these, for the caller to set.
    """

    def __init__(
        self,
        caller: Caller,
        graph: Graph,
        inputs: Sequence[Value],
        outputs: Sequence[Value],
        given: Mapping[Value, relax.Expr],
        loose: Collection[Value] = (),
    ) -> None:
        """
        Args:
            given: inputs of `graph` that are values of the program around.
            loose: inputs that may begin where no vector does.

        Raises:
            NotStraightError: it is more than calls of kernels.
            UnsupportedOpError: it cannot be compiled.
        """
        lower = caller.lower
        captured = {value: lower.moved(value) for value in _captured(graph)} | dict(given)
        inner = lower.within(loose)
        # There for its shape alone: it says which sizes the program around knows.
        known = list(dict.fromkeys(lower.sizes.values()))
        sizes = relax.Var("sizes", relax.TensorType(known, "bool"))
        params = [sizes, *(inner.parameter(value) for value in (*inputs, *captured))]
        module = caller.scheduled(fuse(inner.module(params, graph, outputs), {})[0])
        program = read(module)
        if program is None:
            raise NotStraightError
        prefix = f"body{len(lower.functions)}"
        kernels = {
            name.name_hint: caller.direct(f"{prefix}_{name.name_hint}", kernel)
            for name, kernel in module.functions.items()
            if isinstance(kernel, tirx.PrimFunc)
        }
        lower.functions.update((kernel.name, kernel.function) for kernel in kernels.values())
        super().__init__(program, kernels)
        constants = [lower.stored(value) for value in inner.constants]
        self._weights = [caller.given(expr) for expr in (*constants, *program.embedded)]
        roots = [tensor.root for tensor in program.inputs[1:]]
        self.inputs, around = roots[: len(inputs)], roots[len(inputs) :]
        roots = [tensor.root for tensor in program.outputs]
        self.outputs, reports = roots[: len(outputs)], roots[len(outputs) :]
        self.places = {
            root: tirx.address_of(caller.given(expr))
            for root, expr in zip(around, captured.values())
        }
        self.places |= {root: caller.reported(inner) for root in reports}
        own = program.inputs[0].type.shape.values
        self._sizes = {mine: size for mine, size in zip(own, known) if not mine.same_as(size)}
        needed = structural_map(self.needed, (tirx.Var, lambda var: self._sizes.get(var, var)))
        self._caller, self._start = caller, caller.room(needed)

    def address(self, root: Root) -> Any:
        if root.weight is not None:
            return tirx.address_of(self._weights[root.weight])
        if root.slot is None:
            return self.places[root]
        return self._caller.scratch(self.scalar(self._start + self.offsets[root.slot]))

    def statements(self) -> tuple[list[Any], list[Any]]:
        """What to do once before it, and what computes it."""
        calls = [statement for call in self.program.calls for statement in self.called(call)]
        return [tirx.Bind(*pair) for pair in self._sizes.items()] + self.scalars, calls


class NotStraightError(Exception):
    """A subgraph is more than a list of kernel calls with sizes that are known around it."""


def _buffer(shape: Sequence[Any], dtype: str, name: str) -> Any:
    sizes, align = [int64(size) for size in shape], element_bytes(dtype)
    # A layout would keep the sizes' old names when they are renewed.
    return tirx.decl_buffer(sizes, dtype, name, data_alignment=align, layout=None)


def _captured(graph: Graph) -> list[Value]:
    """The values that are computed around a graph and read in it."""
    graphs = [graph, *(inner for node in graph.walk() for inner in node.subgraphs)]
    nodes = list(graph.walk())
    own = {value for node in nodes for value in node.outputs}
    own.update(value for each in graphs for value in each.inputs)
    read_ = [value for node in nodes for value in node.inputs]
    read_ += [value for each in graphs for value in each.outputs]
    return [
        value
        for value in dict.fromkeys(read_)
        if value is not None and value not in own and value.const is None and value.content is None
    ]
