"""Tensors stored in files beside the model: mapped on reading, streamed on writing."""

from __future__ import annotations

import math
import weakref
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from onnx import SparseTensorProto, TensorProto

from graphopt.errors import InvalidModelError, UnsafePathError
from graphopt.ir.types import dtype_from_onnx, dtype_of, dtype_to_numpy

PAGE = 4096
CACHE_LINE = 64
BLOCK = 16 << 20
MAX_DENSE = 1 << 30


class TensorReader:
    """Reads `TensorProto`s of a model that lies in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, tensor: TensorProto) -> np.ndarray:
        """The tensor's values: a memory map for external data, otherwise an array.

        Raises:
            InvalidModelError: the data is missing, too short or does not fit the declared shape.
            UnsafePathError: it lies outside the model's folder.
        """
        if tensor.data_location == TensorProto.EXTERNAL:
            return self._map(tensor)
        try:
            array = onnx.numpy_helper.to_array(tensor)
            if array.dtype.kind in "SU" or tensor.data_type == TensorProto.STRING:
                texts = [s.decode() if isinstance(s, bytes) else s for s in array.reshape(-1)]
                array = np.array(texts, object).reshape(tuple(tensor.dims))
        except (ValueError, TypeError, LookupError) as error:
            raise InvalidModelError(f"tensor {tensor.name!r} is damaged: {error}") from None
        return array

    def read_sparse(self, tensor: SparseTensorProto) -> np.ndarray:
        """The values of a sparse tensor, as a dense array.

        Raises:
            InvalidModelError: an index is out of range, or the dense form is too large.
        """
        name, shape = tensor.values.name, tuple(tensor.dims)
        values, indices = self.read(tensor.values), self.read(tensor.indices)
        if min(shape, default=0) < 0 or math.prod(shape) * values.itemsize > MAX_DENSE:
            raise InvalidModelError(f"sparse tensor {name!r} of shape {shape} is too large")
        dense = np.zeros(shape, values.dtype)
        if indices.shape not in ((values.size,), (values.size, len(shape))):
            raise InvalidModelError(f"sparse tensor {name!r} does not have one index per value")
        where = indices if indices.ndim == 1 else tuple(indices.T)
        try:
            (dense.reshape(-1) if indices.ndim == 1 else dense)[where] = values
        except IndexError:
            raise InvalidModelError(f"sparse tensor {name!r} has an index out of range") from None
        return dense

    def _map(self, tensor: TensorProto) -> np.ndarray:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        path = self._resolve(tensor.name, entries.get("location", ""))
        name = dtype_from_onnx(tensor.data_type)
        dtype = dtype_to_numpy(name)
        shape = tuple(tensor.dims)
        count = math.prod(shape)
        try:
            offset = int(entries.get("offset", 0))
            length = int(entries.get("length", count * dtype.itemsize))
        except ValueError:
            raise InvalidModelError(f"tensor {tensor.name!r} has a malformed data offset") from None
        if dtype == np.dtype(object) or name in ("int4", "uint4", "float4e2m1", "int2", "uint2"):
            raise InvalidModelError(f"tensor {tensor.name!r}: {name} cannot be external data")
        if length != count * dtype.itemsize or min(offset, count) < 0:
            raise InvalidModelError(
                f"tensor {tensor.name!r} needs {count * dtype.itemsize} bytes "
                f"but declares {length} at offset {offset}"
            )
        if offset + length > path.stat().st_size:
            raise InvalidModelError(
                f"tensor {tensor.name!r} needs bytes up to {offset + length} of {path.name}, which "
                f"has {path.stat().st_size}; the file is cut short"
            )
        if count == 0:
            return np.zeros(shape, dtype)
        flat = np.memmap(path, np.uint8, mode="r", offset=offset, shape=(length,))
        return flat.view(dtype).reshape(shape)

    def _resolve(self, name: str, location: str) -> Path:
        root = self.folder.resolve()
        path = (root / location.replace("\0", "")).resolve()
        absolute = Path(location).is_absolute()
        if not location or "\0" in location or absolute or not path.is_relative_to(root):
            raise UnsafePathError(
                f"tensor {name!r} is stored at {location!r}, outside the model's folder; "
                "graphopt reads weights only from beside the model"
            )
        if not path.is_file():
            raise InvalidModelError(f"tensor {name!r} is stored in {location!r}, which is missing")
        return path


class TensorWriter:
    """Writes large tensors into one file, page-aligned, without copying them into memory.

    Call it with `(name, array)`: it returns the `TensorProto` that refers to the file, or None for
    a tensor below `threshold` bytes, which then stays in the model. `location` is the file's final
    name, as the model will refer to it. An array that was placed before is not written again for
    as long as it lives.
    """

    def __init__(self, path: Path, location: str = "", threshold: int = 1024) -> None:
        self.location, self.threshold = location or path.name, threshold
        self._file = path.open("wb")
        self._placed: dict[int, tuple[weakref.ref[np.ndarray], int]] = {}

    def __enter__(self) -> TensorWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Finish the file."""
        self._file.close()

    def flush(self) -> None:
        """Let readers of the file see what was placed."""
        self._file.flush()

    def __call__(self, name: str, array: np.ndarray) -> TensorProto | None:
        if array.nbytes < self.threshold or array.dtype.kind == "O" or _is_subbyte(array):
            return None
        entry = self.place(array)
        proto = TensorProto(name=name, dims=array.shape, data_location=TensorProto.EXTERNAL)
        proto.data_type = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        for key, value in (
            ("location", self.location),
            ("offset", str(entry["offset"])),
            ("length", str(entry["nbytes"])),
        ):
            proto.external_data.add(key=key, value=value)
        return proto

    def place(self, array: np.ndarray) -> dict[str, Any]:
        """Write an array if it is not in the file yet; says where it lies and what it is."""
        known, offset = self._placed.get(id(array), (None, 0))
        if known is None or known() is not array:  # ids are used again
            alignment = PAGE if array.nbytes >= PAGE else CACHE_LINE
            offset = -(-self._file.tell() // alignment) * alignment
            self._file.write(b"\0" * (offset - self._file.tell()))
            _stream(array, self._file)
            self._placed[id(array)] = (weakref.ref(array), offset)
        return {
            "dtype": dtype_of(array),
            "shape": list(array.shape),
            "offset": offset,
            "nbytes": array.nbytes,
        }


def _is_subbyte(array: np.ndarray) -> bool:
    """4-bit and smaller types, which onnx packs itself."""
    return dtype_of(array) in ("int4", "uint4", "int2", "uint2", "float4e2m1")


def _stream(array: np.ndarray, file: BinaryIO) -> None:
    """Write an array block by block, so that a mapped table never sits in memory whole."""
    flat = (array if array.flags.c_contiguous else np.ascontiguousarray(array)).reshape(-1)
    block = max(1, BLOCK // max(1, array.dtype.itemsize))
    for start in range(0, flat.size, block):
        # A copy, as Linux cannot fetch a mapped source in the middle of a write: it would write
        # page by page, and cache the file in single pages. Those of 2 MiB are mapped as such, and
        # random rows of a table found without a miss in address translation.
        file.write(flat[start : start + block].copy().view(np.uint8).data)
