"""The public names, pinned: adding or removing one is a deliberate change of this file."""

from __future__ import annotations

import pytest

import graphopt

PUBLIC = [
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


def test_public_names() -> None:
    assert sorted(graphopt.__all__) == sorted(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_name_resolves_and_is_documented(name: str) -> None:
    assert (getattr(graphopt, name).__doc__ or "").strip()


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        _ = graphopt.nonsense
