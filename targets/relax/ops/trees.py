"""Ensembles of decision trees: what every target asks of one."""

from __future__ import annotations

from graphopt.ir.graph import Node, Value
from graphopt.ir.trees import Forest, forest_of
from graphopt.targets.relax.lowering import Lowering
from graphopt.targets.relax.operands import tensor_input


def operands(lower: Lowering, node: Node) -> tuple[Value, Forest]:
    """The samples, float32 [rows, features], and the trees, which compare no other features.

    Raises:
        UnsupportedOpError: the samples are not so, or the trees are not for `forest_of`.
        InvalidModelError: its attributes are not those of trees.
    """
    x, forest = tensor_input(node, 0), forest_of(node)
    if x.dtype != "float32" or x.rank != 2:
        raise lower.unsupported(f"features of {x.dtype} in {x.rank} axes; cast them to float")
    columns = x.tensor.dims[1]
    if not isinstance(columns, int) or columns <= int(forest.feature.max()):
        raise lower.unsupported("its input is not known to have all features that trees compare")
    return x, forest
