"""Every op of our own that is lowered says what it costs, so that profiles and floors are whole."""

from __future__ import annotations

from graphopt.analysis.cost import rule_of
from graphopt.targets.cpu import DOMAIN, legalize
from graphopt.targets.relax import converters, ops


def test_every_op_of_the_target_has_a_cost() -> None:
    assert legalize and ops  # importing them registers the ops
    names = ((domain, op) for _, domain, op in converters._CONVERTERS)
    lowered = {name for name in names if name[0] in (DOMAIN, "graphopt")}
    assert lowered
    assert [name for name in lowered if rule_of(name[1], name[0]) is None] == []
