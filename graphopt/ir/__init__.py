"""The intermediate representation: graphs of nodes and values with their own exact edges."""

from graphopt.ir import broadcast, control, movement, trees, windows  # noqa: F401  (type rules)
from graphopt.ir.dims import Dim, Sym
from graphopt.ir.graph import Graph, Node, Use, Value
from graphopt.ir.types import OptionalType, SequenceType, TensorType, Type

__all__ = [
    "Dim",
    "Graph",
    "Node",
    "OptionalType",
    "SequenceType",
    "Sym",
    "TensorType",
    "Type",
    "Use",
    "Value",
]
