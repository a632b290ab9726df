"""What serving a model takes and gives: start, memory, one request, many callers.

    python bench/serving.py [--model NAME|FILE] [--batch 1,64,512] [--json FILE]

NAME is one of the production shapes (`production.py`); dlrm_mlperf has 1.3 GB of tables. Every
figure comes from fresh processes that import nothing but the runtime. Memory is read from
/proc/PID/smaps: what is resident of `weights.bin`, the pages that requests touched, and the rest;
its proportional share while two processes serve is about half of that if they share it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import production
import typer
from rich.console import Console
from rich.table import Table

REQUESTS = 200
_SERVE = """
import sys, time
start, spent = time.perf_counter(), time.process_time()
import numpy as np
import graphopt
artifact = graphopt.load(sys.argv[1])
requests = [dict(np.load(path)) for path in sys.argv[2:]]
artifact.run(requests[0])
print(time.perf_counter() - start, time.process_time() - spent, flush=True)
for feeds in requests:
    artifact.run(feeds)
print("served", flush=True)
sys.stdin.read()
"""


def prepared(model: str, folder: Path) -> Path:
    """The artifact of a production shape or a file."""
    import graphopt
    from graphopt.ir import onnx_io

    source = Path(model)
    if model in production.MODELS:
        source = folder / "model.onnx"
        onnx_io.save(production.MODELS[model][0](), source)
    artifact = folder / "model.gopt"
    graphopt.compile(source, output=artifact, verify=False)
    return artifact


def written(artifact: Path, batch: int, folder: Path, count: int) -> list[Path]:
    """Files of random requests."""
    import numpy as np

    from graphopt import api
    from graphopt.artifact import Artifact

    engine, paths = Artifact.load(artifact), []
    for seed in range(count):
        paths.append(folder / f"request-{batch}-{seed}.npz")
        np.savez(paths[-1], **api.random_inputs(artifact, engine, batch, seed))
    return paths


class Server:
    """A process that has served requests and waits.

    Attributes:
        start: seconds from the first import to the first answer.
        spent: seconds of CPU time in between.
    """

    def __init__(self, artifact: Path, requests: Sequence[Path]) -> None:
        command = [sys.executable, "-c", _SERVE, str(artifact), *map(str, requests)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(command, text=True, **pipes)
        assert self.process.stdout is not None
        self.start, self.spent = map(float, self.process.stdout.readline().split())
        assert self.process.stdout.readline() == "served\n"

    def memory(self) -> dict[str, int]:
        """Bytes resident, of them weights, and the proportional share of these."""
        found = {"resident": 0, "weights": 0, "weights_share": 0}
        ours = False
        for line in Path(f"/proc/{self.process.pid}/smaps").read_text().splitlines():
            name, *rest = line.split()
            if not name.endswith(":"):
                ours = line.endswith("weights.bin")
            elif name == "Rss:":
                found["resident"] += int(rest[0]) << 10
                found["weights"] += ours * (int(rest[0]) << 10)
            elif name == "Pss:":
                found["weights_share"] += ours * (int(rest[0]) << 10)
        return found

    def stop(self) -> None:
        self.process.communicate("")


def memory(artifact: Path, requests: Sequence[Path]) -> dict[str, Any]:
    """Resident memory of one process, and what two share."""
    first = Server(artifact, requests)
    alone = first.memory()
    second = Server(artifact, requests)
    shared = first.memory()
    for server in (first, second):
        server.stop()
    return {
        "tables_and_weights": (artifact / "weights.bin").stat().st_size,
        **alone,
        "rest": alone["resident"] - alone["weights"],
        "weights_share_of_two": shared["weights_share"],
    }


def start(artifact: Path, requests: Sequence[Path], count: int = 5) -> dict[str, float]:
    """Median seconds from import to the first answer, and of CPU time in between."""
    servers = []
    for _ in range(count):
        servers.append(Server(artifact, requests[:1]))
        servers[-1].stop()
    wall, spent = median(s.start for s in servers), median(s.spent for s in servers)
    return {"seconds": wall, "cpu_seconds": spent, "processes": count}


def one_request(artifact: Path, batch: int, threads: int, seconds: float) -> dict[int, float]:
    """The median microseconds of a call on 1 to `threads` threads, in turns."""
    from graphopt import api
    from graphopt.artifact import Artifact
    from graphopt.latency import Call, interleaved

    engine = Artifact.load(artifact)
    feeds = api.random_inputs(artifact, engine, batch)

    def call(count: int) -> Call:
        return lambda: engine.run(feeds, threads=count)

    calls = {str(count): call(count) for count in range(1, threads + 1)}
    return {int(n): taken.median for n, taken in interleaved(calls, seconds).items()}


def many_callers(
    artifact: Path, batch: int, callers: Sequence[int], seconds: float
) -> dict[int, float]:
    """Calls a second that so many threads make together, each one request after the other."""
    from graphopt import api
    from graphopt.artifact import Artifact

    engine = Artifact.load(artifact)
    feeds = api.random_inputs(artifact, engine, batch)
    turns = [
        {count: _rate(lambda: engine.run(feeds), count, seconds / 4) for count in callers}
        for _ in range(4)
    ]
    return {count: median(turn[count] for turn in turns) for count in callers}


def _rate(call: Callable[[], object], callers: int, seconds: float) -> float:
    done = [0] * callers
    ready = threading.Barrier(callers + 1)

    def work(place: int) -> None:
        call()
        ready.wait()
        while not done[place] or time.perf_counter() < until[0]:
            call()
            done[place] += 1

    until = [0.0]
    threads = [threading.Thread(target=work, args=(place,)) for place in range(callers)]
    for thread in threads:
        thread.start()
    start = time.perf_counter()
    until[0] = start + seconds
    ready.wait()
    for thread in threads:
        thread.join()
    return sum(done) / (time.perf_counter() - start)


def measure(model: str, batches: Sequence[int], seconds: float) -> dict[str, Any]:
    """All figures of one model."""
    cores = len(os.sched_getaffinity(0))
    callers = sorted({1, *(1 << k for k in range(1, cores.bit_length())), cores, 2 * cores})
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        artifact = prepared(model, folder)
        requests = written(artifact, batches[0], folder, REQUESTS)
        found: dict[str, Any] = {"model": model, "cores": cores}
        found["start"] = start(artifact, requests)
        found["memory"] = memory(artifact, requests)
        found["one_request_us"] = {b: one_request(artifact, b, cores, seconds) for b in batches}
        found["calls_per_second"] = {
            batch: many_callers(artifact, batch, callers, seconds) for batch in batches
        }
    return found


def show(found: dict[str, Any]) -> None:
    """Print the figures."""
    console, first = Console(width=120), found["start"]
    console.print(
        f"{found['model']} on {found['cores']} cores; import to first answer: "
        f"{first['seconds']:.2f} s, {first['cpu_seconds']:.2f} s of CPU time"
    )
    mega = {name: f"{size / 1e6:.0f} MB" for name, size in found["memory"].items()}
    console.print(
        f"memory: {mega['tables_and_weights']} of tables and weights, {mega['resident']} resident: "
        f"{mega['weights']} of them touched, and {mega['rest']} of all else; "
        f"in two processes each accounts for {mega['weights_share_of_two']} of the touched"
    )
    for name, title in (
        ("one_request_us", "one request: µs on so many threads"),
        ("calls_per_second", "a busy server: calls a second by so many callers"),
    ):
        counts = list(next(iter(found[name].values())))
        table = Table(title=title)
        for column in ("batch", *map(str, counts)):
            table.add_column(column, justify="right")
        for batch, row in found[name].items():
            table.add_row(str(batch), *(f"{row[count]:.0f}" for count in counts))
        console.print(table)


def main(
    model: Annotated[str, typer.Option(help="a production shape or a file")] = "dlrm_mlperf",
    batch: Annotated[str, typer.Option(help="batch sizes")] = "1,64,512",
    seconds: Annotated[float, typer.Option(help="per figure")] = 2.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="write it all here")] = None,
) -> None:
    """Measure start, memory, latency by threads and throughput by callers."""
    found = measure(model, [int(size) for size in batch.split(",")], seconds)
    if json_file:
        json_file.write_text(json.dumps(found, indent=1) + "\n")
    show(found)


if __name__ == "__main__":
    typer.run(main)
