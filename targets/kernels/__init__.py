"""What kernels of every kind of target share: what they compute, and how they are written."""

from graphopt.targets import compiler

compiler.load()
