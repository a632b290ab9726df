"""Normalization and softmax along rows of any length, against NumPy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .conftest import Runner

RNG = np.random.default_rng(12)
# Shared by part of a warp, by a warp with some to spare, kept in registers or read again.
WIDTHS = (1, 5, 8, 37, 64, 132, 1500)
BATCHES = (1, 7, 64)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def feeds_of(widths: tuple[int, ...], batches: tuple[int, ...] = BATCHES) -> list[dict]:
    return [{f"x{w}": 3 * normal(n, 2, w) + 5 for w in widths} for n in batches]


def rows_of(line: str, widths: tuple[int, ...] = WIDTHS) -> str:
    """A model that computes y from x, for each of several widths; Neg makes memory of our own."""
    inputs = ", ".join(f"float[n, 2, {w}] x{w}" for w in widths)
    outputs = ", ".join(f"float[n, 2, {w}] y{w}" for w in widths)
    body = "\n".join(line.replace("@", str(w)) for w in widths)
    return f"agraph ({inputs}) => ({outputs}) {{ {body} }}"


def launches(source: str) -> int:
    return source.count('extern "C" __global__') // 2  # each is declared first


def check(
    text: str,
    feeds: list[dict],
    function: Callable[[np.ndarray], np.ndarray],
    run_text: Runner,
    **options: object,
) -> None:
    sources: list[str] = []
    found = run_text(text, *feeds, edit=lambda s: sources.append(s) or s, **options)
    for results, feed in zip(found, feeds, strict=True):
        for name, x in feed.items():
            wanted = function(x.astype(np.float64))
            # Sums of up to 1500 numbers of float32.
            np.testing.assert_allclose(results[f"y{name[1:]}"], wanted, rtol=2e-5, atol=5e-6)
    assert launches(sources[0]) == 2  # the operands of all, and what becomes of them


def normalized(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 0.1)


def test_layer_normalization(run_text: Runner) -> None:
    line = "a@ = Neg (x@)\ny@ = LayerNormalization <epsilon = 0.1> (a@, s@, b@)"
    constants = {}
    for w in WIDTHS:
        constants |= {f"s{w}": normal(w), f"b{w}": normal(w)}

    def function(x: np.ndarray) -> np.ndarray:
        w = x.shape[-1]
        return normalized(-x) * constants[f"s{w}"] + constants[f"b{w}"]

    check(rows_of(line), feeds_of(WIDTHS), function, run_text, constants=constants)


def root_mean_square(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 0.5)


def test_root_mean_square_normalization(run_text: Runner) -> None:
    widths = (5, 64)
    line = """a@ = Neg (x@)
        q@ = Mul (a@, a@)
        m@ = ReduceMean <keepdims = 1> (q@, last)
        d@ = Add (m@, half)
        r@ = Sqrt (d@)
        y@ = Div (a@, r@)"""
    constants = {"last": np.array([-1]), "half": np.float32([0.5])}
    function = lambda x: root_mean_square(-x)  # noqa: E731
    check(rows_of(line, widths), feeds_of(widths), function, run_text, constants=constants)


def softmax(x: np.ndarray) -> np.ndarray:
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def test_softmax(run_text: Runner) -> None:
    line = "a@ = Neg (x@)\ny@ = Softmax (a@)"
    check(rows_of(line), feeds_of(WIDTHS), lambda x: softmax(-x), run_text)


def test_logarithm_of_softmax(run_text: Runner) -> None:
    line = "a@ = Neg (x@)\ny@ = LogSoftmax <axis = 2> (a@)"
    widths = (5, 64)
    function = lambda x: np.log(softmax(-x))  # noqa: E731
    check(rows_of(line, widths), feeds_of(widths), function, run_text)


def test_rows_of_any_length(run_text: Runner) -> None:
    text = "agraph (float[n, t] x) => (float[n, t] y) { y = Softmax (x) }"
    feeds = [{"x": normal(n, t)} for n, t in ((3, 1), (5, 31), (64, 70), (0, 4))]
    for found, feed in zip(run_text(text, *feeds), feeds, strict=True):
        np.testing.assert_allclose(found["y"], softmax(feed["x"]), rtol=1e-5, atol=1e-6)


def test_what_is_no_number_stays_in_its_row(run_text: Runner) -> None:
    text = "agraph (float[n, 40] x) => (float[n, 40] y) { y = Softmax (x) }"
    x = normal(5, 40)
    x[1, 33] = np.nan
    x[2] = -np.inf
    x[3, 2:] = -np.inf
    (found,) = run_text(text, {"x": x})
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(found["y"], softmax(x), rtol=1e-5, atol=1e-6)
    assert np.isnan(found["y"]).any(1).tolist() == [False, True, True, False, False]


def test_softmax_along_another_axis_or_of_other_numbers(run_text: Runner) -> None:
    text = """agraph (float[n, 4, 3] x, double[n, 3] d) => (float[n, 4, 3] y, double[n, 3] e) {
        y = Softmax <axis = 1> (x)
        e = Softmax (d)
    }"""
    feed = {"x": normal(9, 4, 3), "d": RNG.standard_normal((9, 3))}
    (found,) = run_text(text, feed)
    wanted = softmax(feed["x"].transpose(0, 2, 1)).transpose(0, 2, 1)
    np.testing.assert_allclose(found["y"], wanted, rtol=1e-5)
    np.testing.assert_allclose(found["e"], softmax(feed["d"]), rtol=1e-12)
