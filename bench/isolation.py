"""Work in processes that may crash, hang or be stopped: what they leave behind goes with them."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

import typer

T = TypeVar("T")
R = TypeVar("R")

_SPAWN = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Lost:
    """What there is instead of a result when the worker did not survive."""

    reason: str


def run_script(main: Callable[..., None]) -> None:
    """Run a script by its command line; SIGTERM, as of `timeout`, unwinds it: scratch is large."""
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    typer.run(main)


def in_a_process(
    script: str, *arguments: str, timeout: float | None = None
) -> dict[str, Any] | Lost:
    """The last line, JSON, that `script` prints with `--child`; its last complaint if it fails."""
    command = [sys.executable, script, *arguments, "--child"]
    with tempfile.TemporaryDirectory() as scratch:
        # Without typer's frames the last line is the error.
        env = {**os.environ, "TMPDIR": scratch, "_TYPER_STANDARD_TRACEBACK": "1"}
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=env)
        except subprocess.TimeoutExpired:
            return Lost(f"no answer in {timeout:g} s")
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        return Lost(f"exit code {done.returncode}: {last[0]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


class _Worker(Generic[T, R]):
    def __init__(self, function: Callable[[T], R], timeout: float) -> None:
        self.timeout = timeout
        self.connection, theirs = _SPAWN.Pipe()
        self.scratch = tempfile.TemporaryDirectory()
        arguments = function, theirs, self.scratch.name
        self.process = _SPAWN.Process(target=_serve, args=arguments, daemon=True)
        self.process.start()
        theirs.close()

    def send(self, item: T) -> None:
        self.item, self.deadline = item, time.monotonic() + self.timeout
        self.connection.send(item)

    def result(self) -> R | Lost:
        """The answer that has arrived, or why none ever will."""
        try:
            if self.connection.poll():
                answer: R = self.connection.recv()
                return answer
        except (EOFError, OSError):
            self.process.join()
            return Lost(f"the process ended with code {self.process.exitcode}")
        return Lost(f"no answer in {self.timeout:g} s")

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()
        self.scratch.cleanup()


def _serve(function: Callable[[T], R], connection: Connection, scratch: str) -> None:
    os.environ["TMPDIR"] = tempfile.tempdir = scratch
    while True:
        try:
            item = connection.recv()
        except EOFError:
            return
        connection.send(function(item))


def isolated_map(
    function: Callable[[T], R], items: Iterable[T], jobs: int = 2, timeout: float = 60
) -> Iterator[tuple[T, R | Lost]]:
    """Pairs of item and result, in the order in which they are done.

    Each of `jobs` processes takes one item after the other; one that dies, or works on an item for
    more than `timeout` seconds, is replaced.
    """
    remaining = iter(items)
    idle = [_Worker(function, timeout) for _ in range(jobs)]
    busy: list[_Worker[T, R]] = []
    try:
        while True:
            for item in itertools.islice(remaining, len(idle)):
                busy.append(idle.pop())
                busy[-1].send(item)
            if not busy:
                return
            left = min(worker.deadline for worker in busy) - time.monotonic()
            ready = wait([worker.connection for worker in busy], max(0, left))
            for worker in list(busy):
                if worker.connection in ready or worker.deadline <= time.monotonic():
                    busy.remove(worker)
                    item, result = worker.item, worker.result()
                    if isinstance(result, Lost):
                        worker.stop()
                        worker = _Worker(function, timeout)
                    idle.append(worker)
                    yield item, result
    finally:
        for worker in [*idle, *busy]:
            worker.stop()
