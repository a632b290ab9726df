"""Ctrl-C and SIGTERM: nothing half-written stays, and the end comes soon."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from graphopt.cli import console

GRACE = 3.0  # seconds to unwind in; native code may run for minutes before Python gets a turn


class Stopped(KeyboardInterrupt):
    """A signal ended the work.

    A class of its own, because CPython remembers a plain KeyboardInterrupt that passed through
    the `exec` of a string, as in the making of a dataclass, and then lets `python -m graphopt`
    die by SIGINT, whatever exit status was asked for.
    """


@contextmanager
def ending(received: list[int]) -> Iterator[None]:
    """Raise Stopped on SIGINT and SIGTERM, and note the signal in `received`.

    Native code may turn the exception into one of its own, or not return for long: then the
    process ends without it.
    """

    def note(number: int, _frame: object) -> None:
        received.append(number)
        raise Stopped

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    done = threading.Event()
    watcher = threading.Thread(target=_watch, args=(reader, done), daemon=True)
    watcher.start()
    before = signal.set_wakeup_fd(writer)
    handlers = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        done.set()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(before)
        os.close(writer)
        watcher.join()
        os.close(reader)


def _watch(reader: int, done: threading.Event) -> None:
    """End the process if it has not unwound in time after a signal."""
    arrived = os.read(reader, 1)
    if arrived and not done.wait(GRACE):
        from graphopt.ir import atomic

        atomic.discard_unfinished()
        os._exit(stopped(arrived[0]))


def stopped(number: int) -> int:
    """Say that a signal ended the work; the exit status that tells so."""
    console.message("", "terminated" if number == signal.SIGTERM else "interrupted")
    return 128 + number
