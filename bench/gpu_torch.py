"""The process that measures models in PyTorch: gpu_torch.py JOBS

JOBS is a JSON file with `cases`, `batches`, `seconds` for each measurement, a `deadline` (of
`time.time`) until which it may compile, and `cache`: a folder whose files hold what was compiled
before, and get what is now; or null. It prints a line when it has compiled, waits for a line,
measures, and prints a JSON list per result: model, batch size, engine, times or a failure.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import FrameType
from typing import Any

import torch
from gpu_timing import arrays_of, batches_of, calls_in, clocked, model_of, worst_error
from torch_model import to_torch

import graphopt

PRECISIONS = {"tf32": "high", "fp32": "highest"}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MODE = "max-autotune"


class TooLate(BaseException):
    """The time for compiling is up; no compiler is to take it for a kernel that failed."""


@dataclass(frozen=True)
class Job:
    """A model at a batch size and in a precision, compiled if there is no `failure`."""

    case: Path
    batch: int
    precision: str
    compiled: Callable[..., Any] | None = None
    inputs: tuple[torch.Tensor, ...] = ()
    error: float = 0.0
    failure: str = ""

    @property
    def key(self) -> list[Any]:
        """How results are labelled."""
        return [self.case.name, self.batch, f"torch {self.precision}"]


@contextmanager
def alarm(deadline: float) -> Iterator[None]:
    """Within, TooLate comes at the deadline, wherever the program is."""

    def late(_number: int, _frame: FrameType | None) -> None:
        raise TooLate("not compiled in time")

    left = deadline - time.time()
    if left <= 0:
        raise TooLate("not compiled in time")
    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, left)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


@contextmanager
def cached(folder: str | None, name: str) -> Iterator[None]:
    """Within, nothing is compiled that is in the files of `folder`; file `name` gets the rest."""
    if folder is None:
        yield
        return
    for known in sorted(Path(folder).glob("*.bin")):
        torch.compiler.load_cache_artifacts(known.read_bytes())
    yield
    made = torch.compiler.save_cache_artifacts()
    if made is not None:
        (Path(folder) / f"{name}.bin").write_bytes(made[0])


def take_turns(lock: Path) -> None:
    """Let no two processes try out kernels at the same time: each would slow the other's down."""
    from torch._inductor.runtime.benchmarking import benchmarker

    file = lock.open("w")

    def alone(function: Callable[..., Any]) -> Callable[..., Any]:
        def locked(*arguments: Any, **options: Any) -> Any:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                return function(*arguments, **options)
            finally:
                fcntl.flock(file, fcntl.LOCK_UN)

        return locked

    for name in ("benchmark_gpu", "benchmark_gpu_with_cuda_graph"):
        if hasattr(benchmarker, name):
            setattr(benchmarker, name, alone(getattr(benchmarker, name)))


def compiled(module: Any, case: Path, batch: int, precision: str) -> Job:
    """The model compiled for exactly these shapes, and tried."""
    torch.set_float32_matmul_precision(PRECISIONS[precision])
    arrays = arrays_of(case, "inputs", batch)
    inputs = tuple(torch.from_numpy(arrays[name]).to(DEVICE) for name in module.input_names)
    call = torch.compile(module, mode=MODE, dynamic=False)
    outputs = call(*inputs)
    for _ in range(3):  # the first calls of a CUDA graph only record it
        outputs = call(*inputs)
    found = dict(zip(module.output_names, [tensor.cpu().numpy() for tensor in outputs]))
    error = worst_error(found, arrays_of(case, "expected", batch), precision)
    return Job(case, batch, precision, call, inputs, error)


def prepared(wanted: dict[str, Any]) -> list[Job]:
    """All jobs, compiled as far as the deadline allows: the most telling ones first."""
    jobs, modules = [], {}
    for precision in PRECISIONS:
        for batch in sorted(wanted["batches"], key=lambda b: abs(b - 512)):
            for case in map(Path, wanted["cases"]):
                if batch not in batches_of(case):
                    continue
                try:
                    with alarm(wanted["deadline"]):
                        if case not in modules:
                            graph = graphopt.load(model_of(case))
                            modules[case] = to_torch(graph).eval().to(DEVICE)
                        jobs.append(compiled(modules[case], case, batch, precision))
                except (Exception, TooLate) as error:
                    text = " ".join(str(error).split())[:300]
                    jobs.append(Job(case, batch, precision, failure=text))
    return jobs


def times(job: Job, seconds: float) -> dict[str, float]:
    """As `gpu_timing` defines them."""
    assert job.compiled is not None
    torch.set_float32_matmul_precision(PRECISIONS[job.precision])
    call, inputs = job.compiled, job.inputs
    host = [tensor.cpu().numpy() for tensor in inputs]

    def finished() -> None:
        call(*inputs)
        _wait()

    def end_to_end() -> None:
        for output in call(*(torch.from_numpy(array).to(DEVICE) for array in host)):
            output.cpu().numpy()

    found = {"error": job.error, "call": clocked(finished, seconds)}
    if DEVICE == "cuda":
        found["device"] = _on_the_gpu(lambda: call(*inputs), calls_in(seconds, finished))
    return found | {"end_to_end": clocked(end_to_end, seconds)}


def _wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def _on_the_gpu(call: Callable[[], object], count: int) -> float:
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count)]
    for start, end in events:
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return 1000.0 * median(start.elapsed_time(end) for start, end in events)


@torch.inference_mode()
def main(file: str) -> None:
    wanted = json.loads(Path(file).read_text())
    torch._dynamo.config.recompile_limit = 64  # one for each batch size and precision
    take_turns(Path(file).with_name("lock"))
    out = sys.stdout
    with redirect_stdout(sys.stderr), cached(wanted["cache"], Path(file).stem):  # they talk
        jobs = prepared(wanted)
    print("ready", file=out, flush=True)
    if not sys.stdin.readline():
        return  # nobody listens any more
    for job in jobs:
        try:
            found = {"failure": job.failure} if job.failure else times(job, wanted["seconds"])
        except Exception as error:
            found = {"failure": " ".join(str(error).split())[:300]}
        print(json.dumps([*job.key, found]), file=out, flush=True)
    out.flush()
    os._exit(0)  # a compiler's threads may wait for what will not come


if __name__ == "__main__":
    main(sys.argv[1])
