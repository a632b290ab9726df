"""Full disks, closed pipes and impatient users: each command runs in a process of its own."""

from __future__ import annotations

import resource
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from command import Outcome, finish, start

from bad_input_cases.case import Case, Kit

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "ctr" / "model.onnx"
PATIENCE = 120.0


def _limited(size: int) -> Callable[[], None]:
    """For the child: no file may grow beyond `size` bytes, as on a disk with so much room."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def full_disk(kit: Kit, args: Sequence[object]) -> Outcome:
    return finish(start(*args, preexec_fn=_limited(2000)))


def interrupted(which: signal.Signals) -> Callable[[Kit, Sequence[object]], Outcome]:
    """Send a signal as soon as the command has begun to write."""

    def run(kit: Kit, args: Sequence[object]) -> Outcome:
        child = start(*args)
        limit = time.monotonic() + PATIENCE
        while child.poll() is None and not any(kit.folder.glob(".*")) and time.monotonic() < limit:
            time.sleep(0.01)
        child.send_signal(which)
        return finish(child)

    return run


def onto(device: str) -> Callable[[Kit, Sequence[object]], Outcome]:
    def run(kit: Kit, args: Sequence[object]) -> Outcome:
        with Path(device).open("w") as stream:
            return finish(start(*args, stdout=stream))

    return run


def to_nobody(kit: Kit, args: Sequence[object]) -> Outcome:
    """Into a pipe whose reader has left."""
    reader = subprocess.Popen(["true"], stdin=subprocess.PIPE)
    reader.wait()
    outcome = finish(start(*args, stdout=reader.stdin))
    assert reader.stdin is not None
    reader.stdin.close()
    return outcome


def _example(kit: Kit, *more: object) -> list[object]:
    return ["optimize", EXAMPLE, "-o", kit.folder / "out.gopt", *more]


def _portable(kit: Kit) -> list[Any]:
    return ["optimize", EXAMPLE, "--target", "onnxruntime", "-o", kit.folder / "out.onnx"]


def _bundle(kit: Kit) -> list[Any]:
    return ["bundle", kit.compiled(), "-o", kit.folder / "served"]


CASES = [
    Case("a full disk, compiling", _example, "cannot be written|No space|too large", 1, full_disk),
    Case("a full disk, portable", _portable, "cannot be written|too large", 1, full_disk),
    Case("a full disk, outputs",
         lambda kit: ["run", EXAMPLE, "--random", "--batch", 999, "-o", kit.folder / "y.npz"],
         "cannot be written|too large", 1, full_disk),
    Case("a full disk, bundle", _bundle, "manifest.json: cannot be copied", 1, full_disk),
    Case("a full disk, wheel", lambda kit: ["bundle", "--wheel", "-o", kit.folder],
         "cannot be copied", 1, full_disk),
    Case("a full device for stdout", lambda kit: ["passes"], "No space left", 1, onto("/dev/full")),
    Case("nobody reads stdout", lambda kit: ["passes"], "", 141, to_nobody),
    Case("Ctrl-C while compiling", _example, "interrupted", 130, interrupted(signal.SIGINT)),
    Case("terminated while compiling", _example, "terminated", 143, interrupted(signal.SIGTERM)),
]  # fmt: skip
