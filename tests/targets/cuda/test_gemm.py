"""Dense layers on a GPU: every variant, any sizes, and what follows the product."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import gpu_emulator
import numpy as np
import onnx
import pytest

from graphopt.targets.cuda.gemm_defaults import default_ranges, shared_limit
from graphopt.targets.cuda.kernels.gemm import (
    FewRows,
    Math,
    Tile,
    gemm,
    math_for,
)
from graphopt.targets.cuda.kernels.packed import pack_weights
from graphopt.targets.cuda.ops import dense

from .conftest import THOROUGH, Runner
from .mutants import replaced

RNG = np.random.default_rng(6)
BATCHES = (1, 7, 64)
FEW = FewRows(4, 8, 64)
TILES = (
    Tile(64, 64, 16, 32, 32, 3),  # each warp for itself
    Tile(32, 64, 32, 32, 32, 2, 2),  # two of them along k
    Tile(16, 32, 64, 16, 32, 3, 4),  # four along k
)
# What rounding the operands of 45 products of numbers near 1 may do; the rest is float32 sums.
TOLERANCES: dict[Math, float] = {
    "Fp32": 1e-5, "Tf32x3": 1e-5, "Tf32": 1.5e-2, "Bf16": 0.12, "Fp16": 1.5e-2
}  # fmt: skip
OPTIONS: dict[Math, dict[str, str]] = {
    "Fp32": {},
    "Tf32x3": {"precision": "tf32x3"},
    "Tf32": {"precision": "tf32"},
    "Bf16": {"precision": "bf16"},
    "Fp16": {"precision": "fp16"},
}
Sizes = tuple[int, int]


class Layers:
    """Dense layers of sizes (k, n), side by side: y0 = after(x0 @ w0 + b0), …"""

    def __init__(self, sizes: Sequence[Sizes], after: str = "y = Identity (h)") -> None:
        self.sizes = sizes
        inputs = [f"float[m, {k}] x{i}, float[m, {n}] z{i}" for i, (k, n) in enumerate(sizes)]
        outputs = [f"float[m, {n}] y{i}" for i, (_, n) in enumerate(sizes)]
        names = re.compile(r"\b([hrxyzwb])\b")
        body = f"h = Gemm (x, w, b)\n{after}"
        nodes = [names.sub(rf"\g<1>{i}", body) for i in range(len(sizes))]
        self.model = onnx.parser.parse_model(
            f"""<ir_version: 10, opset_import: ["": 21]>
            agraph ({", ".join(inputs)}) => ({", ".join(outputs)}) {{
                {chr(10).join(nodes)}
            }}"""
        )
        self.weights = [_normal(k, n) for k, n in sizes]
        self.biases = [_normal(n) for _, n in sizes]
        for i, pair in enumerate(zip(self.weights, self.biases)):
            for name, array in zip("wb", pair):
                proto = onnx.numpy_helper.from_array(array, f"{name}{i}")
                self.model.graph.initializer.append(proto)

    def feed(self, batch: int) -> dict[str, np.ndarray]:
        found = {}
        for i, (k, n) in enumerate(self.sizes):
            found |= {f"x{i}": _normal(batch, k), f"z{i}": _normal(batch, n)}
        return found

    def products(self, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """x @ w + b in float64."""
        pairs = enumerate(zip(self.weights, self.biases))
        return [feed[f"x{i}"] @ w.astype(np.float64) + b for i, (w, b) in pairs]


def _normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def check(
    run_model: Runner,
    layers: Layers,
    function: Callable[[np.ndarray, np.ndarray], np.ndarray] = lambda h, z: h,
    atol: float = 2e-5,
    **options: Any,
) -> None:
    """Run layers at several batches; `function` is what they apply to products and z."""
    feeds = [layers.feed(batch) for batch in BATCHES]
    for found, feed in zip(run_model(layers.model, *feeds, **options), feeds, strict=True):
        for i, product in enumerate(layers.products(feed)):
            wanted = function(product, feed[f"z{i}"])
            np.testing.assert_allclose(found[f"y{i}"], wanted, rtol=1e-5, atol=atol)


def use(monkeypatch: pytest.MonkeyPatch, choose: Callable[[int], Tile]) -> None:
    """Have layers of n columns computed in tiles that `choose(n)` gives, and few rows otherwise."""
    chosen = lambda n, math: ((4, FEW), (None, choose(n)))  # noqa: E731
    monkeypatch.setattr(dense, "default_ranges", chosen)


@pytest.mark.parametrize("math", OPTIONS)
def test_tiles(math: Math, run_model: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, lambda n: TILES[n - 36])
    layers = Layers([(45, 36), (44, 37), (45, 38)])
    check(run_model, layers, atol=TOLERANCES[math], **OPTIONS[math])


@pytest.fixture
def long_sums(run_model: Runner, monkeypatch: pytest.MonkeyPatch) -> Callable[..., float]:
    """How far sums of 1000 positive products are off, as a share of them: cutting off adds up."""
    use(monkeypatch, lambda n: TILES[0])
    layers, rng = Layers([(1000, 36)]), np.random.default_rng(1)
    feed = layers.feed(64)
    feed["x0"] = rng.uniform(0.5, 1.5, (64, 1000)).astype(np.float32)
    weights = rng.uniform(0.5, 1.5, (1000, 36)).astype(np.float32)
    layers.weights[0] = weights
    layers.model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weights, "w0"))
    (wanted,) = layers.products(feed)

    def error(math: Math, edit: Callable[[str], str] = str) -> float:
        mode = gpu_emulator.Mode()
        (found,) = run_model(layers.model, feed, mode=mode, edit=edit, **OPTIONS[math])
        return float((np.abs(found["y0"] - wanted) / np.abs(wanted)).max())

    return error


def test_parts_of_tf32_are_as_good_as_float32(long_sums: Callable[..., float]) -> None:
    assert long_sums("Tf32x3") < min(2e-6, 2 * long_sums("Fp32"))


@pytest.mark.parametrize(
    ("old", "new", "times"),
    [
        ("float part[4] = {};", "float* part = d;", 10),  # tensor cores add it all up
        ("(__float_as_uint(x) + 0x1000) & 0xffffe000u", "__float_as_uint(x) & 0xffffe000u", 1.3),
    ],
)
def test_what_is_cut_off_shows(
    old: str, new: str, times: float, long_sums: Callable[..., float]
) -> None:
    exact = long_sums("Tf32x3")
    assert long_sums("Tf32x3", lambda code: replaced(code, old, new)) > times * exact


def test_sizes(run_model: Runner) -> None:
    check(run_model, Layers([(3, 1), (16, 96), (68, 2), (130, 36)]))


def _sigmoid(h: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-h))


@pytest.mark.parametrize(
    ("after", "function"),
    [
        ("r = Sigmoid (h)\ny = Mul (r, z)", lambda h, z: _sigmoid(h) * z),
        ("r = Mul (h, z)\ny = Add (r, z)", lambda h, z: h * z + z),
    ],
)
def test_what_follows(after: str, function: Callable[..., np.ndarray], run_model: Runner) -> None:
    check(run_model, Layers([(20, 36), (20, 37), (9, 3)], after), function)


def test_an_operand_before_constants_of_each_column(run_model: Runner) -> None:
    layers = Layers([(20, 37)], "r = Add (h, z)\ny = PRelu (r, b)")
    slopes = layers.biases[0]
    check(run_model, layers, lambda h, z: np.where(h + z < 0, slopes * (h + z), h + z))


MUTATIONS = {
    "no barrier between stages": ("__syncthreads();  // the stage", ";  // the stage"),
    "copies are not waited for": ("wait_prior(T::STAGES - 2)", "wait_prior(T::STAGES - 1)"),
    "the stage that is read is filled": ("next = T::STAGES - 1", "next = 0"),
    "rows beyond the batch": ("row + r < m ?", "true ?"),
    "k beyond the weights": ("word + k < WORDS &&", ""),
    "slices are not waited for": ("    __syncthreads();\n    if (slice == 0)", "if (slice == 0)"),
    "fragments of other columns": ("b += t * LB + g", "b += g * LB + t"),
    "the small parts are forgotten": ("mma_tf32(part, a.small, b.big);", ""),
    "lanes that are not added": ("int step = ACROSS; step", "int step = 2 * ACROSS; step"),
    "rows that are left over": ("down < K - WHOLE", "down + 1 < K - WHOLE"),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_broken_code_is_caught(
    name: str, run_model: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, lambda n: TILES[1])
    old, new = MUTATIONS[name]

    edit = lambda code: replaced(code, old, new)  # noqa: E731
    with pytest.raises((gpu_emulator.LaunchError, AssertionError), match=r"\S"):
        check(run_model, Layers([(69, 37)]), edit=edit, mode=THOROUGH, **OPTIONS["Tf32x3"])


_FULL_NAN = np.uint32(0x7FFFFFFF).view(np.float32)  # what GPUs write, and rounding would carry over


@pytest.mark.parametrize(
    ("math", "x"), [("Fp32", np.nan), ("Fp16", 7e4), ("Tf32", _FULL_NAN), ("Tf32x3", _FULL_NAN)]
)
def test_what_is_no_number_goes_no_further(math: Math, x: float, run_model: Runner) -> None:
    """One that float16 cannot hold becomes infinite, which shows in all results of its row."""
    layers = Layers([(21, 36)])
    feed = layers.feed(64)
    feed["x0"][3, 5] = x
    (results,) = run_model(layers.model, feed, **OPTIONS[math])
    (found,), (wanted,) = results.values(), layers.products(feed)
    assert not np.isfinite(found[3]).any()
    rest = np.arange(64) != 3
    np.testing.assert_allclose(found[rest], wanted[rest], rtol=1e-5, atol=TOLERANCES[math])


@pytest.mark.parametrize("factor", [1e5, 1e-7, np.nan])
def test_weights_that_float16_cannot_hold(factor: float) -> None:
    """One column is enough; where all is 0 there is nothing to lose."""
    weights = _normal(20, 3)
    weights[:, 1] = 0
    assert math_for(weights, "Fp16") == "Fp16"
    weights[:, 2] *= factor
    assert [math_for(weights, math) for math in ("Fp16", "Bf16")] == ["Tf32", "Bf16"]


def test_weights_are_packed_in_words() -> None:
    weights = np.array([[1.0, -2.0, 3.0], [0.5, 1 + 2.0**-8, 1 + 2.0**-13]], np.float32)
    exact = pack_weights(weights, "Tf32x3")
    assert exact.shape == (2, 4)
    np.testing.assert_array_equal(exact.view(np.float32)[:, :3], weights)
    rounded = pack_weights(weights, "Tf32").view(np.float32)
    np.testing.assert_array_equal(rounded[1], np.float32([0.5, 1 + 2.0**-8, 1, 0]))
    halves = pack_weights(weights, "Fp16")
    assert halves.tolist() == [[0x38003C00, 0x3C04C000, 0x3C004200, 0]]
    pairs = pack_weights(weights, "Bf16")
    assert pairs.tolist() == [[0x3F003F80, 0x3F80C000, 0x3F804040, 0]]  # ties to even


@pytest.mark.parametrize("math", get_args(Math))
def test_default_tiles_fit_the_smallest_gpu(math: Math) -> None:
    for n in (1, 5, 40, 300, 5000, 10**6):
        limits = [limit or 10**9 for limit, _ in default_ranges(n, math)]
        assert limits == sorted(set(limits))
        for _, variant in default_ranges(n, math):
            if isinstance(variant, Tile):
                assert 4 * variant.shared_words(math) <= shared_limit(math)
                assert variant.threads <= 1024


def test_the_last_range_has_no_limit() -> None:
    with pytest.raises(ValueError, match="the last has no limit"):
        gemm(4, 4, "Fp32", ((8, FEW), (16, FEW)))


def test_tiles_ask_for_the_blocks_that_fit() -> None:
    """For one more, ptxas would spill registers."""
    tile = Tile(64, 64, 32, 32, 32, 3)
    assert 4 * tile.shared_words("Fp32") == 55296  # four times in 228 KiB
    assert tile.blocks("Fp32") == 4
    assert Tile(128, 128, 32, 64, 32, 2).blocks("Tf32") == 2  # for the registers of 256 threads
    kernel = gemm(64, 64, "Fp32", ((None, tile),))
    assert '"tirx.launch_bounds_min_blocks_per_sm"' in kernel.script()
