"""The Before/After in the docstring of every pass is what the pass does."""

from __future__ import annotations

import inspect
import re
import textwrap

import pytest

from graphopt.pipeline.base import Pass, needs
from graphopt.pipeline.registry import passes
from graphopt.testing import assert_rewrites

_EXAMPLE = re.compile(r"^Before:\n(.*?)\n\s*^After:\n(.*?)(?=^\S|\Z)", re.S | re.M)


def examples(cls: type[Pass]) -> list[tuple[str, str]]:
    """The texts before and after, as the docstring gives them."""
    found = _EXAMPLE.findall(inspect.getdoc(cls) or "")
    return [(textwrap.dedent(before), textwrap.dedent(after)) for before, after in found]


@pytest.mark.parametrize("name", passes())
def test_the_docstring_is_true(name: str) -> None:
    cls = passes()[name]
    found = examples(cls)
    assert found, f"the docstring of {name} has no Before/After"
    for before, after in found:
        assert_rewrites(cls(), before, after)


@pytest.mark.parametrize("name", passes())
def test_the_docstring_says_what_the_pass_may_do_to_answers(name: str) -> None:
    cls = passes()[name]
    words = " ".join((inspect.getdoc(cls) or "").split())
    assert f"Fidelity: {cls.fidelity.value}" in words


@pytest.mark.parametrize("name", passes())
def test_the_docstring_says_what_the_pass_needs(name: str) -> None:
    assert needs(passes()[name]), f"the docstring of {name} lacks a sentence 'Needs ….'"


@pytest.mark.parametrize("name", passes())
def test_every_rule_has_a_one_line_description(name: str) -> None:
    for rule in getattr(passes()[name], "rules", ()):
        assert "->" in rule.doc, f"{rule.name} does not say what it turns into what"
