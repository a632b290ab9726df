"""The process that tunes on the stand-ins: tune.py MODEL CACHE FOLDER TRIALS TARGET BATCH…"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gpu_emulator
import graphopt
from graphopt.errors import GraphoptError
from graphopt.pipeline.report import Report
from graphopt.targets.tuning.options import Tuning


def main(model: str, cache: str, folder: str, trials: str, target: str, *batches: str) -> None:
    tuning = Tuning(Path(cache), trials=int(trials), batches=tuple(map(int, batches)))
    report = Report()
    with gpu_emulator.compiled_for_emulation(Path(folder)):
        graphopt.compile(model, target, passes="O0", tuning=tuning, report=report)
    print(json.dumps(report.facts))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except GraphoptError as error:
        sys.exit(f"{type(error).__name__}: {error}")
