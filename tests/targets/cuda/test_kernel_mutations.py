"""Broken copies of our own kernels must be caught: barriers, bounds, places, what is added up."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from unittest import mock

import gpu_emulator
import numpy as np
import pytest

import graphopt
from graphopt.ir.dims import Sym
from graphopt.ir.graph import Graph, Value
from graphopt.ir.types import TensorType
from graphopt.ops import attention as attention_op
from graphopt.ops import (
    bi_interaction,
    compressed_interaction,
    cross_network,
    dot_interaction,
    embedding_bag,
    product_lookup,
)
from graphopt.targets.cuda.kernels import recurrent
from graphopt.testing import run_onnxruntime

from .conftest import THOROUGH, Feeds, assert_close
from .mutants import Mutation, mutant, replaced

RNG = np.random.default_rng(31)
N, T, S = (Sym.named(name) for name in "nts")
DOMAIN = "graphopt"
STANDARD = ("LayerNormalization", "Softmax", "TopK", "NonZero", "CumSum", "ScatterElements")


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


class Model:
    """A graph of one op, float32 inputs unless said otherwise, and what it is fed."""

    def __init__(self, **shapes: tuple[object, ...]) -> None:
        self.graph = Graph(opsets={"": 18, DOMAIN: 1})
        self.feed: dict[str, np.ndarray] = {}
        for name, (array, *shape) in shapes.items():
            self.feed[name] = array
            self.graph.add_input(name, TensorType(str(array.dtype), tuple(shape)))

    def of(self, op: str, *constants: np.ndarray, first: bool = False, **attrs: object) -> Model:
        """The inputs and constants through the op, as the output y; constants are `first` or last.

        An input comes by way of a Neg if it is float32: memory of our own may be read 16 bytes at
        once.
        """
        inputs = [self._own(value) for value in self.graph.inputs]
        given = [self.graph.constant(array) for array in constants]
        operands = [*given, *inputs] if first else [*inputs, *given]
        domain = "" if op in STANDARD else DOMAIN
        outputs = 2 if op == "TopK" else 1
        node = self.graph.insert(op, operands, attrs, domain=domain, outputs=outputs)
        self.graph.set_outputs(node.outputs[:1], ["y"])
        return self

    def _own(self, value: Value) -> Value:
        return self.graph.insert("Neg", [value]).output if value.dtype == "float32" else value


def bags() -> Model:
    ids, offsets = RNG.integers(-13, 13, 50), np.array([0, 0, 3, 3, 20, 49])
    model = Model(ids=(ids, N), offsets=(offsets, T))
    return model.of(embedding_bag.OP_TYPE, normal(13, 40), first=True, mode="mean")


def parts() -> Model:
    codes, books = RNG.integers(0, 256, (9, 4)).astype(np.uint8), normal(4 * 256, 8)
    model = Model(ids=(np.arange(36).reshape(18, 2) % 18 - 9, N, 2))
    return model.of(product_lookup.OP_TYPE, codes, books, first=True)


def dots() -> Model:
    pairs = [i * 5 + j for i in range(5) for j in range(i)]
    model = Model(x=(normal(16, 5, 8), N, 5, 8), beside=(normal(16, 6), N, 6))
    return model.of(dot_interaction.OP_TYPE, pairs=pairs)


def machine(pooled: int) -> Model:
    # Of the pooled ones, a block serves 8 samples: there is room for one that there is not.
    samples = 15 if pooled else 16
    model = Model(x=(normal(samples, 4, 40), N, 4, 40))
    return model.of(bi_interaction.OP_TYPE, pooled=pooled)


def crossed() -> Model:
    constants = normal(40, 2), normal(2), normal(40)
    return Model(x=(normal(16, 40), N, 40)).of(cross_network.OP_TYPE, *constants)


def compressed() -> Model:
    # Three stages of products, so that some are written while others are multiplied, and tiles of
    # 16 rows that 40 do not fill.
    model = Model(x=(normal(20, 9, 2), N, 9, 2), z=(normal(20, 8, 2), N, 8, 2))
    return model.of(compressed_interaction.OP_TYPE, normal(72, 37), normal(37))


def attended() -> Model:
    what = attention_op.Attention(2, 8, 0.3)
    queries, keys, values = normal(4, 4, 16), normal(4, 33, 16), normal(4, 33, 16)
    keys[:, 32] *= 9  # so that some maxima are found in the second turn
    model = Model(q=(queries, N, T, 16), k=(keys, N, S, 16), v=(values, N, S, 16))
    return model.of(attention_op.OP_TYPE, **what.attrs)


def normalized() -> Model:
    model = Model(x=(normal(24, 40), N, 40))  # a block serves 16 rows
    return model.of("LayerNormalization", normal(40), normal(40), epsilon=0.1, axis=-1)


def softmax() -> Model:
    return Model(x=(normal(16, 40), N, 40)).of("Softmax", axis=-1)


def order() -> Model:
    model = Model(x=(normal(16, 37), N, 37))
    return model.of("TopK", np.array([16]), axis=1, largest=1, sorted=1)


def places() -> Model:
    return Model(x=(RNG.integers(0, 2, (48, 7)), N, 7)).of("NonZero")


def selected(length: int, taken: int) -> Model:
    model = Model(x=(normal(2, length), N, length))
    return model.of("TopK", np.array([taken]), axis=1, largest=1, sorted=1)


def summed() -> Model:
    return Model(x=(RNG.integers(-9, 9, (600, 2)), N, 2)).of("CumSum", np.array(0))


def scattered() -> Model:
    at, updates = RNG.integers(0, 5, (150, 2)), normal(150, 2)
    model = Model(x=(normal(5, 2), N, 2), at=(at, T, 2), v=(updates, T, 2))
    return model.of("ScatterElements", axis=0, reduction="add")


def recurring() -> Model:
    # Two threads share a unit and two samples; the last block has but one.
    w, r, start = normal(1, 99, 6), normal(1, 99, 33) * np.float32(0.3), normal(1, 5, 33)
    model = Model(x=(normal(4, 5, 6), T, N, 6), start=(start, 1, N, 33))
    x, initial = model.graph.inputs
    values = [x, *map(model.graph.constant, (w, r)), None, None, initial]
    node = model.graph.insert("GRU", values, {"hidden_size": 33})
    model.graph.set_outputs(node.outputs[:1], ["y"])
    return model


MODELS: dict[str, Callable[[], Model]] = {
    "bag": bags, "parts": parts, "dots": dots, "fm": lambda: machine(0),
    "pooled": lambda: machine(1), "cross": crossed, "cin": compressed,
    "attention": attended, "norm": normalized, "softmax": softmax, "topk": order, "nonzero": places,
    "best": lambda: selected(1100, 5), "sort": lambda: selected(600, 600), "sums": summed,
    "scatter": scattered, "gru": recurring,
}  # fmt: skip
MANY = "gru1_kernel_1"
SHUFFLED = r"(_ptr(?:_\d)?\[\d\]) = \(_ptr(?:_\d)?\[\d\] \+ __shfl_xor_sync\([^;]*, {}, 32\)\);"
MUTATIONS: dict[str, tuple[str, Mutation]] = {
    "bag: the next id": ("bag", Mutation("bag", r"arg1_ptr\[\(", "arg1_ptr[1 + (")),
    "bag: an id too few": ("bag", Mutation("bag", r"< \((v_\d - v_\d)\)", r"< (\1 - 1)")),
    "bag: a row too far": ("bag", Mutation("bag", r"\+ \(int64_t\)13\)", "+ (int64_t)14)")),
    "bag: the next piece": ("bag", Mutation("bag", r"\(arg0_ptr \+ \(", "(arg0_ptr + (4 + ")),
    "bag: bags that there are not": ("bag", Mutation("bag", r"< \(t \* ", "<= (t * ")),
    "parts: another book": (
        "parts", Mutation("lookup", r"(arg1_ptr \+ .*?\* \(int64_t\))2048", r"\g<1>2056")
    ),
    "parts: the next code": ("parts", Mutation("lookup", r"arg0_ptr\[\(", "arg0_ptr[1 + (")),
    "parts: a row too far": ("parts", Mutation("lookup", r"\+ \(int64_t\)9\)", "+ (int64_t)10)")),
    "dots: not all vectors are there": ("dots", Mutation("dot", r"__syncthreads\(\);", ";")),
    "dots: not all products are there": (
        "dots", Mutation("dot", r"(?s)(__syncthreads\(\);.*?)__syncthreads\(\);", r"\1")
    ),
    "dots: half of a product": ("dots", Mutation("dot", SHUFFLED.format(1), ";")),
    "dots: a vector of the next sample": ("dots", Mutation("dot", r"< \(int64_t\)10\)", "< 12)")),
    "fm: a feature too few": ("fm", Mutation("bi", r"< \(int64_t\)4;", "< (int64_t)3;")),
    "fm: rows that there are not": ("fm", Mutation("bi", r" < cse_v1\)", " <= cse_v1)")),
    "fm: the next column": ("fm", Mutation("bi", r"arg0_ptr\[", "arg0_ptr[1 + ")),
    "pooled: a shuffle too few": ("pooled", Mutation("bi", SHUFFLED.format(4), ";")),
    "pooled: samples that there are not": ("pooled", Mutation("bi", r" < n\)", " <= n)")),
    "pooled: columns of the next feature": ("pooled", Mutation("bi", r"< \(int64_t\)8\)", "< 9)")),
    "cross: a shuffle too few": ("cross", Mutation("cross", SHUFFLED.format(16), ";")),
    "cross: the next weights": ("cross", Mutation("cross", r"arg1_ptr\[", "arg1_ptr[1 + ")),
    "cross: a column too few": ("cross", Mutation("cross", r"< \(int64_t\)5\)", "< (int64_t)4)")),
    "attention: keys that there are not": ("attention", Mutation("att", r" < s\)", " <= s)")),
    "attention: the sums of an earlier maximum": (
        "attention", Mutation("att", r"_ptr_1\[0\] = \(_ptr_1\[0\] \* v_\d+\);", ";")
    ),
    "attention: the weight of another key": (
        "attention", Mutation("att", r"__shfl_sync\([^,]*, ([^,]*), 7, 32\)", r"\1")
    ),
    "norm: part of a mean": ("norm", Mutation("norm", SHUFFLED.format(8), ";")),
    "norm: lanes of another row": ("norm", Mutation("norm", r", 8, 32\)", ", 16, 32)")),
    "norm: columns that there are not": ("norm", Mutation("norm", r"< \(int64_t\)10\)", "< 11)")),
    "norm: rows that there are not": ("norm", Mutation("norm", r" < n\)", " <= n)")),
    "softmax: part of a sum": ("softmax", Mutation("softmax", SHUFFLED.format(2), ";")),
    "softmax: columns that are not there count": (
        "softmax", Mutation("softmax", r"condval = 0x0p", "condval = 0x1p")
    ),
    "topk: an element too few": ("topk", Mutation("topk", r"< \(int64_t\)37;", "< (int64_t)36;")),
    "topk: places taken twice": ("topk", Mutation("topk", r"\(v_2 < v_4\)", "(v_2 <= v_4)")),
    "best: all to one place": ("best", Mutation("topk_", r"\[0\]\)\), 1\);", "[0])), 0);")),
    "best: half of the sort": ("best", Mutation("topk_", r"< \(int64_t\)11;", "< 6;")),
    "best: none waits": ("best", Mutation("topk_", r"__syncthreads\(\);", ";")),
    "sort: a digit too few": ("sort", Mutation("topk_", r"< 4;", "< 3;")),
    "sort: counts that are not there yet": (
        "sort", Mutation("topk_", r"(?s)(__syncthreads\(\);.*?)__syncthreads\(\);", r"\1")
    ),
    "sums: what came before is forgotten": (
        "sums", Mutation("cumsum", r"= \(_ptr\[0\] \+ _ptr_1\[255\]", "= (_ptr_1[255]")
    ),
    "sums: none waits": ("sums", Mutation("cumsum", r"__syncthreads\(\);", ";")),
    "scatter: an update too few": (
        "scatter", Mutation("elements1", r"(\(_ptr\[0\] \+ )\(int64_t\)1\);", r"\g<1>2);")
    ),
    "gru: the reset state is not there yet": (
        "gru", Mutation(MANY, r"(\* _ptr_\d\[0\]\);\s+)__syncthreads\(\);", r"\1")
    ),
    "gru: the new state is not there yet": (
        "gru", Mutation(MANY, r"(= _ptr_\d\[0\];\s+)__syncthreads\(\);(\s+\})", r"\1\2")
    ),
    "gru: half of a sum": (
        "gru", Mutation(MANY, r"__shfl_xor_sync\([^;]*, (v_\d+), 1, 32\)", r"\1")
    ),
    "gru: the sum of another sample": (
        "gru", Mutation(MANY, r"(= _ptr_\d)\[3\];", r"\1[0];")
    ),
    "gru: inputs of the same step": (
        "gru", Mutation(MANY, r"(\[0\] = gates_ptr\[[^;]*min\(\(v_6 \+ )\(int64_t\)1", r"\1 0")
    ),
    "gru: samples that there are not": ("gru", Mutation(MANY, r" < samples\)", " <= samples)")),
    "gru: states that there are not": (
        "gru", Mutation(MANY, r"_ptr\[[^;]*\] = 0x0p[^;]*;", ";")
    ),
    "nonzero: no barrier": ("nonzero", Mutation("nonzero", r"__syncthreads\(\);", ";")),
    "nonzero: a step of the sums too few": (
        "nonzero", Mutation("nonzero", r"\(int64_t\)4 <= ", "(int64_t)4096 <= ")
    ),
}  # fmt: skip
# Of the device functions that its kernels call.
IN_PRODUCTS = {
    "the pair of the next products": ("__ldg(pairs + p)", "__ldg(pairs + p + 1)"),
    "the feature below": ("(s * M + pair % M)", "(s * M + pair % M + 1)"),
    "rows that there are not": ("at < ALL && r < rows && p < K", "at < ALL && p < K"),
    "products are written where others are read": (
        "if (more) source.end(shared + next", "if (more) source.end(shared + present"
    ),
}  # fmt: skip


@cache
def _artifact(name: str, emulation: Path) -> tuple[Path, Feeds, Feeds]:
    """A model, compiled once; what it is fed, and what it should say to that."""
    model, path = MODELS[name](), emulation / f"{name}.gopt"
    with (
        mock.patch.dict(recurrent._FEW, {True: 1}),
        gpu_emulator.compiled_for_emulation(emulation, races=True, machine=True),
    ):
        graphopt.compile(model.graph, "cuda", output=path, passes="O0", verify=False)
    return path, model.feed, run_onnxruntime(model.graph, model.feed)


def check(name: str, emulation: Path) -> None:
    path, feed, expected = _artifact(name, emulation)
    assert_close(gpu_emulator.run(path, [feed], emulation, THOROUGH), [expected])


@pytest.mark.parametrize("name", MODELS)
def test_right_code_passes(name: str, emulation: Path) -> None:
    check(name, emulation)


@pytest.mark.parametrize("name", MUTATIONS)
def test_broken_code_is_caught(name: str, emulation: Path) -> None:
    model, mutation = MUTATIONS[name]
    path, *_ = _artifact(model, emulation)
    with (
        mutant(path, emulation, mutation.applied),
        pytest.raises((gpu_emulator.LaunchError, AssertionError)),
    ):
        check(model, emulation)


@pytest.mark.parametrize("name", IN_PRODUCTS)
def test_broken_products_are_caught(name: str, emulation: Path) -> None:
    old, new = IN_PRODUCTS[name]
    path, *_ = _artifact("cin", emulation)
    with (
        mutant(path, emulation, lambda source: replaced(source, old, new)),
        pytest.raises((gpu_emulator.LaunchError, AssertionError)),
    ):
        check("cin", emulation)
