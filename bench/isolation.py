"""A map over items whose function may crash its process or hang."""

from __future__ import annotations

import itertools
import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

_SPAWN = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Lost:
    """What there is instead of a result when the worker did not survive."""

    reason: str


class _Worker(Generic[T, R]):
    def __init__(self, function: Callable[[T], R], timeout: float) -> None:
        self.timeout = timeout
        self.connection, theirs = _SPAWN.Pipe()
        self.process = _SPAWN.Process(target=_serve, args=(function, theirs), daemon=True)
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


def _serve(function: Callable[[T], R], connection: Connection) -> None:
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
