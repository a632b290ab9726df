"""Runs artifacts on the stand-ins, each in a fork of this process, which has what that imports.

A line of JSON asks for a run: the artifact, a folder with inputs, and settings of the stand-ins.
The answer is a line with the status of the fork, which leaves outputs in that folder, and in its
file `said` what it wrote to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import NoReturn

import numpy as np

import graphopt
from graphopt.errors import GraphoptError
from graphopt.serving.gpu_runtime import machine
from graphopt.serving.runtime import ffi


def main(artifact: str, workspace: Path) -> None:
    machine._ALLOCATOR = 1  # no pool, so that guard pages stand at every tensor
    loaded = graphopt.load(artifact)
    assert "tvm" not in sys.modules
    dtypes = {spec.name: spec.numpy_dtype for spec in loaded.signature.inputs}
    for file in sorted(workspace.glob("in*.npz")):
        with np.load(file) as arrays:  # to which bfloat16 is some bytes
            feed = {k: x.view(dtypes[k]) if x.dtype.kind == "V" else x for k, x in arrays.items()}
        np.savez(file.with_name(file.name.replace("in", "out")), **loaded.run(feed))


def apart(artifact: str, workspace: Path, settings: dict[str, str]) -> NoReturn:
    """Run, as the process that this ends."""
    os.environ.update(settings)
    status = 1
    with (workspace / "said").open("w") as said:
        os.dup2(said.fileno(), 2)
    try:
        main(artifact, workspace)
        status = 0
    except GraphoptError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    if "coverage" in sys.modules and (measured := sys.modules["coverage"].Coverage.current()):
        measured.stop()
        measured.save()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    ffi()
    for line in sys.stdin:
        artifact, workspace, settings = json.loads(line)
        process = os.fork()
        if process == 0:
            apart(artifact, Path(workspace), settings)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
