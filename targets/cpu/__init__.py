"""The CPU target: Relax lowering, kernels of our own, LLVM code generation."""

from graphopt.targets import compiler

compiler.load()

DOMAIN = "graphopt.cpu"
"""Ops that exist only between legalization and lowering; no file ever holds them."""
