"""The process that runs an artifact on the stand-ins: child.py ARTIFACT WORKSPACE"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import graphopt
from graphopt.errors import GraphoptError
from graphopt.gpu_runtime import machine


def main(artifact: str, workspace: str) -> None:
    machine._ALLOCATOR = 1  # no pool, so that guard pages stand at every tensor
    loaded = graphopt.load(artifact)
    assert "tvm" not in sys.modules
    for file in sorted(Path(workspace).glob("in*.npz")):
        with np.load(file) as arrays:
            results = loaded.run(dict(arrays))
        np.savez(file.with_name(file.name.replace("in", "out")), **results)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except GraphoptError as error:
        sys.exit(f"{type(error).__name__}: {error}")
