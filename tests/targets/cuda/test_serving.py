"""Serving from a GPU: graphs, threads, DLPack, streams, memory. See `gpu_emulator/serving.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import gpu_emulator
import pytest
from conftest import EXAMPLE

import graphopt
from graphopt.inspection import inspect


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
GROUPS = {
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
    """The example as a straight-line program, one that reports nothing, and one with a machine."""
    folder = tmp_path_factory.mktemp("serving")
    kinds = {"straight": ("error", False), "silent": ("clamp", False), "machine": ("error", True)}
    for name, (oob, machine) in kinds.items():
        with gpu_emulator.compiled_for_emulation(emulation, machine=machine):
            output = folder / f"{name}.gopt"
            graphopt.compile(EXAMPLE, "cuda", output=output, oob=oob, verify=False)
    return {name: folder / f"{name}.gopt" for name in kinds}


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
    assert "no CUDA graphs: some sizes" in inspect(built["machine"]).facts["launches"]
