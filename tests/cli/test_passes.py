"""`graphopt passes`."""

from __future__ import annotations

import pytest
from command import graphopt

from graphopt.pipeline import registry
from graphopt.pipeline.presets import PRESETS


def test_all_passes_and_presets_are_listed() -> None:
    found = graphopt("passes")
    assert (found.status, found.err) == (0, "")
    firsts = [line.split()[0] for line in found.out.splitlines() if line.strip()]
    assert set(registry.passes()) <= set(firsts)
    assert f"Presets: {', '.join(PRESETS)}\n" in found.out


@pytest.mark.parametrize("name", registry.passes())
def test_one_pass(name: str) -> None:
    found = graphopt("passes", name)
    assert found.status == 0
    assert found.out.startswith(f"{name}  (")
    assert "After:" in found.out


def test_options_and_their_defaults() -> None:
    out = graphopt("passes", "fold-constants").out
    (row,) = (line for line in out.splitlines() if line.startswith("max_growth"))
    assert row.split() == ["max_growth", "int", "1048576"]


def test_rules_are_listed() -> None:
    out = graphopt("passes", "canonicalize").out
    rules = [rule.name for rule in registry.find("canonicalize").rules]  # type: ignore[attr-defined]
    assert len(rules) > 1
    assert all(rule in out for rule in rules)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_prints_as_a_pipeline(name: str) -> None:
    from graphopt.pipeline.spec import Pipeline

    assert Pipeline.parse(graphopt("passes", name).out.strip()) == PRESETS[name]
