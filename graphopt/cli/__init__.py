"""The command line: `graphopt VERB …`. Each verb is a thin wrapper on the library."""

from graphopt.cli.app import app, main

__all__ = ["app", "main"]
