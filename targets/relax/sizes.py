"""Symbolic sizes as expressions of compiled code."""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping, Sequence
from typing import Any

from tvm import te, tirx

from graphopt.ir.dims import Atom, Dim
from graphopt.targets.relax.primfunc import compute, int64


class UnboundSizeError(Exception):
    """No variable stands for the size called `name`."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


def evaluated(dim: Dim, bound: Mapping[str, tirx.Var]) -> Any:
    """A size as an int or an int64 PrimExpr of the variables that stand for the names in it.

    Raises:
        UnboundSizeError: one of the names has none.
    """
    if isinstance(dim, int):
        return dim
    terms = []
    for monomial, coefficient in dim.terms.items():
        factors = [_of_atom(atom, bound) for atom in monomial]
        if coefficient != 1 or not factors:
            factors.append(tirx.IntImm("int64", coefficient))
        terms.append(functools.reduce(operator.mul, factors))
    return functools.reduce(operator.add, terms)


def _of_atom(atom: Atom, bound: Mapping[str, tirx.Var]) -> Any:
    if not atom.fn:
        if atom.name not in bound:
            raise UnboundSizeError(atom.name)
        return bound[atom.name]
    a, b = (int64(evaluated(arg, bound)) for arg in atom.args)
    return {"floordiv": tirx.floordiv, "min": tirx.min, "max": tirx.max}[atom.fn](a, b)


def chosen_by_place(elements: Sequence[Any], shape: Sequence[int], dtype: str) -> te.Tensor:
    """A small tensor of expressions, in the order of its elements."""

    def element(*indices: Any) -> Any:
        flat: Any = 0
        for index, size in zip(indices, shape):
            flat = flat * size + index
        chosen = elements[-1].astype(dtype)
        for k in reversed(range(len(elements) - 1)):
            chosen = tirx.if_then_else(flat == k, elements[k].astype(dtype), chosen)
        return chosen

    return compute(shape, element, "sizes")
