"""Serving from a GPU: graphs, threads, DLPack, streams, memory. See `gpu_emulator/serving.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, reduce
from pathlib import Path

import gpu_emulator
import pytest
from conftest import EXAMPLE

import graphopt
from graphopt.inspection import inspect
from graphopt.testing import parse


@dataclass(frozen=True)
class Group:
    """Cases that share a process.

    Attributes:
        artifact: which of those that `built` makes.
        settings: of the stand-ins.
    """

    artifact: str
    cases: tuple[str, ...]
    settings: dict[str, int] = field(default_factory=dict)


COMMON = (
    "batches_in_any_order",
    "several_threads",
    "inputs_on_the_gpu",
    "inputs_whose_producer_tells_its_stream",
    "outputs_on_the_gpu",
    "unfit_inputs",
    "ids_out_of_range",
    "times",
)
GRAPHS = (
    "arrays_of_a_framework",
    "arrays_at_odd_addresses",
    "outputs_over_inputs",
    "outputs_in_memory_of_the_caller",
    "a_call_is_one_launch",
    "graphs_are_bounded",
    "large_batches_make_no_graphs",
    "tables_in_host_memory",
    "kernels_one_by_one",
    "profile",
)
LOOP = """g (float[N,T,2] x, float most) => (float[N,2] last, ALL)
<float[2,2] w, int64[1] axis = {1}, bool go = {1}> {
    start = ReduceSum<keepdims=0>(x, axis) shape = Shape<start=1, end=2>(x) steps = Squeeze(shape)
    last, ROWS = Loop <body = b (int64 i, bool c, float[N,2] s) => (bool d, float[N,2] t, STACKED) {
        v = Gather<axis=1>(x, i) a = MatMul(s, w) b = Add(a, v) t = Add(b, most) CONDITION
        }> (steps, go, start)
}"""
COUNTING = {
    "ALL": "float[T,N,2] all",
    "ROWS": "all",
    "STACKED": "float[N,2] o",
    "CONDITION": "o = Neg(t) d = Identity(c)",
}
ENDING = {
    ", ALL": "",
    ", ROWS": "",
    ", STACKED": "",
    "CONDITION": "l = ReduceMax<keepdims=0>(t) ten = Add(most, most) d = Less(l, ten)",
}
GROUPS = {
    "steps": Group("steps", ("loops_as_long_as_a_sequence",)),
    "ending": Group("ending", ("loops_that_data_ends",)),
    "straight": Group("straight", (*COMMON, *GRAPHS)),
    "machine": Group("machine", (*COMMON, "outputs_of_unknown_size")),
    "silent": Group("silent", ("streams_of_the_caller",)),
    "no capture": Group("straight", ("without_graphs",), {"EMULATOR_CAPTURE": 0}),
    "small": Group("straight", ("no_room",), {"EMULATOR_MEMORY": 8_000_000}),
    "tiny": Group("machine", ("no_room_for_weights",), {"EMULATOR_MEMORY": 100_000}),
    "no device": Group("straight", ("no_gpu",), {"EMULATOR_DEVICES": 0}),
}
Outcomes = Callable[[str], dict[str, str]]


@pytest.fixture(scope="module")
def built(emulation: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The example as a straight-line program, one that reports nothing, and one with a machine;
    and two loops, one as long as an input and one that data ends.
    """
    folder = tmp_path_factory.mktemp("serving")
    kinds = {"straight": ("error", False), "silent": ("clamp", False), "machine": ("error", True)}
    for name, (oob, machine) in kinds.items():
        with gpu_emulator.compiled_for_emulation(emulation, machine=machine):
            output = folder / f"{name}.gopt"
            graphopt.compile(EXAMPLE, "cuda", output=output, oob=oob, verify=False)
    for name, changes in (("steps", COUNTING), ("ending", ENDING)):
        text = reduce(lambda text, change: text.replace(*change), changes.items(), LOOP)
        with gpu_emulator.compiled_for_emulation(emulation):
            graphopt.compile(parse(text), "cuda", output=folder / f"{name}.gopt", verify=False)
    return {name: folder / f"{name}.gopt" for name in (*kinds, "steps", "ending")}


@pytest.fixture(scope="module")
def outcomes(built: dict[str, Path], emulation: Path) -> Outcomes:
    """What went wrong in the cases of a group; each group runs once."""

    @cache
    def of(name: str) -> dict[str, str]:
        group = GROUPS[name]
        return gpu_emulator.serve(group.cases, built[group.artifact], emulation, group.settings)

    return of


@pytest.mark.parametrize(
    ("group", "case"), [(name, case) for name, group in GROUPS.items() for case in group.cases]
)
def test_serving(group: str, case: str, outcomes: Outcomes) -> None:
    trouble = outcomes(group)[case]
    assert not trouble, trouble


def test_inspect_says_what_launches(built: dict[str, Path]) -> None:
    assert inspect(built["straight"]).facts["launches"] == "small batches as CUDA graphs"
    assert inspect(built["steps"]).facts["launches"] == "small batches as CUDA graphs"
    assert "no CUDA graphs: some sizes" in inspect(built["machine"]).facts["launches"]
    said = inspect(built["ending"]).facts["launches"]
    assert said.startswith("one by one, no CUDA graphs: data decides what runs (Loop '")
