"""Random inputs that a model accepts: sizes are found by trying."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.checking.feeds import random_feeds
from graphopt.errors import IdError, InputError
from graphopt.testing import parse

HISTORY = "(int64[N,L] ids, float[N,4] x) => (float y) { y = ReduceSum(x) }"
Feeds = dict[str, np.ndarray]


def accept(feeds: Feeds) -> None:
    pass


def test_one_set_for_each_batch_size() -> None:
    feeds, refused = random_feeds(parse(HISTORY), accept, (2, 5))
    assert [f["x"].shape for f in feeds] == [(2, 4), (5, 4)]
    assert [f["ids"].shape[0] for f in feeds] == [2, 5]
    assert refused == []


def test_the_length_that_the_model_wants_is_found() -> None:
    def run(feeds: Feeds) -> None:
        if feeds["ids"].shape[1] != 20:
            raise InputError("20 positions, please")

    feeds, refused = random_feeds(parse(HISTORY), run)
    assert [f["ids"].shape for f in feeds] == [(1, 20), (7, 20), (64, 20)]
    assert refused == []


def test_batch_sizes_that_are_refused_are_told() -> None:
    def run(feeds: Feeds) -> None:
        if len(feeds["x"]) > 1:
            raise IdError("one at a time")

    feeds, refused = random_feeds(parse(HISTORY), run, (1, 7))
    assert len(feeds) == 1
    assert refused == ["batch 7: one at a time"]


def test_a_model_that_takes_nothing() -> None:
    def run(feeds: Feeds) -> None:
        raise InputError(f"not {feeds['ids'].shape}")

    with pytest.raises(InputError, match=r"not \(1, 3\)"):  # the first complaint
        random_feeds(parse(HISTORY), run)


def test_fixed_shapes_are_tried_once() -> None:
    calls: list[Feeds] = []

    def run(feeds: Feeds) -> None:
        calls.append(feeds)
        raise InputError("no")

    with pytest.raises(InputError):
        random_feeds(parse("(float[2,4] x) => (float y) { y = ReduceSum(x) }"), run, (1,))
    assert len(calls) == 1


def test_other_errors_are_not_hidden() -> None:
    def run(feeds: Feeds) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        random_feeds(parse(HISTORY), run)


def test_no_batches() -> None:
    with pytest.raises(InputError):
        random_feeds(parse(HISTORY), accept, ())
