"""Cases of serving, run one after another on the stand-ins: serving.py ARTIFACT CASE…

The output is a line of JSON: what went wrong in each case, nothing where it is empty.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnxruntime
from frameworks import Framework, OnGpu, on_host
from tvm_ffi.core import DLTensorTestWrapper

import graphopt
from graphopt.errors import ArtifactError, GraphoptError, IdError, InputError
from graphopt.measuring import profiling
from graphopt.serving.gpu_runtime import cuda, lane
from graphopt.serving.runtime import ffi

Feeds = Mapping[str, Any]
CASES: dict[str, Callable[[Path], None]] = {}


def case(function: Callable[[Path], None]) -> Callable[[Path], None]:
    """Register a case under its name."""
    CASES[function.__name__] = function
    return function


# ---------------------------------------------------------------------- what cases are made of


def feeds(batch: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Inputs of the example model."""
    rng = np.random.default_rng(seed)
    return {
        "ids": rng.integers(0, 7, (batch, 10)),
        "dense": rng.standard_normal((batch, 5), np.float32),
        "history": rng.integers(0, 7, (batch, 10)),
    }


def check(path: Path, found: Feeds, given: Feeds) -> None:
    """Outputs are those of the portable model."""
    session = onnxruntime.InferenceSession(path / "model.onnx")
    for output, wanted in zip(session.get_outputs(), session.run(None, given), strict=True):
        np.testing.assert_allclose(on_host(found[output.name]), wanted, rtol=1e-4, atol=1e-5)


def sequences(batch: int, steps: int, most: float = 0) -> dict[str, np.ndarray]:
    """Inputs of the models with loops."""
    x = np.linspace(-1, 1, batch * steps * 2, dtype=np.float32).reshape(batch, steps, 2)
    return {"x": x, "most": np.array(most, np.float32)}


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """How often each function of CUDA's runtime is called within."""
    counts: Counter[str] = Counter()
    real = cuda.call

    def call(name: str, *arguments: Any) -> None:
        counts[name] += 1
        real(name, *arguments)

    with mock.patch.object(cuda, "call", call):
        yield counts


@contextmanager
def refused(kind: type[GraphoptError], text: str) -> Iterator[None]:
    """Within, this is raised, in one line."""
    try:
        yield
    except kind as error:
        assert text in str(error) and "\n" not in str(error), str(error)
        return
    raise AssertionError(f"nothing was raised, {text!r} was expected")


# ---------------------------------------------------------------------- the cases


@case
def batches_in_any_order(path: Path) -> None:
    artifact = graphopt.load(path)
    for seed, batch in enumerate([1, 3, 1, 1, 70, 1, 3, 3, 0, 0, 0, 200, 1, 70, 70]):
        given = feeds(batch, seed)
        check(path, artifact.run(given), given)


@case
def a_call_is_one_launch(path: Path) -> None:
    artifact = graphopt.load(path)
    for seed in range(3):
        given = feeds(7, seed)
        with counted() as counts:
            found = artifact.run(given)
        check(path, found, given)
    assert counts == {"GraphLaunch": 1, "StreamSynchronize": 1}, counts  # copies are in the graph
    mixed = {**given, "ids": OnGpu(given["ids"])}
    for graphs in (1, 1, 0):  # one more, of the kernels alone, and one that works in place
        with counted() as counts:
            check(path, artifact.run(mixed), given)
        assert counts["GraphInstantiate"] == graphs and counts["GraphLaunch"] == 1
    assert not counts["MemcpyAsync"]
    assert artifact.placement["no_graphs"] is None


@case
def graphs_are_bounded(path: Path) -> None:
    artifact = graphopt.load(path)
    with mock.patch.object(lane, "SHAPES", 2), counted() as counts:
        for batch in [9, 9, 1, 1, 2, 2, 3, 3, 3, 1, 1]:
            given = feeds(batch)
            check(path, artifact.run(given), given)
    assert counts["GraphInstantiate"] == 5
    assert counts["GraphExecDestroy"] >= 3


@case
def large_batches_make_no_graphs(path: Path) -> None:
    artifact = graphopt.load(path)
    with mock.patch.object(lane, "GRAPH_BYTES", 4096), counted() as counts:
        for _ in range(3):
            check(path, artifact.run(feeds(40)), feeds(40))
    assert counts["StreamBeginCapture"] == 0


@case
def without_graphs(path: Path) -> None:  # run with EMULATOR_CAPTURE=0
    artifact = graphopt.load(path)
    for seed in range(4):
        given = feeds(5, seed)
        check(path, artifact.run(given), given)
    assert "capturing" in artifact.placement["no_graphs"]


@case
def several_threads(path: Path) -> None:
    artifact = graphopt.load(path)

    def serve(seed: int) -> None:
        given = feeds(1 + seed % 5, seed)
        check(path, artifact.run(given), given)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(serve, range(40)))


@case
def inputs_on_the_gpu(path: Path) -> None:
    artifact = graphopt.load(path)
    for seed in range(3):
        given = feeds(6, seed)
        device = {name: OnGpu(array) for name, array in given.items()}
        check(path, artifact.run(device), given)
        assert all(len(array.asked) == 1 for array in device.values())
        check(path, artifact.run({**given, "ids": OnGpu(given["ids"])}), given)


@case
def inputs_whose_producer_tells_its_stream(path: Path) -> None:
    artifact, given = graphopt.load(path), feeds(6)
    for name, array in given.items():
        device = OnGpu(array)
        with ffi().use_raw_stream(ffi().device("cuda", 0), device.stream.handle), counted() as n:
            found = artifact.run({**given, name: DLTensorTestWrapper(device.tensor)})
        assert n["EventRecord"] == 1 and not device.asked
        check(path, found, given)


@case
def outputs_on_the_gpu(path: Path) -> None:
    artifact = graphopt.load(path)
    kept = [(feeds(6, seed), artifact.run_device(feeds(6, seed))) for seed in range(4)]
    for given, found in kept:  # later calls leave them alone
        check(path, found, given)


@case
def arrays_of_a_framework(path: Path) -> None:
    artifact, framework, given = graphopt.load(path), Framework(), feeds(6)
    device = {name: framework.Array(array) for name, array in given.items()}
    for seed in range(4):
        with counted() as counts:
            found = artifact.run_device(device)
        check(path, found, given)
        assert framework.given == [(6, 1)] * (seed + 1)  # results are in memory of its pool
        assert counts["EventRecord"] == counts["StreamWaitEvent"] == 1  # one wait for all of them
    assert counts["MemcpyAsync"] == 1 and counts["GraphLaunch"] == 1 and not counts["EventCreate"]
    framework.room = False
    with refused(InputError, "the GPU has no room for this batch"):
        artifact.run_device(device)


@case
def arrays_at_odd_addresses(path: Path) -> None:
    artifact, framework, given = graphopt.load(path), Framework(), feeds(6)
    device = {name: framework.Array(array, skipped=8) for name, array in given.items()}
    for _ in range(4):
        check(path, artifact.run_device(device), given)


@case
def outputs_over_inputs(path: Path) -> None:
    artifact, framework = graphopt.load(path), Framework()
    for seed in range(4):
        given = feeds(6, seed)
        device = {name: framework.Array(array) for name, array in given.items()}
        room = framework.Array(np.zeros((6, 1), np.float32))
        room.on_gpu = device["dense"].on_gpu
        for _ in range(3):
            written = framework.Array(given["dense"])  # keeps what the other call has changed
            cuda.copy(room.address, written.address, given["dense"].nbytes, framework.stream.handle)
            artifact.run_device(device, out={"ctr": room})
            result = np.empty((6, 1), np.float32)
            cuda.copy(result.ctypes.data, room.address, result.nbytes, 0)
            cuda.synchronize(0)
            check(path, {"ctr": result}, given)


@case
def outputs_in_memory_of_the_caller(path: Path) -> None:
    artifact = graphopt.load(path)
    room = OnGpu(np.zeros((6, 1), np.float32))
    for seed in range(4):
        given = feeds(6, seed)
        with counted() as counts:
            found = artifact.run_device(given, out={"ctr": room})
        assert found["ctr"] is room and len(room.asked) == seed + 1
        check(path, {"ctr": room.tensor}, given)
    assert counts["GraphLaunch"] == 1 and not counts["MemcpyAsync"]  # all is in the graph
    for wrong, text in [
        ({"ctr": np.zeros((6, 1), np.float32)}, "output 'ctr' is on the host"),
        ({"ctr": OnGpu(np.zeros((5, 1), np.float32))}, "room for float32[5, 1] was given"),
        ({"ctr": OnGpu(np.zeros((6, 1), np.int32))}, "'ctr' is float32[6, 1], room for int32"),
        ({"ctr": OnGpu(np.zeros((6, 1), np.float32), (2, 1))}, "output 'ctr' is on GPU 1"),
        ({}, "`out` names [], the outputs are ['ctr']"),
    ]:
        with refused(InputError, text):
            artifact.run_device(feeds(6), out=wrong)
    check(path, artifact.run(feeds(6)), feeds(6))


@case
def outputs_of_unknown_size(path: Path) -> None:
    with refused(ArtifactError, "known only at run time: leave `out` away"):
        graphopt.load(path).run_device(feeds(1), out={"ctr": OnGpu(np.zeros((1, 1), np.float32))})


@case
def streams_of_the_caller(path: Path) -> None:  # a model that has nothing to report
    artifact, stream = graphopt.load(path), cuda.Stream()
    with counted() as counts:
        kept = []
        for seed in range(5):
            given = feeds(6, seed)
            device = {name: OnGpu(array) for name, array in given.items()}
            kept.append((given, artifact.run_device(device, stream=stream.handle)))
            assert all(array.asked == [stream.handle] for array in device.values())
    assert counts["StreamSynchronize"] == counts["EventSynchronize"] == 0
    # From the host, the staging buffer has to be free first.
    kept += [
        (feeds(6, seed), artifact.run_device(feeds(6, seed), stream.handle)) for seed in (7, 8)
    ]
    check(path, artifact.run(feeds(4)), feeds(4))
    cuda.synchronize(stream.handle)
    for given, found in kept:
        check(path, found, given)
    check(path, artifact.run_device(feeds(4), stream=0), feeds(4))


@case
def tables_in_host_memory(path: Path) -> None:
    everywhere = graphopt.load(path).placement
    assert everywhere["host_bytes"] == 0 and not everywhere["host_tables"]
    artifact = graphopt.load(path, gpu_memory_share=0.0)
    assert artifact.placement["device_bytes"] == 0
    for share in (0.0, 500_000 / cuda.free_bytes()):
        artifact = graphopt.load(path, gpu_memory_share=share)
        for _ in range(3):
            check(path, artifact.run(feeds(6)), feeds(6))
    placement = artifact.placement
    assert placement["device_bytes"] and placement["host_bytes"]
    assert placement["host_tables"] == [[32623, 8]], placement


@case
def no_room(path: Path) -> None:  # run with EMULATOR_MEMORY=8000000
    artifact = graphopt.load(path)
    with refused(InputError, "the GPU has no room for this batch"):
        artifact.run(feeds(50_000))
    with refused(InputError, "the GPU has no room for this batch"):
        artifact.run_device(feeds(50_000))
    check(path, artifact.run(feeds(6)), feeds(6))


@case
def no_room_for_weights(path: Path) -> None:  # run with EMULATOR_MEMORY=100000
    with refused(ArtifactError, "no room for"):
        graphopt.load(path)


@case
def unfit_inputs(path: Path) -> None:
    artifact, good = graphopt.load(path), feeds(3)
    for name, bad, text in [
        ("ids", OnGpu(good["ids"], (2, 1)), "input 'ids' is on GPU 1, the model on GPU 0"),
        ("ids", OnGpu(good["ids"], (10, 0)), "a device of DLPack type 10"),
        ("ids", OnGpu(good["ids"].astype(np.int32)), "is int32, the model takes int64"),
        ("ids", good["ids"].astype(np.int32), "is int32, the model takes int64"),
        ("ids", good["ids"][:, :9], "has 9 on axis 1, expected 10"),
        ("ids", good["ids"][:2], "must agree"),
        ("ids", good["ids"][0], "expected ids: int64"),
    ]:
        for run in (artifact.run, artifact.run_device, artifact.device_times):
            with refused(InputError, text):
                run({**good, name: bad})
    with refused(InputError, "unknown input 'more'"):
        artifact.run_device({**good, "more": 1})
    check(path, artifact.run({**good, "ids": good["ids"].tolist()}), good)
    check(path, artifact.run({**good, "ids": np.asfortranarray(good["ids"])}), good)


@case
def ids_out_of_range(path: Path) -> None:
    artifact, good = graphopt.load(path), feeds(3)
    bad = {**good, "ids": np.full((3, 10), 10**12)}
    for run in (artifact.run, artifact.run_device) * 3:
        with refused(IdError, "an id is out of range"):
            run(bad)
        check(path, run(good), good)


@case
def no_gpu(path: Path) -> None:  # run with EMULATOR_DEVICES=0
    with refused(ArtifactError, "this machine has an NVIDIA driver, but no GPU that it can use"):
        graphopt.load(path)


@case
def times(path: Path) -> None:
    artifact = graphopt.load(path)
    found = artifact.device_times(feeds(3), calls=5)
    assert found.shape == (5,) and (found == 1000).all()  # the stand-in's only time


@case
def kernels_one_by_one(path: Path) -> None:
    artifact = graphopt.load(path)
    calls = artifact.manifest["program"]
    assert all(entry["kernel"] for entry in calls) and any(entry["sources"] for entry in calls)
    with counted() as counts:
        found = artifact.profile(feeds(3))
    assert found.shape == (len(calls),) and (found == 1e6).all()
    assert counts["EventCreate"] == len(calls) + 1 + 2  # two are the lane's


@case
def profile(path: Path) -> None:
    found = profiling.profile(path, 3, seconds=0, inputs=feeds(3))
    assert found.device == "emulator" and found.peaks is None
    assert {kernel.microseconds for kernel in found.kernels} == {1000.0}
    assert all(kernel.bound is None and kernel.sources for kernel in found.kernels[:3])


@case
def loops_as_long_as_a_sequence(path: Path) -> None:
    """Nothing is waited for, or it could not be captured."""
    artifact = graphopt.load(path)
    for steps in (1, 4, 1, 4, 2):
        check(path, artifact.run(sequences(3, steps)), sequences(3, steps))
    with counted() as counts:
        check(path, artifact.run(sequences(3, 4)), sequences(3, 4))
    assert counts == {"GraphLaunch": 1, "StreamSynchronize": 1}, counts
    assert artifact.placement["no_graphs"] is None
    assert artifact.run(sequences(3, 0))["all"].shape == (0, 3, 2)
    assert artifact.profile(sequences(3, 4)).shape == (len(artifact.manifest["program"]),)
    device = {name: OnGpu(array) for name, array in sequences(3, 4).items()}
    for _ in range(3):
        check(path, artifact.run_device(device), sequences(3, 4))
    with mock.patch.object(lane, "GRAPH_NODES", 30), counted() as counts:
        for _ in range(4):
            check(path, artifact.run(sequences(2, 40)), sequences(2, 40))
    assert counts["StreamBeginCapture"] == 1 and not counts["GraphInstantiate"], counts


@case
def loops_that_data_ends(path: Path) -> None:
    artifact = graphopt.load(path)

    def serve(seed: int) -> None:
        given = sequences(1 + seed % 3, 6, most=seed % 7)
        check(path, artifact.run(given), given)
        device = {name: OnGpu(array) for name, array in given.items()}
        check(path, artifact.run_device(device), given)
        stream = cuda.Stream()
        found = artifact.run_device(given, stream.handle)
        cuda.synchronize(stream.handle)
        check(path, found, given)

    with counted() as counts:
        for _ in range(3):
            serve(3)
    assert not counts["StreamBeginCapture"], counts
    assert artifact.placement["no_graphs"].startswith("data decides what runs (Loop ")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(serve, range(24)))
    assert artifact.profile(sequences(3, 4)).shape == (len(artifact.manifest["program"]),)


def outcome(case: str, path: Path) -> str:
    """The error in which a case ends, and where; nothing if it ends well."""
    try:
        CASES[case](path)
    except Exception:
        return traceback.format_exc()
    return ""


if __name__ == "__main__":
    artifact = Path(sys.argv[1])
    print(json.dumps({name: outcome(name, artifact) for name in sys.argv[2:]}))
