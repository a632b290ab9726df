"""The elementary functions and the activations, against NumPy in float64."""

import numpy as np
import pytest
import tvm
from tvm.script import tirx as T

from graphopt.targets.kernels.activation import KINDS, Activation
from graphopt.targets.kernels.elementary import (
    atan,
    clip,
    erf,
    exp_of_negative,
    fast_exp,
    sigmoid,
    tanh,
)

WIDTH = 64
FUNCTIONS = {"exp": fast_exp, "sigmoid": sigmoid, "tanh": tanh, "erf": erf, "atan": atan}
ULPS = {"exp": 1.1, "sigmoid": 2.5, "tanh": 2.6, "erf": 2.8, "atan": 2.7}


def elementwise(function):
    """Kernel (x[n, 64]) -> y[n, 64] that applies `function` to vectors of 16."""

    @T.prim_func(private=True, s_tir=True)
    def elementwise(source: T.handle, target: T.handle):
        T.func_attr({"tirx.noalias": True})
        n = T.int64()
        x = T.match_buffer(source, (n, WIDTH), "float32", align=4)
        y = T.match_buffer(target, (n, WIDTH), "float32", align=4)
        for i, chunk in T.grid(n, WIDTH // 16):
            for j in T.vectorized(16):
                y[i, chunk * 16 + j] = function(x[i, chunk * 16 + j])

    return elementwise


NESTED = {"nested": lambda x: sigmoid(tanh(fast_exp(x))), "limit": lambda x: clip(x, -1.0, 2.0)}
NESTED |= {"of_negative": exp_of_negative}
ACTIVATIONS = {kind: Activation(kind) for kind in KINDS}
ACTIVATIONS |= {
    "elu_alpha": Activation("elu", 0.3),
    "clip_bounds": Activation("clip", -2.0, 3.0),
    "affine_both": Activation("affine", 2.0, -1.0),
}


@pytest.fixture(scope="module")
def kernels(compile_kernels):
    return compile_kernels(
        {
            name: elementwise(function)
            for name, function in {**FUNCTIONS, **NESTED, **ACTIVATIONS}.items()
        }
    )


def apply(kernel, x):
    """`kernel` over any 1-D array."""
    padded = np.zeros(-(-len(x) // WIDTH) * WIDTH, np.float32)
    padded[: len(x)] = x
    shape = (len(padded) // WIDTH, WIDTH)
    (y,) = kernel([padded.reshape(shape)], [(shape, "float32")])
    return y.reshape(-1)[: len(x)]


def exact_erf(x):
    """By the series for small arguments and 1 - erfc otherwise (Abramowitz and Stegun 7.1)."""
    from math import erf as scalar

    return np.array([scalar(v) for v in x])


EXACT = {
    "exp": np.exp,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "erf": exact_erf,
    "atan": np.arctan,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_error_in_units_in_the_last_place(kernels, name):
    """On every 49,999th float32; the bounds hold for all of them."""
    bits = np.arange(0, 2**32, 49_999, dtype=np.uint64).astype(np.uint32)
    x = bits.view(np.float32)
    x = x[np.isfinite(x)]
    y = apply(kernels[name], x).astype(np.float64)
    with np.errstate(all="ignore"):
        exact = EXACT[name](x.astype(np.float64))
        rounded = exact.astype(np.float32)
        unit = np.spacing(np.abs(rounded)).astype(np.float64)
    normal = (np.abs(exact) > 2.0**-126) & np.isfinite(rounded)
    assert (np.abs(y[normal] - exact[normal]) <= ULPS[name] * unit[normal]).all()
    np.testing.assert_array_equal(np.isinf(y), np.isinf(rounded))
    assert (np.abs(y[~normal & np.isfinite(y)]) <= 2.0**-125).all()


LIMITS = {"exp": (0, np.inf), "sigmoid": (0, 1), "tanh": (-1, 1), "erf": (-1, 1)}
LIMITS["atan"] = (np.float32(-np.pi / 2), np.float32(np.pi / 2))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_infinities_and_nan(kernels, name):
    y = apply(kernels[name], np.array([-np.inf, np.inf, np.nan, -3e38, 3e38], np.float32))
    low, high = LIMITS[name]
    np.testing.assert_array_equal(y, [low, high, np.nan, low, high])


def test_sigmoid_where_its_power_is_infinite_or_zero(kernels):
    x = np.concatenate([np.linspace(-89.5, -86, 5001), np.linspace(86, 89.5, 5001)])
    y = apply(kernels["sigmoid"], x.astype(np.float32)).astype(np.float64)
    exact = 1 / (1 + np.exp(-x.astype(np.float32).astype(np.float64)))
    normal = exact >= 2.0**-126
    np.testing.assert_allclose(y[normal], exact[normal], rtol=3e-7)
    assert ((y[~normal] >= 0) & (y[~normal] < 2.0**-125.9)).all()
    assert (y[x < -88.6] == 0).all() and (y[x > 0] == 1).all()


def test_exp_is_zero_where_it_would_be_subnormal(kernels):
    """Down to the last normal number; masked scores are far below."""
    least = np.float32(-87.33654)
    below = [np.nextafter(least, np.float32(-100)), -90, -103, -104, -1e9, -3.4e38]
    assert apply(kernels["exp"], np.array([least], np.float32))[0] >= np.finfo(np.float32).tiny
    assert (apply(kernels["exp"], np.array(below, np.float32)) == 0).all()


def test_exp_of_numbers_that_are_not_positive(kernels):
    """On every 9,999th of them; the bound holds for all."""
    bits = np.arange(0x80000000, 0xFF800000, 9_999, dtype=np.uint32)
    x = np.concatenate([bits.view(np.float32), np.linspace(-90, 0, 99_999, dtype=np.float32)])
    y, exact = apply(kernels["of_negative"], x).astype(np.float64), np.exp(x.astype(np.float64))
    normal = exact >= 2.0**-126
    unit = np.spacing(exact[normal].astype(np.float32)).astype(np.float64)
    assert (np.abs(y[normal] - exact[normal]) <= ULPS["exp"] * unit).all()
    assert ((y[~normal] >= 0) & (y[~normal] < 2.0**-125.9)).all()
    ends = np.array([-0.0, 0, np.nan, -88.1, -1e9, -3e38, -np.inf], np.float32)
    np.testing.assert_array_equal(apply(kernels["of_negative"], ends), [1, 1, np.nan, 0, 0, 0, 0])


def test_functions_nest(kernels):
    x = np.linspace(-5, 5, 200, dtype=np.float32)
    expected = 1 / (1 + np.exp(-np.tanh(np.exp(x.astype(np.float64)))))
    np.testing.assert_allclose(apply(kernels["nested"], x), expected, rtol=1e-6)


def test_clip_keeps_nan(kernels):
    y = apply(kernels["limit"], np.array([-9, -1, 0.5, 2, 9, np.nan, np.inf], np.float32))
    np.testing.assert_array_equal(y, [-1, -1, 0.5, 2, 2, np.nan, 2])


def expected_activation(kind, x):
    """The ONNX definitions, constants at their defaults."""
    with np.errstate(over="ignore"):
        return {
            "none": lambda: x,
            "affine": lambda: x,
            "affine_both": lambda: 2 * x - 1,
            "clip": lambda: np.clip(x, 0, 6),
            "clip_bounds": lambda: np.clip(x, -2, 3),
            "elu": lambda: np.where(x < 0, np.exp(x) - 1, x),
            "elu_alpha": lambda: np.where(x < 0, 0.3 * (np.exp(x) - 1), x),
            "gelu": lambda: 0.5 * x * (1 + exact_erf(x / np.sqrt(2))),
            "hard_sigmoid": lambda: np.clip(0.2 * x + 0.5, 0, 1),
            "tanh_gelu": lambda: x / 2 * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))),
            "hard_swish": lambda: x * np.clip(x / 6 + 0.5, 0, 1),
            "leaky_relu": lambda: np.where(x < 0, 0.01 * x, x),
            "relu": lambda: np.where(x < 0, 0, x),
            "scaled_tanh": lambda: np.tanh(x),
            "sigmoid": lambda: 1 / (1 + np.exp(-x)),
            "silu": lambda: x / (1 + np.exp(-x)),
            "softplus": lambda: np.logaddexp(0, x),
            "softsign": lambda: x / (1 + np.abs(x)),
            "tanh": lambda: np.tanh(x),
            "thresholded_relu": lambda: np.where(x <= 1, 0, x),
        }[kind]()


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activations(kernels, kind):
    x = np.concatenate([np.linspace(-12, 12, 4801), [-90, 90, 1e-6, -1e-6]]).astype(np.float32)
    expected = expected_activation(kind, x.astype(np.float64))
    np.testing.assert_allclose(apply(kernels[kind], x), expected, rtol=2e-6, atol=3e-7)
    assert np.isnan(apply(kernels[kind], np.array([np.nan], np.float32)))


def test_an_unknown_activation_is_refused():
    with pytest.raises(ValueError, match="cosine"):
        Activation("cosine")


@pytest.mark.parametrize("name", ["exp", "tanh", "sigmoid", "erf"])
def test_no_scalar_calls(name):
    """The whole point: vectors stay vectors."""
    kernel = elementwise(FUNCTIONS[name]).with_attr("global_symbol", "k")
    library = tvm.compile(tvm.IRModule({"k": kernel}), {"kind": "llvm", "mcpu": "x86-64-v3"})
    text = library.mod.inspect_source("asm")
    assert "expf" not in text and "tanhf" not in text and "erff" not in text
