"""Which id of a batch lies outside its table: what kernels complain of, as the caller knows it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from graphopt.errors import IdError


def located(error: IdError, ids: Sequence[Mapping[str, Any]], feeds: Mapping[str, Any]) -> IdError:
    """`error`, with the first element of an input that the lookup it names cannot take.

    Args:
        ids: the manifest's entry: `input` and `node`, the `region` of the input as
            `[axis, start, stop]`, and the bounds `low` and `high` of what the node takes there.
        feeds: an array per input name; those on other devices are left out.

    Returns:
        `error` itself where nothing is found: the ids were computed, or cannot be read here.
    """
    for entry in ids:
        array = feeds.get(entry["input"])
        name = rf"(?<![\w./]){re.escape(entry['node'])}(?![\w./])"
        if not isinstance(array, np.ndarray) or not re.search(name, str(error)):
            continue
        low, high = entry["low"], entry["high"]
        first = [0] * array.ndim
        cut = [slice(None)] * array.ndim
        for axis, start, stop in entry["region"]:
            first[axis], cut[axis] = start, slice(start, stop)
        part = array[tuple(cut)]
        # Floats lose their fraction on the way to ids, and what is not a number is none.
        bad = ~((part > low - 1) & (part < high))
        if bad.any():
            place = np.unravel_index(bad.argmax(), bad.shape)
            where = ", ".join(str(a + int(b)) for a, b in zip(first, place))
            at = f"{entry['input']}[{where}]" if where else entry["input"]
            return IdError(f"{error}; {at} is {part[place]}, valid are {low} to {high - 1}")
    return error
