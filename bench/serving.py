"""What serving a model takes and gives: start, memory, one request, many callers.

    python bench/serving.py [--model NAME|FILE] [--batch 1,64,512] [--json FILE]

NAME is one of the production shapes (`production.py`); dlrm_mlperf has 1.3 GB of tables. Every
figure comes from fresh processes that import nothing but the runtime. Memory is read from
/proc/PID/smaps: what is resident of `weights.bin`, in large pages and in small ones, and the rest.
Its proportional share while two processes serve is about half of that if they share it. What is
touched is what the CPU marks as read when all requests come again: pages of 4 KB.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import production
import typer
from isolation import run_script
from rich.console import Console
from rich.table import Table

REQUESTS = 200
PAGES = ("2 MB", "4 KB")
_SERVE = """
import sys, time
start, spent = time.perf_counter(), time.process_time()
import numpy as np
import graphopt
artifact = graphopt.load(sys.argv[1], large_pages=sys.argv[2] == "True")
requests = [dict(np.load(path)) for path in sys.argv[3:]]
artifact.run(requests[0])
print(time.perf_counter() - start, time.process_time() - spent, flush=True)
while True:
    for feeds in requests:
        artifact.run(feeds)
    print("served", flush=True)
    if not sys.stdin.readline():
        break
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
    from graphopt.serving.artifact import Artifact

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

    def __init__(self, artifact: Path, requests: Sequence[Path], large_pages: bool = True) -> None:
        arguments = [str(artifact), str(large_pages), *map(str, requests)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        command = [sys.executable, "-c", _SERVE, *arguments]
        self.process = subprocess.Popen(command, text=True, **pipes)
        assert self.process.stdout is not None
        self.start, self.spent = map(float, self.process.stdout.readline().split())
        assert self.process.stdout.readline() == "served\n"

    def resident(self) -> int:
        """Bytes resident."""
        return sum(size for _, size in self._sizes("Rss:"))

    def weights(self, kind: str = "Rss:") -> int:
        """Bytes of the weights' mapping that smaps counts as `kind`."""
        return sum(size for name, size in self._sizes(kind) if name.endswith("weights.bin"))

    def touched(self) -> int:
        """Bytes of weights in pages that are read when all requests come once more."""
        assert self.process.stdin is not None and self.process.stdout is not None
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("1")
        self.process.stdin.write("again\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "served\n"
        return self.weights("Referenced:")

    def _sizes(self, kind: str) -> Iterator[tuple[str, int]]:
        """The name and the bytes of each mapping."""
        mapping = ""
        for line in Path(f"/proc/{self.process.pid}/smaps").read_text().splitlines():
            name, *rest = line.split()
            if not name.endswith(":"):
                mapping = line
            elif name == kind:
                yield mapping, int(rest[0]) << 10

    def stop(self) -> None:
        self.process.communicate("")


def memory(artifact: Path, requests: Sequence[Path]) -> dict[str, Any]:
    """Resident memory of one process, with pages of either size, and what two share."""
    first, small = Server(artifact, requests), Server(artifact, requests, large_pages=False)
    found = {
        "tables_and_weights": (artifact / "weights.bin").stat().st_size,
        "resident": first.resident(),
        "weights": first.weights(),
        "resident_in_small_pages": small.resident(),
        "weights_in_small_pages": small.weights(),
        "touched": small.touched(),
    }
    small.stop()
    second = Server(artifact, requests)
    found["weights_share_of_two"] = first.weights("Pss:")
    for server in (first, second):
        server.stop()
    return found


def small_pages(artifact: Path, batch: int, seconds: float) -> float:
    """CPU time of calls with weights in pages of 4 KB over that with pages of 2 MB.

    Requests are all different, as the rows of one would soon be found without a miss.
    """
    from graphopt import api
    from graphopt.latency import Call, interleaved
    from graphopt.serving.artifact import Artifact

    engines = {size: Artifact.load(artifact, large_pages=size == "2 MB") for size in PAGES}
    some = engines["2 MB"]
    requests = [api.random_inputs(artifact, some, batch, seed) for seed in range(REQUESTS)]

    def call(engine: Artifact) -> Call:
        coming = cycle(requests)
        for feeds in requests:  # maps all that is read
            engine.run(feeds)
        return lambda: engine.run(next(coming))

    calls = {size: call(engine) for size, engine in engines.items()}
    taken = interleaved(calls, seconds, clock=time.thread_time)
    return taken["4 KB"].median / taken["2 MB"].median


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
    from graphopt.latency import Call, interleaved
    from graphopt.serving.artifact import Artifact

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
    from graphopt.serving.artifact import Artifact

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
        found["small_pages"] = {b: round(small_pages(artifact, b, seconds), 3) for b in batches}
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
        f"memory: {mega['tables_and_weights']} of tables and weights, of which {REQUESTS} requests "
        f"touch {mega['touched']}\n"
        f"  in large pages {mega['weights']} of {mega['resident']} resident are weights, "
        f"{mega['weights_share_of_two']} for each of two processes\n"
        f"  in small pages {mega['weights_in_small_pages']} of {mega['resident_in_small_pages']}; "
        "times of large pages: "
        + ", ".join(f"{r:.2f} at batch {batch}" for batch, r in found["small_pages"].items())
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
    run_script(main)
