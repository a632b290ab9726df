"""Other engines on the same GPU: torch.compile and ONNX Runtime's CUDA provider.

`torch.compile(mode="max-autotune")` takes the better part of a minute for each model and batch
size, so a process for each core compiles. When all are done, or the time for it is up,
they take turns to measure, one at a time on an otherwise idle machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gpu_timing import arrays_of, batches_of, clocked, model_of, worst_error

Result = tuple[str, int, str, dict[str, Any]]
"""Model, batch size, engine, and times or a failure."""

WORKER = Path(__file__).with_name("gpu_torch.py")


def measure(
    cases: Sequence[Path],
    batches: Sequence[int],
    peers: Sequence[str],
    seconds: float,
    patience: float,
    cache: Path | None = None,
) -> Iterator[Result]:
    """Measure peers at those batch sizes that there are inputs of.

    Args:
        seconds: for each measurement.
        patience: seconds for all that is to be compiled.
        cache: a folder that keeps what PyTorch compiles.
    """
    if "onnxruntime" in peers:
        yield from _onnxruntime(cases, batches, seconds)
    if "torch" in peers:
        if find_spec("torch") is None:
            print("torch: not installed")
        else:
            yield from _torch(cases, batches, seconds, patience, cache)


def _torch(
    cases: Sequence[Path],
    batches: Sequence[int],
    seconds: float,
    patience: float,
    cache: Path | None,
) -> Iterator[Result]:
    with tempfile.TemporaryDirectory() as folder:
        deadline = time.time() + patience
        workers = []
        count = min(os.cpu_count() or 1, len(cases))
        for k in range(count):
            jobs = Path(folder) / f"{k}.json"
            described = {
                "cases": [str(case) for case in cases[k::count]],
                "batches": list(batches),
                "seconds": seconds,
                "deadline": deadline,
                "cache": None if cache is None else str(cache),
            }
            jobs.write_text(json.dumps(described))
            workers.append(_started(jobs))
        for worker in workers:  # a line says that it has compiled what it could
            worker.stdout.readline()
        for worker in workers:
            results, _ = worker.communicate("measure\n")
            for line in results.splitlines():
                name, batch, engine, times = json.loads(line)
                yield name, batch, engine, times


def _started(jobs: Path) -> Any:
    return subprocess.Popen(
        [sys.executable, str(WORKER), str(jobs)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"TORCHINDUCTOR_COMPILE_THREADS": "1"},
    )


def _onnxruntime(cases: Sequence[Path], batches: Sequence[int], seconds: float) -> Iterator[Result]:
    if find_spec("onnxruntime") is None:
        print("onnxruntime: not installed")
        return
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        print("onnxruntime: this build has no CUDA provider; try: pip install onnxruntime-gpu")
        return
    for case in cases:
        for batch in set(batches) & set(batches_of(case)):
            for precision in ("fp32", "tf32"):
                try:
                    times = _session_times(case, batch, precision, seconds)
                except Exception as error:  # engines raise whatever they like
                    times = {"failure": " ".join(str(error).split())[:300]}
                yield case.name, batch, f"onnxruntime {precision}", times


def _session_times(
    case: Path, batch: int, precision: str, seconds: float, device: str = "cuda"
) -> dict[str, Any]:
    """One batch size; on another device too, so that this can be tried without a GPU."""
    import onnxruntime

    cuda = ("CUDAExecutionProvider", {"use_tf32": int(precision == "tf32")})
    provider = cuda if device == "cuda" else "CPUExecutionProvider"
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(model_of(case)), options, providers=[provider])
    inputs, expected = (arrays_of(case, kind, batch) for kind in ("inputs", "expected"))
    binding = session.io_binding()
    for name, array in inputs.items():
        there = onnxruntime.OrtValue.ortvalue_from_numpy(array, device)
        binding.bind_ortvalue_input(name, there)
    for output in session.get_outputs():
        binding.bind_output(output.name, device)

    def run() -> None:
        session.run_with_iobinding(binding)

    run()
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, binding.copy_outputs_to_cpu()))
    return {
        "error": worst_error(found, expected, precision),
        "call": clocked(run, seconds),
        "end_to_end": clocked(lambda: session.run(None, inputs), seconds),
    }
