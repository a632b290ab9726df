"""What holds of every pass, on random graphs."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.ir.graph import Graph
from graphopt.ir.onnx_io import from_proto, to_proto
from graphopt.passes.canonicalize import Canonicalize
from graphopt.pipeline import presets
from graphopt.pipeline.base import Fidelity
from graphopt.pipeline.manager import PassManager
from graphopt.pipeline.registry import passes
from graphopt.pipeline.spec import Fixpoint, Pipeline
from graphopt.testing import (
    assert_keeps_outputs,
    assert_same_outputs,
    dump,
    graphs,
    random_inputs,
    run_onnxruntime,
)

EXACT = [name for name, cls in passes().items() if cls.fidelity is Fidelity.EXACT]
OTHER = [name for name in passes() if name not in EXACT]

batches = st.sampled_from([1, 3])
seeds = st.integers(0, 3)


@pytest.mark.parametrize("name", EXACT)
@settings(max_examples=15)
@given(graph=graphs(), batch=st.sampled_from([0, 1, 3]), seed=seeds)
def test_an_exact_pass_keeps_every_bit(name: str, graph: Graph, batch: int, seed: int) -> None:
    assert_keeps_outputs(passes()[name](), graph, sizes={"N": batch}, seed=seed)


@pytest.mark.parametrize("name", OTHER)
@settings(max_examples=15)
@given(graph=graphs(), batch=batches, seed=seeds)
def test_any_other_pass_keeps_to_its_tolerance(
    name: str, graph: Graph, batch: int, seed: int
) -> None:
    assert_keeps_outputs(passes()[name](), graph, sizes={"N": batch}, seed=seed)


def assert_pipeline_keeps_outputs(
    pipeline: Pipeline, graph: Graph, batch: int, seed: int, fidelity: Fidelity
) -> None:
    feeds = random_inputs(graph, {"N": batch}, seed)
    wanted = run_onnxruntime(graph, feeds)
    PassManager().run(graph, pipeline)
    assert_same_outputs(run_onnxruntime(graph, feeds), wanted, fidelity)
    assert not PassManager().run(graph, pipeline), "a second run changes something"


@settings(max_examples=25)
@given(graph=graphs(max_steps=20), batch=batches, seed=seeds)
def test_o1_keeps_every_bit(graph: Graph, batch: int, seed: int) -> None:
    assert_pipeline_keeps_outputs(presets.O1, graph, batch, seed, Fidelity.EXACT)


@settings(max_examples=15)
@given(graph=graphs(max_steps=20), batch=batches, seed=seeds)
def test_o3_keeps_to_the_tolerance(graph: Graph, batch: int, seed: int) -> None:
    assert_pipeline_keeps_outputs(presets.O3, graph, batch, seed, Fidelity.REASSOCIATES)


@settings(max_examples=25)
@given(
    graph=graphs(),
    names=st.lists(st.sampled_from(EXACT), min_size=1, max_size=8, unique=True),
    batch=batches,
    seed=seeds,
)
def test_exact_passes_work_in_any_order_and_without_each_other(
    graph: Graph, names: list[str], batch: int, seed: int
) -> None:
    pipeline = Pipeline((Fixpoint(tuple(passes()[name]() for name in names)),))
    assert_pipeline_keeps_outputs(pipeline, graph, batch, seed, Fidelity.EXACT)


@settings(max_examples=25)
@given(graph=graphs())
def test_export_and_import_give_the_graph_back(graph: Graph) -> None:
    # An output that is an input, or another output too, is exported by way of an Identity.
    texts = []
    for version in (from_proto(to_proto(graph)), graph):
        PassManager().run(version, Pipeline((Canonicalize(),)))
        texts.append(dump(version))
    assert texts[0] == texts[1]
