"""Builds a PyTorch module from a graph of ours, and holds the translations of ops."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import fx

from graphopt.ir.dims import Atom, Dim, Sym
from graphopt.ir.graph import Node, Value
from graphopt.ir.types import TensorType

Term = Any
"""What an argument of a call may be: an `fx.Node`, a number, or a list of these."""


class Untranslatable(Exception):
    """The model has something that is not translated; says what."""


class Builder:
    """A `torch.fx` graph that grows node by node.

    Attributes:
        graph: as far as it is built.
        root: holds the constants.
        terms: what computes each value.
    """

    def __init__(self) -> None:
        self.graph, self.root = fx.Graph(), torch.nn.Module()
        self.terms: dict[Value, fx.Node] = {}
        self._sizes: dict[str, tuple[Value, int]] = {}

    def __getitem__(self, value: Value | None) -> fx.Node:
        assert value is not None
        if value not in self.terms:
            if value.const is None:
                raise Untranslatable(f"nothing computes {value.name!r}")
            self.terms[value] = self.buffer(value.const)
        return self.terms[value]

    def define(self, value: Value, term: fx.Node) -> None:
        """`term` computes `value`, and tells the sizes that its shape is the first to have."""
        self.terms[value] = term
        shape = value.type.shape if isinstance(value.type, TensorType) else None
        for axis, dim in enumerate(shape or ()):
            name = dim.text if isinstance(dim, Sym) else None
            if name is not None and dim == Sym.named(name):
                self._sizes.setdefault(name, (value, axis))

    def define_all(self, values: Sequence[Value], terms: fx.Node | Sequence[fx.Node]) -> None:
        """The same for all outputs of a node, or as many as the rule gives."""
        for value, term in zip(values, [terms] if isinstance(terms, fx.Node) else terms):
            self.define(value, term)

    def call(self, function: Callable[..., Any], *arguments: Term, **options: Term) -> fx.Node:
        """What `function` makes of the arguments."""
        return self.graph.call_function(function, arguments, options)

    def method(self, name: str, *arguments: Term, **options: Term) -> fx.Node:
        """What method `name` of the first argument makes of the others."""
        return self.graph.call_method(name, arguments, options)

    def buffer(self, array: np.ndarray) -> fx.Node:
        """A constant, which moves with the module."""
        name = f"c{len(list(self.root.buffers()))}"
        # Mapped files are read-only, which torch does not know of.
        self.root.register_buffer(name, torch.from_numpy(np.array(array, order="C")))
        return self.graph.get_attr(name)

    # ---- numbers that are known when the graph is built, or follow from sizes

    def size(self, dim: Dim) -> Term:
        """A size as a number, or as what computes it from the sizes of tensors.

        Raises:
            Untranslatable: no tensor has it.
        """
        if isinstance(dim, int):
            return dim
        terms = []
        for monomial, coefficient in dim.terms.items():
            factors = [*map(self._atom, monomial), *([coefficient] if coefficient != 1 else [])]
            terms.append(reduce(lambda a, b: self.call(operator.mul, a, b), factors))
        return reduce(lambda a, b: self.call(operator.add, a, b), terms)

    def _atom(self, atom: Atom) -> Term:
        if atom.fn:
            functions = {"floordiv": operator.floordiv, "min": min, "max": max}
            return self.call(functions[atom.fn], *map(self.size, atom.args))
        if atom.name not in self._sizes:
            raise Untranslatable(f"no tensor has the size {atom.name}")
        value, axis = self._sizes[atom.name]
        return self.method("size", self.terms[value], axis)

    def numbers(self, value: Value | None) -> list[Term]:
        """The elements of a small integer tensor, such as a shape.

        Raises:
            Untranslatable: they depend on more than sizes.
        """
        assert value is not None
        if value.const is not None:
            found: list[Term] = np.asarray(value.const).reshape(-1).tolist()
            return found
        if value.content is not None:
            return [self.size(dim) for dim in value.content.reshape(-1).tolist()]
        raise Untranslatable(f"{value.name!r} is no list of sizes")


Rule = Callable[[Builder, Node], "fx.Node | Sequence[fx.Node]"]
RULES: dict[str, Rule] = {}
"""By the name of the op."""


def rule(*ops: str) -> Callable[[Rule], Rule]:
    """Register the translation of ops."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(ops, function))
        return function

    return register
