"""Ops without a converter, replaced by the function body that their ONNX schema gives."""

from __future__ import annotations

from graphopt.ir.graph import Graph


def expand_functions(graph: Graph) -> None:
    """TODO"""
