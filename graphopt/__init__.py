"""graphopt: an optimizing compiler for ONNX recommendation and ranking models.

    import graphopt

    artifact = graphopt.compile("model.onnx", "cpu", output="model.gopt")
    scores = graphopt.load("model.gopt").run({"user": users, "item": items})

Importing graphopt loads neither a compiler nor a runtime; names are imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphopt.accuracy.budget import Budget
    from graphopt.api import check, compile, optimize
    from graphopt.checking.comparison import Comparison
    from graphopt.errors import GraphoptError
    from graphopt.explanation import Explanation, explain
    from graphopt.ir.graph import Graph, Node, Value
    from graphopt.ir.types import TensorType
    from graphopt.pipeline.base import Fidelity, Pass, RewritePass
    from graphopt.pipeline.report import Report
    from graphopt.pipeline.spec import Pipeline
    from graphopt.serving.artifact import Artifact
    from graphopt.serving.loading import load
    from graphopt.targets.base import Target
    from graphopt.targets.tuning.options import Tuning

_HOMES = {
    "Artifact": "graphopt.serving.artifact",
    "Budget": "graphopt.accuracy.budget",
    "Comparison": "graphopt.checking.comparison",
    "Explanation": "graphopt.explanation",
    "Fidelity": "graphopt.pipeline.base",
    "Graph": "graphopt.ir.graph",
    "GraphoptError": "graphopt.errors",
    "Node": "graphopt.ir.graph",
    "Pass": "graphopt.pipeline.base",
    "Pipeline": "graphopt.pipeline.spec",
    "Report": "graphopt.pipeline.report",
    "RewritePass": "graphopt.pipeline.base",
    "Target": "graphopt.targets.base",
    "Tuning": "graphopt.targets.tuning.options",
    "TensorType": "graphopt.ir.types",
    "Value": "graphopt.ir.graph",
    "check": "graphopt.api",
    "compile": "graphopt.api",
    "explain": "graphopt.explanation",
    "load": "graphopt.serving.loading",
    "optimize": "graphopt.api",
}

__all__ = [
    "Artifact",
    "Budget",
    "Comparison",
    "Explanation",
    "Fidelity",
    "Graph",
    "GraphoptError",
    "Node",
    "Pass",
    "Pipeline",
    "Report",
    "RewritePass",
    "Target",
    "TensorType",
    "Tuning",
    "Value",
    "check",
    "compile",
    "explain",
    "load",
    "optimize",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'graphopt' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
