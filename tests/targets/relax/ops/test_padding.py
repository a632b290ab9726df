"""Pad against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
from agreement import agree

from graphopt.errors import InputError
from graphopt.testing import Compiled, parse


def ramp(*shape: int) -> np.ndarray:
    return np.arange(1, 1 + int(np.prod(shape)), dtype=np.float32).reshape(shape)


# Pads of a [N, 4] tensor: before both axes, after both axes.
BORDERS = [
    ("constant", [1, 2, 0, 3]),
    ("constant", [-1, 2, 1, -2]),
    ("constant", [-1, -2, -1, -2]),
    ("edge", [1, 2, 0, 3]),
    ("edge", [-1, 0, 2, -2]),
    ("reflect", [2, 3, 1, 0]),
    ("reflect", [0, 1, 2, 2]),
    ("wrap", [2, 3, 1, 4]),
]


@pytest.mark.parametrize(("mode", "pads"), BORDERS)
@pytest.mark.parametrize("known", [True, False])
def test_pad(mode: str, pads: list[int], known: bool) -> None:
    sizes = "{" + ", ".join(map(str, pads)) + "}"
    constant, given = f"int64[4] p = {sizes}", {"p": np.array(pads)}
    text = f"""g (float[N,4] x{", int64[4] p" if not known else ""}) => (float[a] y)
        <{constant if known else ""}> {{ y = Pad<mode="{mode}">(x, p) }}"""
    agree(text, *({"x": ramp(n, 4), **({} if known else given)} for n in (3, 5)), opset=19)


@pytest.mark.parametrize("axes", [[1], [-1], [1, 0]])
def test_axes(axes: list[int]) -> None:
    pads = [1, 2, 3, 4][: 2 * len(axes)]
    borders, given = (f"{{{str(values)[1:-1]}}}" for values in (pads, axes))
    text = f"""g (float[N,4] x, float v) => (float[a] y)
        <int64[{len(pads)}] p = {borders}, int64[{len(axes)}] axes = {given}>
        {{ y = Pad(x, p, v, axes) }}"""
    agree(text, *({"x": ramp(n, 4), "v": np.array(7.5, np.float32)} for n in (0, 3)))


def test_axes_known_at_run_time() -> None:
    text = "g (float[N,4] x, int64[2] p, int64[1] axes) => (float[a] y) { y = Pad(x, p, , axes) }"
    pads = np.array([1, 2])
    agree(text, *({"x": ramp(3, 4), "p": pads, "axes": np.array([k])} for k in (0, 1, -1)))


def test_no_pads_at_all() -> None:
    text = """g (float[N,4] x) => (float[a] y) <int64[4] p = {0, 0, 0, 0}>
        { r = Pad(x, p) y = Neg(r) }"""
    agree(text, {"x": ramp(3, 4)}, {"x": ramp(0, 4)})


def test_a_single_element_is_repeated() -> None:
    text = 'g (float[N] x) => (float[a] y) <int64[2] p = {2, 3}> { y = Pad<mode="MODE">(x, p) }'
    for mode in ("reflect", "wrap", "edge"):
        compiled = Compiled(parse(text.replace("MODE", mode), 19))
        assert compiled({"x": np.array([4], np.float32)})["y"].tolist() == [4.0] * 6


def test_far_reflections_turn_again() -> None:
    """As NumPy does; ONNX Runtime reads outside the tensor here."""
    text = 'g (float[N] x) => (float[a] y) <int64[2] p = {5, 7}> { y = Pad<mode="reflect">(x, p) }'
    found = Compiled(parse(text))({"x": ramp(3)})["y"]
    np.testing.assert_array_equal(found, np.pad(ramp(3), (5, 7), mode="reflect"))


@pytest.mark.parametrize(("mode", "n"), [("constant", 2), ("edge", 0), ("reflect", 0), ("wrap", 0)])
def test_an_axis_too_short_for_its_pads(mode: str, n: int) -> None:
    pads = "{-2, -1}" if mode == "constant" else "{1, 1}"
    text = f"""g (float[N] x) => (float[a] y) <int64[2] p = {pads}>
        {{ y = Pad<mode="{mode}">(x, p) }}"""
    with pytest.raises(InputError, match="Pad 'y': axis 0 is too short for its pads"):
        Compiled(parse(text, 19))({"x": ramp(n)})
