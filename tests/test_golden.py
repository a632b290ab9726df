"""Small models of the usual families through the presets: the resulting graphs, word for word.

After a change that is meant to change them, run `pytest tests/test_golden.py --update-golden` and
read the difference.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from graphopt.ir.graph import Graph
from graphopt.pipeline import presets
from graphopt.pipeline.base import Fidelity
from graphopt.pipeline.manager import PassManager, size_of
from graphopt.testing import (
    assert_same_outputs,
    dump,
    parse,
    random_inputs,
    run_onnxruntime,
)

FOLDER = Path(__file__).parent / "golden"
MODELS = sorted(path.parent.name for path in FOLDER.glob("*/source.txt"))
FIDELITY = {"O1": Fidelity.EXACT, "O2": Fidelity.REASSOCIATES, "O3": Fidelity.REASSOCIATES}


def source(model: str) -> Graph:
    lines = (FOLDER / model / "source.txt").read_text().splitlines()
    return parse("\n".join(line for line in lines if not line.startswith("#")))


@pytest.mark.parametrize("level", FIDELITY)
@pytest.mark.parametrize("model", MODELS)
def test_golden(model: str, level: str, request: pytest.FixtureRequest) -> None:
    graph = source(model)
    feeds = [random_inputs(graph, {"bags": 3, "nnz": 8, "s2": 5}, seed) for seed in range(3)]
    wanted = [run_onnxruntime(graph, feed) for feed in feeds]
    before = size_of(graph).nodes
    PassManager().run(graph, getattr(presets, level))
    for feed, outputs in zip(feeds, wanted):
        assert_same_outputs(run_onnxruntime(graph, feed), outputs, FIDELITY[level])
    text = f"{before} nodes before, {size_of(graph).nodes} after {level}\n{dump(graph)}"
    path = FOLDER / model / f"{level}.txt"
    if request.config.getoption("--update-golden"):
        path.write_text(text)
    assert path.exists(), "no golden file; make it with --update-golden"
    assert text == path.read_text()
    assert not PassManager().run(graph, getattr(presets, level)), "a second run changes something"


def test_there_is_no_golden_file_without_a_test() -> None:
    wanted = {FOLDER / m / f"{level}.txt" for m in MODELS for level in (*FIDELITY, "source")}
    assert set(FOLDER.rglob("*.*")) == wanted
