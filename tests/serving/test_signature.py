"""What `run` accepts, and what it says of what it does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphopt.errors import InputError
from graphopt.serving.signature import ALIGNMENT, Signature, TensorSpec, aligned_copy

SIGNATURE = Signature(
    inputs=(
        TensorSpec("user", "int64", ("batch",)),
        TensorSpec("dense", "float32", ("batch", 3)),
    ),
    outputs=(TensorSpec("score", "float32", ("batch", 1)),),
)


def feeds(**changed: object) -> dict[str, object]:
    given: dict[str, object] = {
        "user": np.arange(4, dtype=np.int64),
        "dense": np.ones((4, 3), np.float32),
    }
    return {**given, **changed}


def test_order_is_the_signatures() -> None:
    arrays = SIGNATURE.bind(dict(reversed(list(feeds().items()))))
    assert [a.dtype for a in arrays] == [np.int64, np.float32]


def test_lists_become_arrays() -> None:
    arrays = SIGNATURE.bind(feeds(user=[0, 1, 2, 3]))
    assert arrays[0].tolist() == [0, 1, 2, 3]


class Foreign:
    """An array of another framework: it speaks DLPack, and nothing else."""

    def __init__(self, array: np.ndarray, kind: int = 1) -> None:
        self.array, self.kind = array, kind

    def __dlpack_device__(self) -> tuple[int, int]:
        return (self.kind, 0)

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)


@pytest.mark.parametrize("kind", [1, 3])  # memory of the host, pinned or not
def test_arrays_of_other_frameworks(kind: int) -> None:
    arrays = SIGNATURE.bind(feeds(user=Foreign(np.arange(4), kind)))
    assert arrays[0].tolist() == [0, 1, 2, 3]


def test_arrays_on_a_device_are_refused() -> None:
    with pytest.raises(InputError, match="'user' is on a GPU, the model runs on the CPU"):
        SIGNATURE.bind(feeds(user=Foreign(np.arange(4), 2)))


def test_arrays_that_cannot_be_read_are_refused() -> None:
    words = np.array(["a", "b", "c", "d"])
    with pytest.raises(InputError, match=r"'user' cannot be read through DLPack: .*DLPack"):
        SIGNATURE.bind(feeds(user=Foreign(words)))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"user": np.arange(4, dtype=np.int32)}, r"'user' is int32.*int64.*astype\('int64'\)"),
        ({"dense": np.ones((4, 3))}, "'dense' is float64"),
        ({"dense": np.ones(4, np.float32)}, r"'dense' has shape \(4,\).*float32\[batch, 3\]"),
        ({"dense": np.ones((4, 2), np.float32)}, "'dense' has 2 on axis 1, expected 3"),
        (
            {"dense": np.ones((5, 3), np.float32)},
            "'dense' has 5 on axis 0 where input 'user' has 4; both are 'batch' and must agree$",
        ),
        (
            {"dense": np.ones((1, 3), np.float32)},
            "must agree; 1 is not broadcast: repeat the array, or declare the size as 1",
        ),
        ({"extra": np.ones(1)}, "unknown input 'extra'"),
    ],
)
def test_refused(changed: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SIGNATURE.bind(feeds(**changed))


def test_missing_input_is_named() -> None:
    with pytest.raises(InputError, match="missing input 'dense'; the model takes 'user', 'dense'"):
        SIGNATURE.bind({"user": np.arange(4)})


@pytest.mark.parametrize("make", [np.asfortranarray, lambda a: a[:, ::-1], lambda a: a[1:]])
def test_other_layouts_are_copied(make: object) -> None:
    base = aligned_copy(np.arange(15, dtype=np.float32).reshape(5, 3))
    given = make(base)  # type: ignore[operator]
    users = np.arange(len(given))
    (_, dense) = SIGNATURE.bind({"user": users, "dense": given})
    assert np.array_equal(dense, given)
    assert dense.flags.c_contiguous
    assert dense.ctypes.data % ALIGNMENT == 0


def test_read_only_arrays_are_copied() -> None:
    dense = aligned_copy(np.ones((4, 3), np.float32))
    dense.flags.writeable = False
    assert SIGNATURE.bind(feeds(dense=dense))[1].flags.writeable


@pytest.mark.parametrize("shape", [(), (0, 3), (2, 0), (1,), (3, 5)])
def test_aligned_copy_of_any_shape(shape: tuple[int, ...]) -> None:
    array = np.arange(int(np.prod(shape)), dtype=np.float64).reshape(shape)
    copy = aligned_copy(array)
    assert copy.shape == shape
    assert np.array_equal(copy, array)
    assert copy.size == 0 or copy.ctypes.data % ALIGNMENT == 0
