"""Kernels that do not wait for one another are one launch, and compute what they did."""

from __future__ import annotations

from pathlib import Path

import gpu_emulator
import numpy as np
import pytest

import graphopt
from graphopt.targets.cuda.joining import join
from graphopt.targets.cuda.kernels import elementary
from graphopt.targets.cuda.lowering import CudaLowering
from graphopt.targets.cuda.schedule import schedule
from graphopt.targets.cuda.target import CudaTarget
from graphopt.targets.relax import lowering
from graphopt.targets.relax.build import compiling, fuse
from graphopt.targets.relax.reader import read
from graphopt.testing import parse, run_onnxruntime

from .conftest import THOROUGH, Feeds, Runner, assert_close
from .mutants import Mutation, mutant

RNG = np.random.default_rng(5)
PLAIN = gpu_emulator.Mode(races=True)  # memory is planned: values of one launch have their own

# Light kernels of one and of two axes of blocks, with shuffles, and with barriers (the check of
# ids); layers of the same input and of inputs of their own; kernels of two results.
SIDES = """g (float[N,T,6] x, float[N,8] v, int64[N,3] ids)
    => (float[N,T,6] a, float[N,8] s, float[N,3,4] rows, float[N,T,1] total, float[N,4] d,
        float[N,4] e, float[N,1,T,5] y, float[1,T,5] h,
        float[N,1,T,5] z, float[1,T,5] k)
<float[9,4] table, float[1,15,6] wy, float[1,15,6] wz, float[1,15,5] ry, float[1,15,5] rz,
    float[8,16] w1, float[8,16] w2, float[16,4] w3, float[16,4] w4, int64[1] last = {2}> {
    a = Neg(x)
    s = Softmax(v)
    rows = Gather(table, ids)
    total = ReduceSum(x, last)
    p = MatMul(v, w1) pp = Relu(p)
    q = MatMul(v, w2) qq = Relu(q)
    d = MatMul(pp, w3)
    e = MatMul(qq, w4)
    y, h = GRU<hidden_size=5>(x, wy, ry)
    z, k = GRU<hidden_size=5>(x, wz, rz)
}"""


def feeds(*sizes: tuple[int, int]) -> list[Feeds]:
    return [
        {
            "x": RNG.standard_normal((n, t, 6)).astype(np.float32),
            "v": RNG.standard_normal((n, 8)).astype(np.float32),
            "ids": RNG.integers(-9, 9, (n, 3)),
        }
        for n, t in sizes
    ]


def launches(text: str) -> list[str]:
    """The kernels that a model launches, in order."""
    target = CudaTarget.parse("sm_80")
    device = target._tvm()
    elementary.register()
    lowered = lowering.lower(target.legalize(parse(text)), "error", CudaLowering(device))
    with compiling(), device:
        joined, _ = join(schedule(fuse(lowered.module, lowered.emitted)[0], device))
    program = read(joined)
    assert program is not None
    return [call.symbol for call in program.calls]


def test_what_is_joined() -> None:
    light, *heavy = sorted(launches(SIDES), key=lambda name: "times" in name)
    assert set(light.split("_")) == {"neg", "softmax", "lookup", "reducesum", "kernel"}
    assert set(heavy) == {f"{name}_2_times" for name in ("dense", "dense1", "gru", "gru1")}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (  # each waits for the one before
            "(float[N,8] x) => (float[N,8] y) { a = Softmax(x) b = LogSoftmax(a) y = Softmax(b) }",
            ["softmax", "logsoftmax", "softmax1"],
        ),
        (  # the same layer, for another number of rows
            """(float[N,8] x, float[M,8] z) => (float[N,4] y, float[M,4] u)
            <float[8,4] w, float[8,4] v> { y = MatMul(x, w) u = MatMul(z, v) }""",
            ["dense", "dense"],
        ),
        (  # layers of other widths
            """(float[N,8] x) => (float[N,40] y, float[N,48] u)
            <float[8,40] w, float[8,48] v> { y = MatMul(x, w) u = MatMul(x, v) }""",
            ["dense", "dense1"],
        ),
        (  # what is light waits, so that it is done beside a longer way
            """(float[N,8] x, float[N,8] z) => (float[N,40] y, float[N,8] u, float[N,40] v)
            <float[8,40] w> { p = MatMul(x, w) y = Softmax(p) u = Softmax(z) v = LogSoftmax(p) }""",
            ["dense", "softmax_softmax1_logsoftmax"],
        ),
    ],
)
def test_what_is_not(text: str, wanted: list[str]) -> None:
    assert launches(text) == wanted


@pytest.mark.parametrize("order", [0, 1, 7])
def test_results(order: int, run_model: Runner) -> None:
    graph, given = parse(SIDES), feeds((1, 1), (7, 3), (64, 5))
    wanted = [run_onnxruntime(graph, feed) for feed in given]
    modes = [PLAIN, THOROUGH] if order == 0 else [gpu_emulator.Mode(races=True, order=order)]
    for mode in modes:
        assert_close(run_model(graph, *given, mode=mode), wanted)


def test_nothing_beside_something(run_text: Runner) -> None:
    text = "(float[N,3] x, float[M,5] z) => (float[N,3] y, float[M,5] u) { y = Exp(x) u = Neg(z) }"
    given = [{"x": np.ones((n, 3), "f"), "z": np.ones((m, 5), "f")} for n in (0, 9) for m in (0, 2)]
    wanted = [{"y": np.exp(feed["x"]), "u": -feed["z"]} for feed in given]
    assert_close(run_text(f"g {text}", *given, mode=PLAIN), wanted)


MUTATIONS = {
    "blocks of all parts are the first one's": Mutation(
        "neg", r"left_ptr\[0\] = \(left_ptr\[0\] - [^;]*;", ";"
    ),
    "a part has a block too many": Mutation("neg", r"(left_ptr\[0\]) < ", r"\1 - 1 < "),
    "one set of operands is used alone": Mutation(
        "gru1", r"one_of\(\(\(int\)blockIdx.z\)", "one_of(0"
    ),
    "one set of results is written alone": Mutation(
        "gru1", r"(float\* y = .*)one_of\(\(\(int\)blockIdx.z\)", r"\1one_of(1"
    ),
}


@pytest.fixture(scope="module")
def artifact(emulation: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("joining") / "model.gopt"
    with gpu_emulator.compiled_for_emulation(emulation, races=True):
        graphopt.compile(parse(SIDES), "cuda", output=path, passes="O0", verify=False)
    return path


@pytest.mark.parametrize("name", MUTATIONS)
def test_mutations(name: str, artifact: Path, emulation: Path) -> None:
    given = feeds((64, 5))
    wanted = [run_onnxruntime(parse(SIDES), feed) for feed in given]
    with (
        mutant(artifact, emulation, MUTATIONS[name].applied),
        pytest.raises((AssertionError, gpu_emulator.LaunchError)),
    ):
        assert_close(gpu_emulator.run(artifact, given, emulation, PLAIN), wanted)
