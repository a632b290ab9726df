"""From a graph to a Relax module: shared by the targets that generate code with TVM."""

from graphopt.targets import compiler

compiler.load()
