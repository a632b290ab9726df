"""Rewrite rules: a pattern in ONNX terms and a function that builds the replacement."""

from graphopt.rewrite.driver import RewriteStats, rewrite
from graphopt.rewrite.pattern import NoMatch, Pattern, Rule, const, op, rule, var
from graphopt.rewrite.rewriter import Rewriter

__all__ = [
    "NoMatch",
    "Pattern",
    "RewriteStats",
    "Rewriter",
    "Rule",
    "const",
    "op",
    "rewrite",
    "rule",
    "var",
]
