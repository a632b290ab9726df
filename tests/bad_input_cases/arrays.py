"""Inputs that do not fit the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from command import graphopt

from bad_input_cases.case import ROWS, Case, Kit

FLOAT_IDS = """(float[N,3] x) => (float[N,8] y) <float[50,8] t, int64 zero = {0}> {
    column = Gather<axis=1>(x, zero)  ids = Cast<to=7>(column)  y = Gather(t, ids)
}"""


def run(name: str, make: Callable[[Kit], Path], says: str, compiled: bool = True) -> Case:
    """Run the artifact (or the model, in ONNX Runtime) on a bad file."""

    def args(kit: Kit) -> list[object]:
        return ["run", kit.artifact() if compiled else kit.model(), "--inputs", make(kit)]

    return Case(name, args, says)


def arrays(name: str, says: str, compiled: bool = True, **changed: np.ndarray | None) -> Case:
    return run(name, lambda kit: kit.arrays(**changed), says, compiled)


def ids(name: str, value: int, compiled: bool = True) -> Case:
    array = np.ones((2, 3), np.int64)
    array[1, 0] = value
    return arrays(name, "out of range|out of data bounds", compiled, ids=array)


def _cut(kit: Kit) -> Path:
    path = kit.arrays()
    return kit.file(path.read_bytes()[:-40], "cut.npz")


def _spoilt(kit: Kit) -> Path:
    data = bytearray(kit.arrays().read_bytes())
    start = data.index(b"NUMPY") + 130
    data[start : start + 8] = b"\xff" * 8
    return kit.file(bytes(data), "spoilt.npz")


def _one_array(kit: Kit) -> Path:
    np.save(kit.folder / "one.npy", np.zeros(3))
    return kit.folder / "one.npy"


def _float_ids(kit: Kit, value: float) -> list[object]:
    artifact = kit.folder / "float.gopt"
    made = graphopt("optimize", kit.model(FLOAT_IDS), "-o", artifact, "--no-verify", "-q")
    assert made.status == 0, made.err
    np.savez(kit.folder / "x.npz", x=np.array([[1, 0, 0], [value, 0, 0]], np.float32))
    return ["run", artifact, "--inputs", kit.folder / "x.npz"]


CASES = [
    run("no such file of inputs", lambda kit: kit.folder / "x.npz", "no such file"),
    run("a folder of inputs", lambda kit: kit.folder, "cannot be read"),
    run("inputs as text", lambda kit: kit.file(b"1,2,3\n", "x.csv"), "not an .npz"),
    run("inputs as an empty file", lambda kit: kit.file(b"", "x.npz"), "not an .npz"),
    run("one array without a name", _one_array, "unnamed array"),
    run("inputs cut short", _cut, "not an .npz|damaged"),
    run("inputs with a bad checksum", _spoilt, "damaged"),
    arrays("Python objects", "Python objects", ids=np.array([[1, None, "x"]], object)),
    arrays("an input missing", "missing input 'dense'", dense=None),
    arrays("an input too many", "unknown input 'label'", label=np.zeros(2)),
    arrays("no inputs at all", "missing inputs 'ids', 'dense'", ids=None, dense=None),
    arrays("ids of another dtype", "int32.*takes int64", ids=np.ones((2, 3), np.int32)),
    arrays("floats of another width", "float64.*float32", dense=np.ones((2, 4))),
    arrays("another byte order", "float32", dense=np.ones((2, 4), ">f4")),
    arrays("a wrong rank", r"'ids'.*\(6,\)", ids=np.ones(6, np.int64)),
    arrays("a wrong fixed size", "5 on axis 1, expected 3", ids=np.ones((2, 5), np.int64)),
    arrays("batches that disagree", "must agree", dense=np.ones((3, 4), np.float32)),
    arrays("an input missing, in ONNX Runtime", "missing input 'dense'", False, dense=None),
    ids("an id one too large", ROWS),
    ids("an id one too small", -ROWS - 1),
    ids("a huge id", 2**62),
    ids("the smallest id there is", -(2**63)),
    ids("an id too large, in ONNX Runtime", ROWS, compiled=False),
    Case("an id that is not a number", lambda kit: _float_ids(kit, np.nan), "out of range"),
    Case("an id that is infinite", lambda kit: _float_ids(kit, np.inf), "out of range"),
    Case("verify: inputs that do not fit",
         lambda kit: ["optimize", kit.model(), "--target", "onnxruntime",
                      "--inputs", kit.arrays(dense=None)],
         "missing input 'dense'"),
    Case("check: inputs that do not fit",
         lambda kit: ["check", kit.model(), kit.model(), "--inputs", kit.arrays(extra=np.zeros(1))],
         "unknown input 'extra'"),
]  # fmt: skip
