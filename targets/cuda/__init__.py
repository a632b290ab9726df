"""The CUDA target: code for NVIDIA GPUs, built on any machine."""

from graphopt.targets import compiler

compiler.load()

DOMAIN = "graphopt.cuda"
"""Ops that exist only between legalization and lowering; no file ever holds them."""
