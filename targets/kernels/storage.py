"""How kernels see memory: element sizes, the unsigned view a copy moves bits through, alignment.

TVM assumes that every buffer starts on a 64-byte boundary and emits aligned vector moves without
checking; arrays that come from NumPy are aligned to 16 bytes only, and such a move then kills the
process.  Every buffer of this package is therefore declared with `align=element_bytes(dtype)`.
Unaligned moves cost nothing when the address happens to be aligned.
"""

from tvm import tirx

VECTOR_BYTES = 64  # LLVM splits a 64-byte move on targets whose registers are narrower

_BYTES = {
    "bool": 1,
    "int8": 1,
    "uint8": 1,
    "int16": 2,
    "uint16": 2,
    "float16": 2,
    "bfloat16": 2,
    "int32": 4,
    "uint32": 4,
    "float32": 4,
    "int64": 8,
    "uint64": 8,
    "float64": 8,
}

DTYPES = tuple(_BYTES)


def element_bytes(dtype: str) -> int:
    """Size of one element of `dtype` in bytes; ValueError for a dtype without a fixed size."""
    if dtype not in _BYTES:
        raise ValueError(f"no kernel for {dtype!r} elements; known: {', '.join(DTYPES)}")
    return _BYTES[dtype]


def bits_dtype(dtype: str) -> str:
    """The unsigned integer type that holds one element of `dtype` bit for bit.

    Copies go through it: a vector of bool is a bit mask to LLVM, and TVM widens bfloat16 to float32
    and back, which changes the payload of NaN.
    """
    return f"uint{8 * element_bytes(dtype)}"


def vector_lanes(dtype: str) -> int:
    """Elements of `dtype` in one vector move."""
    return VECTOR_BYTES // element_bytes(dtype)


def extent(name: str, size: int | None) -> int | tirx.Var:
    """A buffer extent: `size`, or a new int64 variable called `name` where `size` is None."""
    return tirx.Var(name, "int64") if size is None else size
