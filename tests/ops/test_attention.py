"""`graphopt::Attention`: what it means, its function body, its types, its kernel."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from graphopt.errors import InvalidModelError
from graphopt.ir.graph import Graph
from graphopt.testing import Compiled, parse, random_inputs, run_onnxruntime


def graph_of(
    heads: int,
    dim: int,
    t: str,
    s: str,
    bias: str = "",
    columns: tuple[int, int, int] = (0, 0, 0),
    attrs: str = "",
    factor: str = "",
) -> Graph:
    width = heads * dim
    q, k, v = (width + first + (3 if first else 0) for first in columns)
    given, read = (f", float[{bias}] bias", ", bias") if bias else ("", ", " if factor else "")
    if factor:
        given, read = f"{given}, float[{factor}] factor", f"{read}, factor"
    return parse(
        f"""(float[N,{t},{q}] q, float[N,{s},{k}] k, float[N,{s},{v}] v{given}) => (float[] y) {{
        y = graphopt.Attention<heads={heads}, dim={dim}, scale=0.3, columns=[{columns[0]},
            {columns[1]}, {columns[2]}]{attrs}>(q, k, v{read}) }}"""
    )


def softmax(scores: np.ndarray) -> np.ndarray:
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return shares / shares.sum(axis=-1, keepdims=True)


def expected(
    feeds: dict[str, np.ndarray],
    heads: int,
    dim: int,
    columns: tuple[int, int, int] = (0, 0, 0),
    activation: Callable[[np.ndarray], np.ndarray] = softmax,
) -> np.ndarray:
    def apart(name: str, first: int) -> np.ndarray:
        part = feeds[name][:, :, first : first + heads * dim].astype(np.float64)
        return part.reshape(*part.shape[:2], heads, dim)

    q, k, v = (apart(name, first) for name, first in zip("qkv", columns))
    scores = 0.3 * np.einsum("bthd,bshd->bhts", q, k) + feeds.get("bias", np.zeros(1))
    shares = activation(scores) * feeds.get("factor", np.ones(1))
    mixed = np.einsum("bhts,bshd->bthd", shares, v)
    return mixed.reshape(*mixed.shape[:2], heads * dim)


CASES = [
    (2, 32, "20", "20", "N,1,20,20", (0, 0, 0)),
    (2, 32, "1", "20", "N,1,1,20", (0, 0, 0)),
    (4, 8, "21", "21", "N,1,1,21", (0, 32, 64)),
    (1, 5, "3", "7", "", (0, 0, 0)),
    (3, 16, "T", "S", "1,3,T,S", (5, 0, 2)),
    (1, 64, "T", "T", "T", (0, 0, 0)),
    (2, 128, "6", "33", "1", (0, 0, 0)),
    (5, 3, "T", "16", "", (0, 0, 0)),
]


@pytest.mark.parametrize(("heads", "dim", "t", "s", "bias", "columns"), CASES)
def test_the_body_and_the_kernel_mean_the_same(
    heads: int, dim: int, t: str, s: str, bias: str, columns: tuple[int, int, int]
) -> None:
    graph = graph_of(heads, dim, t, s, bias, columns)
    kernel = Compiled(graph)
    for batch, queries, keys in ((1, 1, 1), (3, 9, 17), (2, 4, 40), (0, 2, 3)):
        feeds = random_inputs(graph, {"N": batch, "T": queries, "S": keys})
        wanted = expected(feeds, heads, dim, columns)
        for found in (run_onnxruntime(graph, feeds)["y"], kernel(feeds)["y"]):
            # Sums of up to 128 products of numbers near 1, in an order of their own.
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("activation", "function", "bias", "factor"),
    [
        ("silu", lambda x: x / (1 + np.exp(-x)), "N,1,T,S", "1,1,T,S"),
        ("silu", lambda x: x / (1 + np.exp(-x)), "", "N,1,1,S"),
        ("sigmoid", lambda x: 1 / (1 + np.exp(-x)), "3,T,1", ""),
        ("relu", lambda x: np.maximum(x, 0), "", "1"),
    ],
)
def test_activations_of_scores_one_by_one(
    activation: str, function: Callable[[np.ndarray], np.ndarray], bias: str, factor: str
) -> None:
    attrs = f', activation="{activation}"'
    graph = graph_of(3, 8, "T", "S", bias, (0, 3, 0), attrs, factor)
    kernel = Compiled(graph)
    for batch, queries, keys in ((1, 1, 1), (3, 9, 17), (2, 4, 40), (0, 2, 3)):
        feeds = random_inputs(graph, {"N": batch, "T": queries, "S": keys})
        wanted = expected(feeds, 3, 8, (0, 3, 0), function)
        for found in (run_onnxruntime(graph, feeds)["y"], kernel(feeds)["y"]):
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_masked_keys_have_no_share() -> None:
    graph = graph_of(1, 4, "2", "5", "N,1,2,5")
    feeds = random_inputs(graph, {"N": 2})
    feeds["bias"][:, :, :, 2:] = -np.inf
    changed = {**feeds, "v": feeds["v"].copy()}
    changed["v"][:, 2:] = 1e30
    kernel = Compiled(graph)
    np.testing.assert_array_equal(kernel(feeds)["y"], kernel(changed)["y"])
    feeds["bias"][0] = -np.inf
    found = kernel(feeds)["y"]
    np.testing.assert_array_equal(np.isnan(found), np.isnan(run_onnxruntime(graph, feeds)["y"]))
    assert np.isnan(found[0]).all() and not np.isnan(found[1]).any()


def test_shares_that_are_nan_count_as_0_if_guarded() -> None:
    graph = graph_of(2, 4, "3", "5", "N,1,3,5", attrs=", guarded=1")
    feeds = random_inputs(graph, {"N": 3})
    feeds["bias"][0] = -np.inf
    feeds["bias"][1, :, 1, 2:] = -np.inf
    feeds["q"][2, 1] = np.nan
    found, wanted = Compiled(graph)(feeds)["y"], run_onnxruntime(graph, feeds)["y"]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    assert not found[0].any() and not found[2, 1].any() and found[1].all()


def test_without_keys_there_is_nothing() -> None:
    graph = graph_of(2, 8, "3", "S", "N,1,1,S")
    feeds = random_inputs(graph, {"N": 2, "S": 0})
    assert not Compiled(graph)(feeds)["y"].any()


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_nan_spreads_as_it_should(name: str) -> None:
    graph = graph_of(1, 4, "3", "5")
    feeds = random_inputs(graph, {"N": 2})
    feeds[name][1, 2, 1] = np.nan
    found, wanted = Compiled(graph)(feeds)["y"], run_onnxruntime(graph, feeds)["y"]
    np.testing.assert_array_equal(np.isnan(found), np.isnan(wanted))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("float[N,4] q, float[N,2,4] k, float[N,2,4] v", "must be float32 q"),
        ("double[N,2,4] q, float[N,2,4] k, float[N,2,4] v", "must be float32 q"),
        ("float[N,2,3] q, float[N,2,4] k, float[N,2,4] v", "no 4 columns from 0"),
        ("float[N,2,M] q, float[N,2,4] k, float[N,2,4] v", "no 4 columns from 0"),
    ],
)
def test_what_does_not_fit_is_refused(text: str, reason: str) -> None:
    with pytest.raises(InvalidModelError, match=reason):
        parse(f"({text}) => (float[] y) {{ y = graphopt.Attention<heads=2, dim=2>(q, k, v) }}")


@pytest.mark.parametrize(
    ("attrs", "reason"),
    [
        ('activation="tanh"', "not softmax or relu"),
        ('activation="silu", guarded=1', "not softmax"),
        ("", "have no factor"),
    ],
)
def test_activations_that_do_not_fit_are_refused(attrs: str, reason: str) -> None:
    with pytest.raises(InvalidModelError, match=reason):
        graph_of(1, 4, "2", "5", attrs=f", {attrs}" if attrs else "", factor="1")
