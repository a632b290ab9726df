"""Serving from a GPU: graphs, threads, DLPack, streams, memory. See `gpu_emulator/serving.py`."""

from __future__ import annotations

from pathlib import Path

import gpu_emulator
import pytest
from conftest import EXAMPLE
from gpu_emulator import serving

import graphopt

MACHINE = [
    "batches_in_any_order",
    "several_threads",
    "inputs_on_the_gpu",
    "outputs_on_the_gpu",
    "unfit_inputs",
    "ids_out_of_range",
    "no_room_for_weights",
    "times",
]
SETTINGS = {
    "without_graphs": {"EMULATOR_CAPTURE": 0},
    "no_room": {"EMULATOR_MEMORY": 8_000_000},
    "no_room_for_weights": {"EMULATOR_MEMORY": 100_000},
}
STRAIGHT = [case for case in serving.CASES if case != "no_room_for_weights"]


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


@pytest.mark.parametrize("case", STRAIGHT)
def test_straight_line(case: str, built: dict[str, Path], emulation: Path) -> None:
    kind = "silent" if case == "streams_of_the_caller" else "straight"
    gpu_emulator.serve(case, built[kind], emulation, SETTINGS.get(case, {}))


@pytest.mark.parametrize("case", MACHINE)
def test_virtual_machine(case: str, built: dict[str, Path], emulation: Path) -> None:
    gpu_emulator.serve(case, built["machine"], emulation, SETTINGS.get(case, {}))
