"""Candidates that compute something else, raise, crash or hang: only they suffer."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tvm.script import tirx as T

from graphopt.errors import OutputError
from graphopt.targets.cpu.target import CpuTarget
from graphopt.targets.tuning import isolated as module
from graphopt.targets.tuning.family import KernelFamily, Trial
from graphopt.targets.tuning.isolated import PATIENCE, Isolated


@dataclass(frozen=True)
class Problem:
    elements: int = 8


class Family(KernelFamily[Problem, str]):
    """y = x + 1, unless parameters have it otherwise."""

    name = "added"

    def default(self, problem: Problem) -> str:
        return "right"

    def candidates(self, problem: Problem) -> list[str]:
        return ["right", "wrong"]

    def parse(self, fields: dict[str, Any]) -> str:
        return str(fields)

    def kernel(self, problem: Problem, params: str) -> Any:
        if params == "raises":
            raise ValueError("no such thing")
        if params == "crashes":
            os.abort()
        if params == "hangs":
            signal.raise_signal(signal.SIGALRM)  # what comes when time is over
        added = T.float32(2 if params == "wrong" else 1)

        @T.prim_func(s_tir=True)
        def main(x: T.Buffer((T.int64(8),), "float32"), y: T.Buffer((T.int64(8),), "float32")):
            for i in range(T.int64(8)):
                y[i] = x[i] + added

        return main

    def trials(self, problem: Problem, params: str) -> list[Trial]:
        return [Trial([np.arange(8, dtype=np.float32)], ((8,), "float32"))]


@pytest.fixture(scope="module")
def isolated() -> Iterator[Isolated]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))  # the process reads this file
        with Isolated() as found:
            yield found


def measured(isolated: Isolated, params: str) -> list[float]:
    target = CpuTarget.parse("").llvm
    return isolated.measure(Family(), Problem(), "right", params, target)


def test_one_that_is_right(isolated: Isolated) -> None:
    (ratio,) = measured(isolated, "also right")
    assert 0 < ratio < math.inf
    assert isolated.failures == []


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ("wrong", "it computes something else"),
        ("raises", "no such thing"),
        ("crashes", f"it ended its process ({-signal.SIGABRT})"),
        ("hangs", f"it took over {PATIENCE} s"),
    ],
)
def test_one_that_fails_is_left_out(isolated: Isolated, params: str, reason: str) -> None:
    assert measured(isolated, params) == [math.inf]
    assert isolated.failures[-1] == ("elements=8", reason)
    assert measured(isolated, "also right") != [math.inf]  # others are, whatever came of this one


def test_nothing_stays_when_the_work_is_stopped() -> None:
    with pytest.raises(KeyboardInterrupt), Isolated() as found:
        measured(found, "wrong")
        process = found._process
        raise KeyboardInterrupt
    assert process is not None and process.returncode is not None


def test_a_process_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.sys, "executable", "/bin/false")
    with pytest.raises(OutputError, match="does not start"), Isolated() as found:
        measured(found, "right")
