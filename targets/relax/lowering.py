"""Graph → Relax module with symbolic sizes.

Every op is emitted through TE with the output shape that the IR inferred, so Relax never has to prove
anything about sizes. Shape arithmetic is not lowered at all where a value's content is known: sizes
are read off the inputs. Constants become parameters, in the order of `Lowered.constants`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from tvm import relax, te, tirx

from graphopt.errors import UnsupportedOpError
from graphopt.ir import dims
from graphopt.ir.dims import Dim, Sym
from graphopt.ir.graph import Graph, Node, Value
from graphopt.ir.types import TensorType

Oob = Literal["error", "clamp", "zero"]
Converter = Callable[["Lowering", Node], "relax.Expr | Sequence[relax.Expr]"]

_CONVERTERS: dict[tuple[str, str], Converter] = {}


def lowers(*ops: str, domain: str = "") -> Callable[[Converter], Converter]:
    """Register the converter of ops. It returns the node's output, or a sequence of them."""

    def register(converter: Converter) -> Converter:
        for op in ops:
            assert (domain, op) not in _CONVERTERS, f"two converters for {domain}::{op}"
            _CONVERTERS[(domain, op)] = converter
        return converter

    return register


@dataclass(frozen=True)
class Lowered:
    """A Relax module and what it must be called with.

    Attributes:
        module: an IRModule whose `main` takes the graph's inputs, then the constants.
        constants: the constants, in parameter order.
    """

    module: Any
    constants: tuple[Value, ...]


class Lowering:
    """The state of lowering one graph; what converters build with.

    Attributes:
        bb: the Relax block builder.
        oob: what an id outside its table does.
    """

    def __init__(self, oob: Oob = "error") -> None:
        self.bb = relax.BlockBuilder()
        self.oob = oob
        self._exprs: dict[Value, relax.Expr] = {}
        self._sizes: dict[str, tirx.Var] = {}
        self._constants: dict[Value, relax.Var] = {}

    # ---- reading the graph

    def expr(self, value: Value) -> relax.Expr:
        """The Relax expression of a value."""
        raise NotImplementedError

    def dim(self, dim: Dim) -> Any:
        """A size as an int or an int64 PrimExpr."""
        raise NotImplementedError

    def shape(self, value: Value) -> list[Any]:
        """The shape of a value as ints and PrimExprs.

        Raises:
            UnsupportedOpError: its rank is unknown, or a size is known only at run time.
        """
        raise NotImplementedError

    # ---- emitting

    def te(self, function: Callable[..., Any], *args: relax.Expr, name: str = "") -> relax.Var:
        """Emit one TE computation: `function(*te_tensors) -> te.Tensor | tuple of them`."""
        raise NotImplementedError

    def kernel(
        self, function: tirx.PrimFunc, args: Sequence[relax.Expr], out: Sequence[tuple[list[Any], str]]
    ) -> Sequence[relax.Expr]:
        """Emit a call of a TIR kernel that writes outputs of the given (shape, dtype)."""
        raise NotImplementedError
