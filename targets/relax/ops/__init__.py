"""Converters from ONNX ops to Relax, one module per family of ops."""

from graphopt.targets.relax.ops import (  # noqa: F401  (importing registers the converters)
)
