"""Pipelines and their text."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.errors import SpecError
from graphopt.ir.graph import Graph
from graphopt.passes.dce import Dce
from graphopt.passes.fold_constants import FoldConstants
from graphopt.passes.unroll_loops import UnrollLoops
from graphopt.pipeline import presets, registry
from graphopt.pipeline.base import Fidelity, Pass, PassContext
from graphopt.pipeline.spec import Fixpoint, Pipeline, spec

STEPS = st.recursive(
    st.one_of(
        st.sampled_from([cls() for cls in registry.passes().values()]),
        st.integers(0, 1 << 40).map(FoldConstants),
        st.integers(0, 100).map(UnrollLoops),
    ),
    lambda inner: st.lists(inner, min_size=1, max_size=3).map(lambda s: Fixpoint(tuple(s))),
    max_leaves=6,
)


@pytest.mark.parametrize("name", ["fuse-gemm", "raise-embedding-bag", "dce"])
def test_a_pass_is_taken_out_of_a_preset(name: str) -> None:
    text = str(Pipeline.parse(f"O2,-{name}"))
    assert name in re.findall(r"[\w-]+", str(presets.O2))
    assert name not in re.findall(r"[\w-]+", text)
    assert len(text) < len(str(presets.O2))


@given(st.lists(STEPS, max_size=4))
def test_the_text_gives_the_pipeline_back(steps: list[Pass | Fixpoint]) -> None:
    pipeline = Pipeline(tuple(steps))
    assert Pipeline.parse(str(pipeline)) == pipeline


@pytest.mark.parametrize("name", sorted(presets.PRESETS))
def test_presets_have_a_text(name: str) -> None:
    pipeline = presets.PRESETS[name]
    assert Pipeline.parse(str(pipeline)) == pipeline
    assert getattr(presets, name) is pipeline


@pytest.mark.parametrize(
    ("text", "pipeline"),
    [
        ("", Pipeline()),
        ("  ", Pipeline()),
        ("dce", Pipeline((Dce(),))),
        (" dce , cse ", Pipeline.parse("dce,cse")),
        ("fold-constants{max_growth=7}", Pipeline((FoldConstants(7),))),
        ("fold-constants{max-growth=7}", Pipeline((FoldConstants(7),))),
        ("fold-constants{ max_growth = 7 }", Pipeline((FoldConstants(7),))),
        ("fold-constants{}", Pipeline((FoldConstants(),))),
        ("O2", presets.O2),
        ("O1,dce", Pipeline((*presets.O1.steps, Dce()))),
        ("dce,fixpoint(cse),-cse,cse", Pipeline.parse("dce,cse")),
        ("fixpoint(dce,cse),-dce", Pipeline.parse("fixpoint(cse)")),
        ("fixpoint( O1 , - dce )", Pipeline((Fixpoint(Pipeline.parse("O1,-dce").steps),))),
        ("fixpoint(dce)", Pipeline((Fixpoint((Dce(),)),))),
        ("fixpoint( dce , fixpoint(dce) )", Pipeline((Fixpoint((Dce(), Fixpoint((Dce(),)))),))),
    ],
)
def test_text_is_read(text: str, pipeline: Pipeline) -> None:
    assert Pipeline.parse(text) == pipeline


@pytest.mark.parametrize(
    ("text", "message", "column"),
    [
        ("dze", "did you mean 'dce'?", 0),
        ("xyzzy", "`graphopt passes` lists them", 0),
        ("dce,,cse", "expected a pass name", 4),
        ("dce,-cse", "'cse' is not among the passes before it", 5),
        ("-dce", "'dce' is not among the passes before it", 1),
        ("O2,-fuse-gem", "did you mean 'fuse-gemm'?", 4),
        ("O1{a=1}", "expected ',' or the end", 2),
        ("dce cse", "expected ',' or the end", 4),
        ("fixpoint(dce", "expected ')'", 12),
        ("dce)", "expected ',' or the end", 3),
        ("dce{a=1}", "has no option 'a'", 4),
        ("quantize-activations{ranges=some}", "expected any or static or dynamic", 28),
        ("fold-constants{max_growth}", "expected '='", 25),
        ("fold-constants{max_growth=}", "expected a value", 26),
        ("fold-constants{max_growth=much}", "expected int, not 'much'", 26),
        ("fold-constants{max_growth=1", "expected ',' or '}'", 27),
    ],
)
def test_mistakes_are_pointed_at(text: str, message: str, column: int) -> None:
    with pytest.raises(SpecError) as raised:
        Pipeline.parse(text)
    first, source, caret = str(raised.value).splitlines()
    assert message in first
    assert source.strip() == text and caret.index("^") - 2 == column
    assert raised.value.exit_code == 2


def test_options_are_read_by_their_type(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Tuned(Pass):
        """A pass with options of several types."""

        name = "tuned"
        fidelity = Fidelity.EXACT
        ratio: float = 0.5
        fast: bool = False
        mode: str = "sum"

        def run(self, graph: Graph, ctx: PassContext) -> bool:
            return False

    monkeypatch.setattr(registry, "passes", lambda: {"tuned": Tuned})
    step = Tuned(ratio=0.25, fast=True, mode="mean")
    assert spec(step) == "tuned{ratio=0.25,fast=true,mode=mean}"
    assert Pipeline.parse(spec(step)).steps == (step,)
    with pytest.raises(SpecError, match="true or false"):
        Pipeline.parse("tuned{fast=yes}")


def test_every_pass_is_registered_under_the_name_of_its_module() -> None:
    for name, cls in registry.passes().items():
        assert cls.name == name
        assert cls.__module__ == f"graphopt.passes.{name.replace('-', '_')}"
        assert "".join(part.capitalize() for part in name.split("-")) == cls.__name__


def test_a_module_without_its_pass_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import graphopt.passes.dce as module

    registry.passes.cache_clear()
    monkeypatch.delattr(module, "Dce")
    try:
        with pytest.raises(ImportError, match="must define one pass, named 'dce'"):
            registry.passes()
    finally:
        monkeypatch.undo()
        registry.passes.cache_clear()
        registry.passes()
