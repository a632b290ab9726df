"""Measuring in a process of its own, which may crash or hang and takes nothing along."""

from __future__ import annotations

import math
import os
import pickle
import signal
import subprocess
import sys
from contextlib import suppress
from types import TracebackType
from typing import Any

import tvm

from graphopt.errors import OutputError
from graphopt.targets.tuning.family import KernelFamily, in_short
from graphopt.targets.tuning.tuner import on_cpu

PATIENCE = 60
"""Seconds for generating code of a candidate and measuring it; most take less than one."""

_GRACE = 1.0  # seconds to end by itself
_READY = b"ready"


class Isolated:
    """A process that measures for this one, started when it is first needed, to be closed.

    Attributes:
        failures: what came of candidates that are not to be used, by descriptions of problems.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self.failures: list[tuple[str, str]] = []

    def __enter__(self) -> Isolated:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._end()

    def measure(
        self,
        family: KernelFamily,
        problem: Any,
        default: Any,
        params: Any,
        target: tvm.target.Target,
    ) -> list[float]:
        """The `Measure` of candidates that may be anything; infinite times for what fails."""
        answer = self._answer((family, problem, default, params, target))
        if isinstance(answer, list):
            return answer
        self.failures.append((family.described(problem), answer))
        return [math.inf]

    def _answer(self, request: tuple[Any, ...]) -> list[float] | str:
        process = self._process = self._process or _started()
        assert process.stdin is not None and process.stdout is not None
        try:
            pickle.dump(request, process.stdin)
            process.stdin.flush()
            answer: list[float] | str = pickle.load(process.stdout)
            return answer
        except (EOFError, BrokenPipeError):
            status = self._end()
            late = status == -signal.SIGALRM
            return f"it took over {PATIENCE} s" if late else f"it ended its process ({status})"

    def _end(self) -> int:
        """End the process; its exit status."""
        process, self._process = self._process, None
        if process is None:
            return 0
        assert process.stdin is not None and process.stdout is not None
        with suppress(BrokenPipeError):
            process.stdin.close()  # so that it ends, if it is not busy
        try:
            process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
        process.stdout.close()
        return process.wait()


def _started() -> subprocess.Popen[bytes]:
    pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
    # In a session of its own it gets no Ctrl-C: this process ends it.
    process = subprocess.Popen(
        [sys.executable, "-m", __name__],
        stdin=pipe,
        stdout=pipe,
        stderr=nowhere,
        start_new_session=True,
    )
    assert process.stdout is not None
    if process.stdout.read(len(_READY)) != _READY:
        raise OutputError(f"{sys.executable} -m {__name__}, which is to measure, does not start")
    return process


def _serve() -> None:
    """Answer requests until nobody is there to ask."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # TVM writes there as it likes
    answers.write(_READY)
    answers.flush()
    while True:
        try:
            request = pickle.load(requests)
        except EOFError:
            return
        signal.alarm(PATIENCE)  # which ends the process, whatever it does
        answer: list[float] | str
        try:
            answer = on_cpu(*request)
        except AssertionError:
            answer = "it computes something else"
        except Exception as error:  # TVM raises errors of many kinds
            answer = in_short(error)
        signal.alarm(0)
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    _serve()
