"""embedding_bag and fixed_bag against a plain NumPy definition."""

import ml_dtypes
import numpy as np
import pytest
from tvm import relax

from graphopt.targets.cpu.kernels.embedding_bag import embedding_bag, fixed_bag
from graphopt.targets.kernels.pooling import Pooling

INT64 = np.iinfo(np.int64)
STRAY = [11, -12, INT64.max, INT64.min, 2**32]
ROWS = 11
DIMS = [1, 3, 10, 16, 21, 64, 300]


def reference(table, ids, ends, pooling, weights=None):
    """Pool in float64: bags are ids[ends[i]:ends[i + 1]]."""
    out = np.empty((len(ends) - 1, table.shape[1]))
    rows, wide = len(table), table.astype(np.float64)
    for bag in range(len(out)):
        chosen = []
        for i in range(ends[bag], ends[bag + 1]):
            at = int(ids[i])
            if pooling.oob == "clamp":
                at = min(max(at, -rows), rows - 1)
            valid = -rows <= at < rows
            padding = pooling.padding_idx
            if valid and padding is not None and at % rows == padding % rows:
                continue
            row = wide[at % rows] if valid else np.zeros(table.shape[1])
            chosen.append(row * weights[i].astype(np.float64) if pooling.weighted else row)
        with np.errstate(invalid="ignore"):
            pool = {"sum": np.sum, "mean": np.mean, "max": np.max}[pooling.mode]
            out[bag] = pool(chosen, axis=0) if chosen else pooling.empty
    return out


POOLINGS = {
    "sum": Pooling("sum"),
    "mean": Pooling("mean"),
    "max": Pooling("max"),
    "sum_padded": Pooling("sum", padding_idx=2),
    "mean_padded": Pooling("mean", padding_idx=-9, empty=float("nan")),
    "max_padded": Pooling("max", padding_idx=2, empty=float("-inf")),
    "sum_weighted": Pooling("sum", weighted=True),
    "mean_weighted": Pooling("mean", weighted=True, padding_idx=2),
    "sum_zero": Pooling("sum", oob="zero"),
    "mean_zero": Pooling("mean", oob="zero", padding_idx=10),
    "max_zero": Pooling("max", oob="zero", padding_idx=10),
    "max_clamp": Pooling("max", oob="clamp", padding_idx=10, empty=-1.0),
    "mean_clamp": Pooling("mean", oob="clamp"),
}
CSR = ["sum", "max", "mean_padded", "mean_weighted", "sum_zero", "mean_clamp"]


@pytest.fixture(scope="module")
def modes(compile_kernels):
    kernels = {}
    for name, pooling in POOLINGS.items():
        if name in CSR:
            kernels[f"csr_{name}"] = embedding_bag(ROWS, 21, "float32", "int64", "int64", pooling)
        kernels[f"fixed_{name}"] = fixed_bag(ROWS, 21, None, "float32", "int64", pooling)
    for name in ("sum", "mean_weighted"):
        kernels[f"ends_{name}"] = embedding_bag(
            ROWS, 21, "float32", "int64", "int64", POOLINGS[name], include_last_offset=True
        )
    return compile_kernels(kernels)


def table_of(dim, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal((ROWS, dim)).astype(dtype)


def ids_for(pooling, n, seed=1):
    ids = np.random.default_rng(seed).integers(-ROWS, ROWS, n)
    if pooling.oob != "error" and n:
        ids[:: max(n // len(STRAY), 1)][: len(STRAY)] = STRAY[
            : len(ids[:: max(n // len(STRAY), 1)])
        ]
    return ids


ENDS = [
    [0, 3, 3, 3, 10, 30],  # empty bags inside
    [0, 0, 30],  # the first bag empty
    [0, 30, 30],  # the last bag empty
    [4, 10, 30],  # ids before the first offset belong to no bag
    [0, 0],  # one bag, no ids
]


@pytest.mark.parametrize("ends", ENDS, ids=str)
@pytest.mark.parametrize("name", CSR)
def test_csr_bags(modes, name, ends):
    pooling, table = POOLINGS[name], table_of(21)
    ids = ids_for(pooling, ends[-1])
    weights = np.random.default_rng(2).standard_normal(len(ids)).astype(np.float32)
    extra = [weights] if pooling.weighted else []
    expected = reference(table, ids, ends, pooling, weights)
    out = [((len(ends) - 1, 21), "float32")]
    (by_starts,) = modes[f"csr_{name}"]([table, ids, np.array(ends[:-1]), *extra], out)
    np.testing.assert_allclose(by_starts, expected, rtol=1e-5, atol=1e-6)
    if f"ends_{name}" in modes:
        (by_ends,) = modes[f"ends_{name}"]([table, ids, np.array(ends), *extra], out)
        np.testing.assert_array_equal(by_ends, by_starts)


@pytest.mark.parametrize("shape", [(4, 7), (1, 1), (3, 0), (0, 5)], ids=str)
@pytest.mark.parametrize("name", POOLINGS)
def test_fixed_bags(modes, name, shape):
    pooling, table = POOLINGS[name], table_of(21)
    ids = ids_for(pooling, shape[0] * shape[1])
    weights = np.random.default_rng(2).standard_normal(len(ids)).astype(np.float32)
    extra = [weights.reshape(shape)] if pooling.weighted else []
    ends = np.arange(shape[0] + 1) * shape[1]
    (out,) = modes[f"fixed_{name}"](
        [table, ids.reshape(shape), *extra], [((shape[0], 21), "float32")]
    )
    np.testing.assert_allclose(
        out, reference(table, ids, ends, pooling, weights), rtol=1e-5, atol=1e-6
    )


def test_no_bags(modes):
    table, none = table_of(21), np.zeros(0, np.int64)
    for form, offsets in (("csr", none), ("ends", np.zeros(1, np.int64))):
        (out,) = modes[f"{form}_sum"]([table, none, offsets], [((0, 21), "float32")])
        assert out.shape == (0, 21)


@pytest.mark.parametrize("stray", STRAY)
@pytest.mark.parametrize("name", ["sum", "max", "mean_padded"])
def test_error_policy_stops_at_a_bad_id(modes, name, stray):
    ids = np.array([0, 1, stray, 2])
    for inputs, form in (([ids, np.array([0, 2])], "csr"), ([ids.reshape(2, 2)], "fixed")):
        with pytest.raises(RuntimeError, match="an index lies outside the table"):
            modes[f"{form}_{name}"]([table_of(21), *inputs], [((2, 21), "float32")])


@pytest.mark.parametrize(
    "offsets", [[0, 3, 2], [-1, 2, 3], [0, 2, 6], [INT64.min, 0, 1], [0, 1, INT64.max]], ids=str
)
def test_error_policy_refuses_bad_offsets(modes, offsets):
    ids, out = np.zeros(5, np.int64), [((3, 21), "float32")]
    with pytest.raises(RuntimeError, match="offsets must not decrease"):
        modes["csr_sum"]([table_of(21), ids, np.array(offsets)], out)
    with pytest.raises(RuntimeError, match="offsets must not decrease"):
        modes["ends_sum"]([table_of(21), ids, np.array([*offsets, 5])], out)


@pytest.mark.parametrize("name", ["mean_clamp", "sum_zero"])
def test_other_policies_clamp_bad_offsets(modes, name):
    table, ids, pooling = table_of(21), np.arange(5), POOLINGS[name]
    offsets = np.array([INT64.min, 3, 1, INT64.max])
    (out,) = modes[f"csr_{name}"]([table, ids, offsets], [((4, 21), "float32")])
    bags = [reference(table, ids, e, pooling) for e in ([0, 3], [3, 3], [1, 5], [5, 5])]
    np.testing.assert_allclose(out, np.concatenate(bags), rtol=1e-5, atol=1e-6)


def test_max_keeps_nan_and_minus_infinity(modes):
    table = np.full((ROWS, 21), -np.inf, np.float32)
    table[3, ::2] = np.nan
    table[4] = 5.0
    for order in ([3, 4, 0], [4, 3, 0], [0, 4, 3], [0, 0, 0]):
        (out,) = modes["fixed_max"]([table, np.array([order])], [((1, 21), "float32")])
        np.testing.assert_array_equal(out[0], table[order].max(axis=0))


@pytest.fixture(scope="module")
def widths(compile_kernels):
    kernels = {
        f"{dim}_{pooling.mode}": fixed_bag(ROWS, dim, 5, "float32", "int32", pooling)
        for dim in DIMS
        for pooling in (Pooling("mean"), Pooling("max"))
    }
    kernels |= {
        dtype: embedding_bag(
            ROWS, 36, dtype, "int32", "int64", Pooling(weighted=True, padding_idx=0)
        )
        for dtype in ("float16", "bfloat16", "float64")
    }
    return compile_kernels(kernels)


@pytest.mark.parametrize("mode", ["mean", "max"])
@pytest.mark.parametrize("dim", DIMS)
def test_every_width(widths, dim, mode):
    table = table_of(dim)
    ids = np.random.default_rng(3).integers(-ROWS, ROWS, (6, 5)).astype(np.int32)
    (out,) = widths[f"{dim}_{mode}"]([table, ids], [((6, dim), "float32")])
    expected = reference(table, ids.ravel(), np.arange(7) * 5, Pooling(mode))
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype, rtol", [("float16", 1e-3), ("bfloat16", 1e-5), ("float64", 1e-14)])
def test_other_float_types_accumulate_wide(widths, dtype, rtol):
    storage = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    table = table_of(36, dtype=storage)
    rng = np.random.default_rng(3)
    ids = rng.integers(-ROWS, ROWS, 500).astype(np.int32)
    weights = rng.random(500).astype(storage)
    ends = [0, 200, 200, 500]
    given, result = (table, dtype) if dtype != "bfloat16" else (table.view(np.uint16), "float32")
    (out,) = widths[dtype]([given, ids, np.array(ends[:-1]), weights], [((3, 36), result)])
    expected = reference(table, ids, ends, Pooling(weighted=True, padding_idx=0), weights)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(out.astype(np.float64), expected, rtol=rtol, atol=rtol * scale / 50)


def test_large_tables_are_prefetched_without_reading_outside(compile_kernels):
    rows = 1 << 14
    kernels = compile_kernels(
        {"k": fixed_bag(rows, 32, 20, "float32", "int64", Pooling(oob="clamp"))}
    )
    table = np.random.default_rng(0).standard_normal((rows, 32)).astype(np.float32)
    ids = np.array([[INT64.max, INT64.min, *range(18)]])
    (out,) = kernels["k"]([table, ids], [((1, 32), "float32")])
    expected = table[[rows - 1, 0, *range(18)]].astype(np.float64).sum(0)
    np.testing.assert_allclose(out[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"pooling": {"mode": "median"}},
        {"pooling": {"mode": "max", "weighted": True}},
        {"pooling": {"padding_idx": 11}},
        {"pooling": {"padding_idx": -12}},
        {"pooling": {"oob": "wrap"}},
        {"dtype": "int8"},
        {"dim": 0},
        {"index_dtype": "float32"},
        {"offset_dtype": "uint8"},
    ],
    ids=str,
)
def test_unknown_options_are_refused(options):
    known = {"rows": ROWS, "dim": 4, "dtype": "float32"}
    known |= {"index_dtype": "int64", "offset_dtype": "int64", "pooling": {}} | options
    with pytest.raises(ValueError):
        embedding_bag(**known | {"pooling": Pooling(**known["pooling"])})


def test_inside_a_relax_module(compile_relax):
    pooling = Pooling("mean", padding_idx=0)

    def emit(builder, table, ids, offsets, pairs):
        bags = offsets.ty.shape[0]
        out = relax.TensorType((bags, 21), "float32")
        csr = builder.add_func(embedding_bag(ROWS, 21, "float32", "int64", "int64", pooling), "csr")
        ends = builder.add_func(
            embedding_bag(ROWS, 21, "float32", "int64", "int64", pooling, True), "ends"
        )
        fixed = builder.add_func(
            fixed_bag(ROWS, 21, 2, "float32", "int64", Pooling("max", oob="clamp")), "fixed"
        )
        all_ends = builder.emit(relax.op.concat([offsets, relax.const([30], "int64")]))
        first = builder.emit(relax.call_tir(csr, [table, ids, offsets], out))
        second = builder.emit(relax.call_tir(ends, [table, ids, all_ends], out))
        third = builder.emit(relax.call_tir(fixed, [table, relax.op.add(pairs, pairs)], out))
        total = builder.emit(relax.op.add(relax.op.add(first, second), third))
        return builder.emit(relax.op.sigmoid(total))

    run = compile_relax(
        [((ROWS, 21), "float32"), (("n",), "int64"), (("b",), "int64"), (("b", 2), "int64")], emit
    )
    table, ids = table_of(21), np.random.default_rng(4).integers(-ROWS, ROWS, 30)
    for offsets in ([0, 3, 3, 9], [0]):
        pairs = np.random.default_rng(5).integers(-5, 6, (len(offsets), 2))
        (out,) = run(table, ids, np.array(offsets), pairs)
        total = 2 * reference(table, ids, [*offsets, 30], pooling) + table[2 * pairs % ROWS].max(1)
        np.testing.assert_allclose(out, 1 / (1 + np.exp(-total)), rtol=1e-5)
