"""GridSample and RoiAlign against ONNX Runtime, with a symbolic batch."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from agreement import agree, agree_on_random_inputs

from graphopt.errors import InputError, UnsupportedOpError
from graphopt.testing import parse, run_compiled

PADDINGS = ["zeros", "border", "reflection"]
SAMPLE = '{3} = GridSample<mode="{0}", padding_mode="{1}", align_corners={2}>({4})'


# Coordinates are computed in float32; weights are their differences.
TOLERANCE = {"rtol": 1e-4, "atol": 2e-5}
check = partial(agree_on_random_inputs, **TOLERANCE)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_grid_sample_of_two_axes(mode: str) -> None:
    cases = [(mode, padding, align) for padding in PADDINGS for align in (0, 1)]
    outputs = ", ".join(f"float[N,2,4,3] y{k}" for k in range(len(cases)))
    body = "\n".join(SAMPLE.format(*case, f"y{k}", "x, g") for k, case in enumerate(cases))
    # A third of the grid lies outside, some of it by more than the image's size.
    check(f"(float[N,2,3,5] x, float[N,4,3,2] g) => ({outputs}) {{ {body} }}")


def test_grid_sample_of_three_axes() -> None:
    cases = [(mode, padding, 0) for mode in ("nearest", "linear") for padding in PADDINGS]
    outputs = ", ".join(f"float[N,2,2,4,3] y{k}" for k in range(len(cases)))
    body = "\n".join(SAMPLE.format(*case, f"y{k}", "x, g") for k, case in enumerate(cases))
    check(f"(float[N,2,3,5,4] x, float[N,2,4,3,3] g) => ({outputs}) {{ {body} }}")


@pytest.mark.parametrize("padding", PADDINGS)
def test_grid_sample_reads_no_foreign_memory(padding: str) -> None:
    graph = parse(
        "(float[1,1,2,2] x, float[1,1,4,2] g) => (float[1,1,1,4] y)"
        f'{{ y = GridSample<padding_mode="{padding}">(x, g) }}',
        20,
    )
    grid = np.float32([[[[np.nan, 0], [np.inf, 0], [1e30, -1e30], [0, -np.inf]]]])
    feeds = {"x": np.zeros((1, 1, 2, 2), np.float32), "g": grid}
    found = run_compiled(graph, feeds)["y"]
    assert np.all(np.isnan(found) | (found == 0))


REGIONS = """(float[B,2,9,8] x, float[R,4] rois, int64[R] images)
    => (float[R,2,3,2] v, float[R,2,3,2] w, float[R,2,3,2] y)
    {
        v = RoiAlign<output_height=3, output_width=2, sampling_ratio=2>(x, rois, images)
        w = RoiAlign<output_height=3, output_width=2, sampling_ratio=3, spatial_scale=0.5,
            coordinate_transformation_mode="output_half_pixel">(x, rois, images)
        y = RoiAlign<output_height=3, output_width=2, sampling_ratio=1, mode="max">(x, rois, images)
    }"""


def _regions() -> dict[str, np.ndarray]:
    x = np.random.default_rng(0).normal(size=(2, 2, 9, 8)).astype(np.float32)
    rois = np.float32([[1, 2, 6, 7], [0, 0, 0.5, 0.5], [-3, 4, 20, 8], [5, 5, 7, 6]])
    return {"x": x, "rois": rois, "images": np.array([0, 1, 1, 0])}


def test_roi_align() -> None:
    agree(REGIONS, _regions(), opset=20, **TOLERANCE)


@pytest.mark.parametrize("bad", [2, -1])
def test_roi_align_checks_its_images(bad: int) -> None:
    with pytest.raises(InputError, match="image that does not exist"):
        run_compiled(parse(REGIONS, 20), {**_regions(), "images": np.array([0, 1, bad, 0])})


def test_roi_align_without_a_number_of_samples_is_refused() -> None:
    graph = parse(
        "(float[1,1,4,4] x, float[R,4] r, int64[R] i) => (float[R,1,1,1] y)"
        "{ y = RoiAlign(x, r, i) }",
        20,
    )
    with pytest.raises(UnsupportedOpError, match="sampling_ratio"):
        run_compiled(graph, {})
