"""Tiles in threads, children and signal handlers of a process that loads only the runtime."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import graphopt
from graphopt.targets.cpu.kernels.amx import Amx
from graphopt.testing import parse, random_inputs

WORDS = """(float[N,128] x) => (float[N,96] y) <float[128,160] u, float[160,96] w> {
    h = MatMul(x, u) r = Relu(h) y = MatMul(r, w)
}"""
BYTES = """(float[N,128] x) => (float[N,96] y) <int8[128,96] c, float[96] s> {
    y = graphopt.DynamicMatMul(x, c, s)
}"""
ROWS = 200
USE = """
import ctypes, os, signal, sys, threading
import numpy as np

path, what = sys.argv[1:]
known = np.load(path + ".npz")

def same(times=30, threads=1):
    rng = np.random.default_rng(threading.get_native_id())
    for _ in range(times):
        first = int(rng.integers(0, len(known["x"])))
        rows = slice(first, first + int(rng.integers(1, len(known["x"]))))
        found = artifact.run({"x": known["x"][rows]}, threads)["y"]
        if not np.array_equal(found, known["y"][rows]):
            return False
    return True

def in_threads(*calls):
    found = []
    threads = [threading.Thread(target=lambda call=call: found.append(call())) for call in calls]
    for thread in threads:
        thread.start()
    yield
    for thread in threads:
        thread.join()
    assert found == [True] * len(calls)

def forked():
    child = os.fork()
    if child == 0:
        os._exit(0 if same() and same(threads=2) else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

if what == "before":  # threads that are older than the permission
    loaded = threading.Event()
    before = in_threads(*[lambda: loaded.wait() and same()] * 4)
    next(before)
if what == "refused":  # by Linux, as a signal could not save tiles on this stack
    class Stack(ctypes.Structure):
        _fields_ = [("at", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]

    room = ctypes.create_string_buffer(8192)
    stack = Stack(ctypes.addressof(room), 0, len(room))
    assert not ctypes.CDLL(None).sigaltstack(ctypes.byref(stack), None)

import graphopt

try:
    artifact = graphopt.load(path)
except graphopt.GraphoptError as error:
    print(error)
    sys.exit(3)
assert "tvm" not in sys.modules and same()
if what == "before":
    loaded.set()
    list(before)
elif what == "threads":
    list(in_threads(*[same] * 4, *[lambda: same(threads=3)] * 4))
elif what == "children":
    assert forked() and same(threads=2) and forked()
elif what == "signals":
    seen = []
    signal.signal(signal.SIGALRM, lambda *_: seen.append(1))
    signal.setitimer(signal.ITIMER_REAL, 1e-4, 1e-4)
    while len(seen) < 50:
        assert same(100)
    signal.setitimer(signal.ITIMER_REAL, 0)
"""


@pytest.fixture(scope="module", params=["bf16", "int8"])
def artifact(
    request: pytest.FixtureRequest, hardware: Amx, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """One whose layers are multiplied by tiles; its answers are beside it."""
    path = tmp_path_factory.mktemp("tiles") / "m.gopt"
    text, precision = {"bf16": (WORDS, "bf16"), "int8": (BYTES, "fp32")}[request.param]
    graph: Any = parse(text)
    made = graphopt.compile(graph, output=path, precision=precision, verify=False)  # type: ignore[arg-type]
    assert "amx_tile" in made.manifest["cpu_features"]
    feeds = random_inputs(graph, {"N": ROWS}, seed=1)
    np.savez(f"{path}.npz", x=feeds["x"], y=made.run(feeds)["y"])
    return path


def used(artifact: Path, what: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", USE, str(artifact), what]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("what", ["before", "threads", "children", "signals"])
def test_the_same_bits_wherever(artifact: Path, what: str) -> None:
    done = used(artifact, what)
    assert done.returncode == 0, done.stderr


def test_a_process_that_is_refused_says_so(artifact: Path) -> None:
    done = used(artifact, "refused")
    assert (done.returncode, done.stderr) == (3, "")
    assert "needs AMX, and the system does not let this process use it" in done.stdout
    assert done.stdout.count("\n") == 1
