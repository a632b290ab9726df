"""Loops that run, and branches in them, against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from loop_models import (
    BRANCHES,
    COUNTED,
    LOOP,
    NESTED,
    PAIR,
    PLACES,
    REFUSED,
    SCAN,
    UNTIL,
    assert_found,
    ramp,
    stacking,
)

from graphopt.errors import UnsupportedOpError
from graphopt.testing import Compiled, parse, run_onnxruntime

STEPS = (0, 1, 2, 7)


def agree(text: str, feeds: Iterator[dict[str, np.ndarray]]) -> None:
    graph = parse(text)
    compiled = Compiled(graph)
    for feed in feeds:
        expected, found = run_onnxruntime(graph, feed), compiled(feed)
        assert_found(found, expected)


def sequences(*steps: int) -> Iterator[dict[str, np.ndarray]]:
    return ({"x": ramp(n, t, 2) + o} for n in (1, 3) for t in steps for o in (-2, 2))


@pytest.mark.parametrize("backwards", [0, 1])
def test_scan_over_a_symbolic_length(backwards: int) -> None:
    axes = "scan_input_axes=[1], scan_output_axes=[1]"
    axes += f", scan_input_directions=[{backwards}], scan_output_directions=[{backwards}]"
    agree(SCAN.replace("AXES", axes), sequences(1, 2, 7))  # ONNX Runtime fails at no steps


def test_scan_of_no_steps() -> None:
    axes = "scan_input_axes=[1], scan_output_axes=[1]"
    found = Compiled(parse(SCAN.replace("AXES", axes)))({"x": ramp(3, 0, 2)})
    np.testing.assert_array_equal(found["last"], np.zeros((3, 2)))
    assert found["all"].shape == (3, 0, 2)


def test_scans_of_several_sequences_of_one_length() -> None:
    compiled = Compiled(parse(PAIR))
    x, y = ramp(3, 2), ramp(3, 2)[::-1].copy()
    np.testing.assert_array_equal(compiled({"x": x, "y": y})["z"], x - y)
    with pytest.raises(Exception, match="scanned together differ in length"):
        compiled({"x": x, "y": ramp(4, 2)})


def test_loop_over_a_symbolic_length() -> None:
    agree(LOOP.replace("BODY", "a = MatMul(s, w) t = Add(a, v)"), sequences(*STEPS))


def test_loops_and_branches_hold_one_another() -> None:
    agree(NESTED, sequences(*STEPS))


def test_states_that_change_places() -> None:
    agree(PLACES, sequences(*STEPS))


def counts() -> Iterator[dict[str, np.ndarray]]:
    for rows in (1, 3):
        for n in (-1, 0, 1, 2, 6):
            for go in (True, False):
                yield {"n": np.array(n), "go": np.array(go), "x": ramp(rows, 2)}


@pytest.mark.parametrize("trips", ["n", ""])
@pytest.mark.parametrize("condition", ["d = Identity(c)", UNTIL])
def test_loops_that_run_time_values_end(condition: str, trips: str) -> None:
    text = COUNTED.replace("CONDITION", condition).replace("TRIPS", trips)
    if trips:
        agree(text, counts())
        agree(stacking(text), counts())
    elif condition is UNTIL:
        agree(text, counts())


@pytest.mark.parametrize("flag", [True, False])
def test_branches_are_one_kernel_of_a_straight_program(flag: bool) -> None:
    agree(BRANCHES, ({"c": np.array(flag), "x": ramp(n, 4)} for n in (1, 3)))


@pytest.mark.parametrize(
    ("text", "reason"),
    REFUSED,
)
def test_loops_that_are_refused(text: str, reason: str) -> None:
    with pytest.raises(UnsupportedOpError, match=reason) as caught:
        Compiled(parse(text))
    assert caught.value.op == "Loop"
