"""RoiAlign, MaxUnpool and TensorScatter, whose positions are data, on many threads."""

from __future__ import annotations

import re

import gpu_emulator
import numpy as np
import pytest

from graphopt.testing import parse, run_compiled

from .conftest import Runner, assert_close

RNG = np.random.default_rng(5)
Feed = dict[str, np.ndarray]

REGIONS = """(float[B,2,9,8] x, float[R,4] rois, int64[R] images)
    => (float[R,2,3,2] v, float[R,2,3,2] w)
    {
        v = RoiAlign<output_height=3, output_width=2, sampling_ratio=2>(x, rois, images)
        w = RoiAlign<output_height=3, output_width=2, sampling_ratio=1, mode="max">(x, rois, images)
    }"""
UNPOOLED = """(float[N,2,2,3] x, int64[N,2,2,3] i) => (float[N,2,4,6] y, float[N,2,4,7] z)
    <int64[4] size = {2, 2, 4, 7}>
    {
        y = MaxUnpool<kernel_shape=[2,2], strides=[2,2]>(x, i)
        z = MaxUnpool<kernel_shape=[2,2], strides=[2,2]>(x, i, size)
    }"""
WINDOWS = """(float[N,3,8,9] x)
    => (float[N,3,6,7] v, float[N,3,5,4] w, float[N,3,2,3] y, float[N,3,2,3] z)
    {
        v = AveragePool<kernel_shape=[3,3]>(x)
        w = AveragePool<kernel_shape=[3,3], strides=[2,3], pads=[2,1,2,2]>(x)
        y = LpPool<kernel_shape=[7,7], p=2>(x)
        z = MaxPool<kernel_shape=[7,7]>(x)
    }"""
WRITTEN = """(float[N,2,5,3] cache, float[N,2,2,3] new, int64[N] at) => (float[N,2,5,3] y)
    {{ y = TensorScatter<mode="{}">(cache, new, at) }}"""


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def regions(images: list[int]) -> Feed:
    rois = np.float32([[1, 2, 6, 7], [0, 0, 0.5, 0.5], [-3, 4, 20, 8], [5, 5, 7, 6]])
    return {"x": floats(2, 2, 9, 8), "rois": rois, "images": np.array(images)}


def unpooled(places: np.ndarray) -> Feed:
    return {"x": floats(*places.shape), "i": places}


def written(starts: list[int]) -> Feed:
    count = len(starts)
    return {
        "cache": floats(count, 2, 5, 3), "new": floats(count, 2, 2, 3), "at": np.array(starts)
    }  # fmt: skip


# Places that several elements go to: the last one stays.
TWICE = RNG.integers(0, 24, (2, 2, 2, 3)) + 24 * np.arange(4).reshape(2, 2, 1, 1)
GOOD: dict[str, tuple[str, Feed]] = {
    "regions": (REGIONS, regions([0, 1, 1, 0])),
    "windows": (WINDOWS, {"x": floats(3, 3, 8, 9)}),
    "unpooled": (UNPOOLED, unpooled(TWICE)),
    "linear": (WRITTEN.format("linear"), written([0, 3, 1])),
    "circular": (WRITTEN.format("circular"), written([0, 3, 4])),
}
BAD: dict[str, tuple[str, Feed, str]] = {
    "an image below": (REGIONS, regions([0, 1, -1, 0]), "image that does not exist"),
    "an image above": (REGIONS, regions([0, 1, 2, 0]), "image that does not exist"),
    "a place below": (UNPOOLED, unpooled(TWICE - 90), "an index lies outside of its output"),
    "a place above": (UNPOOLED, unpooled(TWICE + 90), "an index lies outside of its output"),
    "a start below": (WRITTEN.format("circular"), written([0, -1]), "IdError.*axis of size 5"),
    "a start above": (WRITTEN.format("linear"), written([0, 4]), "IdError.*axis of size 5"),
    "far": (WRITTEN.format("circular"), written([0, 2**62]), "IdError.*axis of size 5"),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_as_on_a_cpu(name: str, run_model: Runner) -> None:
    """The CPU's kernels are compared with ONNX Runtime and with ONNX's evaluator elsewhere."""
    text, feed = GOOD[name]
    graph, sources = parse(text, 24), list[str]()
    found = run_model(graph, feed, edit=lambda s: sources.append(s) or s)  # type: ignore[func-returns-value]
    assert_close(found, [run_compiled(graph, feed)])
    assert not re.search(r'extern "C" __global__ void (?!__launch_bounds__)\w+\(', sources[0])


@pytest.mark.parametrize("name", BAD)
def test_positions_outside_are_reported(name: str, run_model: Runner) -> None:
    text, feed, complaint = BAD[name]
    with pytest.raises(gpu_emulator.LaunchError, match=complaint):
        run_model(parse(text, 24), feed)


@pytest.mark.parametrize("oob", ["clamp", "zero"])
@pytest.mark.parametrize("mode", ["linear", "circular"])
def test_starts_outside_are_tamed(mode: str, oob: str, run_model: Runner) -> None:
    graph, feed = parse(WRITTEN.format(mode), 24), written([1, 4, -1, 2**62])
    assert_close(run_model(graph, feed, oob=oob), [run_compiled(graph, feed, oob)])  # type: ignore[arg-type]


def test_more_steps_than_a_cache_has(run_model: Runner) -> None:
    text = WRITTEN.format("linear").replace("N,2,2,3", "N,2,S,3")
    feed = written([0]) | {"new": floats(1, 2, 6, 3)}
    for oob in ("error", "clamp"):
        with pytest.raises(gpu_emulator.LaunchError, match="axis of size 5"):
            run_model(parse(text, 24), feed, oob=oob)
    (found,) = run_model(parse(text, 24), feed, oob="zero")
    np.testing.assert_array_equal(found["y"], feed["cache"])


def test_a_write_without_starts(run_model: Runner) -> None:
    text = WRITTEN.format("linear").replace(", int64[N] at", "").replace("new, at", "new")
    feed = {name: array for name, array in written([0, 0]).items() if name != "at"}
    (found,) = run_model(parse(text, 24), feed)
    np.testing.assert_array_equal(found["y"][:, :, :2], feed["new"])
    np.testing.assert_array_equal(found["y"][:, :, 2:], feed["cache"][:, :, 2:])
