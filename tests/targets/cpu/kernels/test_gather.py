"""gather_rows and gather_axis against NumPy, and what they do with indices outside the table."""

import ml_dtypes
import numpy as np
import pytest
import tvm
from tvm import relax

from graphopt.targets.cpu.kernels.gather import gather_axis, gather_rows
from graphopt.targets.kernels.storage import DTYPES

INT64 = np.iinfo(np.int64)
INT32 = np.iinfo(np.int32)
STRAY = [10, -11, INT64.max, INT64.min, INT64.max - 9, INT64.min + 9, 2**32, -(2**32)]


def random_table(shape, dtype, seed=0):
    """Random bytes seen as `dtype`: NaN payloads included; bool holds 0 and 1 only."""
    rng = np.random.default_rng(seed)
    if dtype == "bool":
        return rng.random(shape) < 0.5
    storage = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    raw = rng.integers(0, 256, (*shape[:-1], shape[-1] * storage.itemsize), dtype=np.uint8)
    return raw.view(storage)


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.fixture(scope="module")
def every_dtype(compile_kernels):
    return compile_kernels(
        {f"{d}_{w}": gather_rows(10, w, d, "int64") for d in DTYPES for w in (1, 21)}
    )


@pytest.mark.parametrize("width", [1, 21])
@pytest.mark.parametrize("dtype", DTYPES)
def test_copies_rows_bit_for_bit(every_dtype, dtype, width):
    table = random_table((10, width), dtype)
    ids = np.array([0, 9, -1, -10, 4, 4, 3])
    (out,) = every_dtype[f"{dtype}_{width}"]([table, ids], [((7, width), dtype)])
    assert same_bits(out, table[ids])


@pytest.fixture(scope="module")
def policies(compile_kernels):
    kernels = {}
    for oob in ("error", "clamp", "zero"):
        for index in ("int32", "int64"):
            kernels[f"rows_{oob}_{index}"] = gather_rows(10, 70, "float32", index, oob, "bad id")
            kernels[f"axis_{oob}_{index}"] = gather_axis(
                None, None, None, "float32", index, oob, "bad id"
            )
            kernels[f"empty_{oob}_{index}"] = gather_rows(0, 70, "float32", index, oob, "bad id")
    return compile_kernels(kernels)


def lookup(kernels, form, oob, table, ids):
    """Call `gather_rows` or `gather_axis` on a 2-D table; the row dimension comes second."""
    kernel = kernels[f"{form}_{oob}_{ids.dtype}"]
    lead = (1,) if form == "axis" else ()
    shape = (*lead, len(ids), table.shape[1])
    (out,) = kernel([table.reshape(*lead, *table.shape), ids], [(shape, "float32")])
    return out.reshape(len(ids), table.shape[1])


@pytest.mark.parametrize("form", ["rows", "axis"])
@pytest.mark.parametrize("stray", STRAY)
def test_error_policy_raises_the_callers_message(policies, form, stray):
    table = random_table((10, 70), "float32")
    with pytest.raises(RuntimeError, match="bad id"):
        lookup(policies, form, "error", table, np.array([3, stray, 2]))


@pytest.mark.parametrize("form", ["rows", "axis"])
def test_clamp_policy_reads_the_nearest_row(policies, form):
    table = random_table((10, 70), "float32")
    ids = np.array([3, -3, *STRAY])
    out = lookup(policies, form, "clamp", table, ids)
    nearest = np.clip(ids, -10, 9)
    assert same_bits(out, table[nearest])


@pytest.mark.parametrize("form", ["rows", "axis"])
def test_zero_policy_reads_zeros(policies, form):
    table = random_table((10, 70), "float32")
    ids = np.array([3, -3, *STRAY])
    out = lookup(policies, form, "zero", table, ids)
    assert same_bits(out[:2], table[[3, -3]])
    assert not out[2:].any()


@pytest.mark.parametrize("form", ["rows", "axis"])
@pytest.mark.parametrize("stray", [10, -11, INT32.max, INT32.min])
def test_int32_indices_follow_the_policies_too(policies, form, stray):
    table = random_table((10, 70), "float32")
    ids = np.array([1, stray], np.int32)
    with pytest.raises(RuntimeError, match="bad id"):
        lookup(policies, form, "error", table, ids)
    assert same_bits(lookup(policies, form, "clamp", table, ids)[1], table[9 if stray > 0 else 0])
    assert not lookup(policies, form, "zero", table, ids)[1].any()


@pytest.mark.parametrize("form", ["rows", "axis"])
@pytest.mark.parametrize("oob", ["error", "clamp", "zero"])
def test_no_indices_give_no_rows(policies, form, oob):
    table = random_table((10, 70), "float32")
    assert lookup(policies, form, oob, table, np.zeros(0, np.int64)).shape == (0, 70)


@pytest.mark.parametrize("form", ["empty", "axis"])
@pytest.mark.parametrize("index", [0, -1, INT64.min])
def test_a_table_without_rows_is_never_read(policies, form, index):
    table, ids = np.zeros((0, 70), np.float32), np.array([index])
    for oob in ("error", "clamp"):
        with pytest.raises(RuntimeError, match="bad id"):
            lookup(policies, form, oob, table, ids)
    assert not lookup(policies, form, "zero", table, ids).any()
    assert lookup(policies, form, "clamp", table, ids[:0]).shape == (0, 70)


def test_zero_width_rows(compile_kernels):
    kernels = compile_kernels({"k": gather_rows(10, 0, "float32", "int64")})
    (out,) = kernels["k"]([np.zeros((10, 0), np.float32), np.array([1])], [((1, 0), "float32")])
    assert out.shape == (1, 0)


@pytest.fixture(scope="module")
def axes(compile_kernels):
    shapes = {"static": (3, 10, 5), "symbolic": (None, None, None), "mixed": (None, 10, 35)}
    return compile_kernels(
        {name: gather_axis(*shape, "float16", "int64") for name, shape in shapes.items()}
    )


@pytest.mark.parametrize("form, shape", [("static", (3, 10, 5)), ("mixed", (2, 10, 35))])
def test_gather_axis_matches_numpy(axes, form, shape):
    data = random_table(shape, "float16")
    ids = np.array([0, 9, -1, -10, 4, 4, 3])
    for name in (form, "symbolic"):
        (out,) = axes[name]([data, ids], [((shape[0], 7, shape[2]), "float16")])
        assert same_bits(out, data[:, ids])


def test_gather_axis_checks_indices_of_an_empty_outer_extent(axes):
    data = np.zeros((0, 10, 5), np.float16)
    with pytest.raises(RuntimeError):
        axes["symbolic"]([data, np.array([10])], [((0, 1, 5), "float16")])


def test_unaligned_arrays_are_read_and_written(compile_kernels):
    """The arrays of a caller start where they like; 64-byte moves must not assume otherwise."""
    import tvm_ffi

    kernel = gather_rows(10, 64, "float32", "int64").with_attr("global_symbol", "k")
    library = tvm.compile(tvm.IRModule({"k": kernel}), {"kind": "llvm"})

    def off_by_4(shape):
        memory = np.zeros(int(np.prod(shape)) * 4 + 128, np.uint8)
        start = -memory.ctypes.data % 64 + 4
        return memory[start : start + int(np.prod(shape)) * 4].view(np.float32).reshape(shape)

    table, out, ids = off_by_4((10, 64)), off_by_4((3, 64)), np.array([1, -1, 5])
    table[:] = random_table((10, 64), "int32")
    library["k"](*[tvm_ffi.from_dlpack(x) for x in (table, ids, out)])
    np.testing.assert_array_equal(out, table[ids])


def test_tables_beyond_2_gigabytes(compile_kernels):
    """Offsets are 64-bit: the untouched pages of this table are never allocated."""
    rows = 2**21 + 1
    table = tvm.runtime.empty((rows, 1024), "int8")
    kernel = gather_rows(rows, 1024, "int8", "int32").with_attr("global_symbol", "k")
    library = tvm.compile(tvm.IRModule({"k": kernel}), {"kind": "llvm"})
    out = tvm.runtime.empty((2, 1024), "int8")
    library["k"](table, tvm.runtime.tensor(np.array([rows - 1, -rows], np.int32)), out)
    assert out.numpy().shape == (2, 1024)


@pytest.mark.parametrize("bad", [{"oob": "wrap"}, {"index_dtype": "uint8"}, {"dtype": "int4"}])
def test_unknown_options_are_refused(bad):
    options = {"dtype": "float32", "index_dtype": "int64", "oob": "error"} | bad
    with pytest.raises(ValueError):
        gather_rows(10, 4, **options)


def test_inside_a_relax_module(compile_relax):
    def emit(builder, table, ids, bias):
        n = ids.ty.shape[0]
        out = relax.TensorType((n, 21), "float32")
        rows = builder.add_func(gather_rows(10, 21, "float32", "int64", message="bad id"), "rows")
        axis = builder.add_func(gather_axis(1, None, 21, "float32", "int64", "clamp"), "axis")
        shifted = builder.emit(relax.op.add(ids, relax.const(1, "int64")))
        first = builder.emit(relax.call_tir(rows, [table, ids], out))
        cube = builder.emit(relax.op.reshape(table, (1, 10, 21)))
        second = builder.emit(
            relax.call_tir(axis, [cube, shifted], relax.TensorType((1, n, 21), "float32"))
        )
        both = builder.emit(relax.op.add(first, relax.op.reshape(second, (n, 21))))
        return builder.emit(relax.op.nn.relu(relax.op.add(both, bias)))

    run = compile_relax([((10, 21), "float32"), (("n",), "int64"), (("n", 21), "float32")], emit)
    rng = np.random.default_rng(1)
    table = rng.standard_normal((10, 21), np.float32)
    for ids in (np.array([3, 0, 9, -4]), np.zeros(0, np.int64), np.array([1])):
        bias = rng.standard_normal((len(ids), 21), np.float32)
        (out,) = run(table, ids, bias)
        second = table[np.clip(ids + 1, -10, 9)]
        np.testing.assert_array_equal(out, np.maximum(table[ids] + second + bias, 0))
    with pytest.raises(RuntimeError, match="bad id"):
        run(table, np.array([10]), np.zeros((1, 21), np.float32))
