"""Profiles name kernels, layers and costs; no time is judged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from command import graphopt as command

import graphopt
from graphopt.errors import ArtifactError, InputError
from graphopt.measuring import profiling, roofline
from graphopt.measuring.profiling import Profile, profile
from graphopt.measuring.roofline import Roofline
from graphopt.serving.manifest import manifest_text, read_manifest
from graphopt.testing import parse

MODEL = """(int64[N] user, float[N,8] dense) => (float[N,4] y)
<float[50,8] users, float[8,4] w, float[4] b> {
    e = Gather(users, user)
    x = Sub(e, dense)
    s = Sin(x)
    z = Gemm(s, w, b)
    y = Relu(z)
}"""
PEAKS = Roofline(1e9, (1e9,) * 4)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("profile") / "m.gopt"
    graphopt.compile(parse(MODEL), output=path)
    return path


@pytest.fixture(scope="module")
def found(artifact: Path) -> Profile:
    return profile(artifact, 16, seconds=0, peaks=PEAKS)


def test_every_kernel_is_there(found: Profile) -> None:
    ops = [op for kernel in found.kernels for op in kernel.ops]
    assert sorted(ops) == ["Gather", "Sin", "Sub", "graphopt.cpu::Dense"]
    assert all(kernel.microseconds >= 0 for kernel in found.kernels)
    assert found.total > 0
    assert found.runs == profiling.LEAST_RUNS


def test_costs_at_this_batch(found: Profile) -> None:
    by_op = {kernel.ops[-1]: kernel for kernel in found.kernels}
    dense = by_op["graphopt.cpu::Dense"]
    assert dense.flops == 16 * 4 * (2 * 8 + 2)  # a product, a bias, an activation
    assert dense.bytes == 4 * (16 * 8 + 8 * 4 + 4 + 16 * 4)
    assert dense.bound == pytest.approx(max(dense.flops, dense.bytes) / 1e3)
    fused = by_op["Sin"]
    assert fused.ops == ("Sub", "Sin")
    assert fused.bytes == 3 * 4 * 16 * 8  # what passes between the two stays in registers
    assert by_op["Gather"].bytes == 16 * (8 + 2 * 4 * 8)


def test_layers_are_named_as_in_the_model(found: Profile) -> None:
    names = {name for kernel in found.kernels for name in kernel.sources}
    assert names >= {"e", "x", "s"}


def test_profiled_and_plain_runs_agree(artifact: Path) -> None:
    loaded = graphopt.load(artifact)
    feeds = {"user": np.array([3, 4]), "dense": np.ones((2, 8), np.float32)}
    before = loaded.run(feeds)["y"].copy()
    assert len(loaded.profile(feeds)) == len(loaded.manifest["program"])
    np.testing.assert_array_equal(loaded.run(feeds)["y"], before)


def test_floor(artifact: Path, found: Profile) -> None:
    loaded = graphopt.load(artifact)
    feeds = {"user": np.zeros(16, np.int64), "dense": np.ones((16, 8), np.float32)}
    assert profiling.floor(loaded, feeds, PEAKS) == pytest.approx(found.bound, abs=0.01)


def test_inputs_are_checked(artifact: Path) -> None:
    with pytest.raises(InputError, match="missing input"):
        profile(artifact, inputs={"user": np.array([3])}, seconds=0, peaks=PEAKS)


def test_groups_of_equal_code(tmp_path: Path) -> None:
    """Two fused groups may share a function; each call is still one entry."""
    text = """(float[N,8] a, float[N,8] b) => (float[N,8] y, float[N,8] z) {
        p = Sin(a)  y = Sub(p, a)
        q = Sin(b)  z = Sub(q, b)
    }"""
    graphopt.compile(parse(text), output=tmp_path / "m.gopt")
    kernels = profile(tmp_path / "m.gopt", seconds=0, peaks=PEAKS).kernels
    assert [kernel.ops for kernel in kernels] == [("Sin", "Sub")] * 2


def test_results_of_fused_groups_are_theirs(tmp_path: Path) -> None:
    """TVM calls the result of a fused group as it calls results of single kernels elsewhere."""
    text = """(int64[N,3] ids, float[N,8] x) => (float[N,8] y) <float[9,8] t> {
        e = graphopt.EmbeddingBag(t, ids)  z = Add(e, x)  y = Sigmoid(z)
    }"""
    graphopt.compile(parse(text), output=tmp_path / "m.gopt")
    kernels = profile(tmp_path / "m.gopt", seconds=0, peaks=PEAKS).kernels
    assert [kernel.ops for kernel in kernels] == [("graphopt::EmbeddingBag",), ("Add", "Sigmoid")]


TABLES = """(int64[N] user, int64[N,2] ids, float[N,4] dense, int64[N,3] history) => (float[N,1] y)
<float[50,8] users, float[30,4] items, float[9,4] places, float[40,8] past, float[28,1] w> {
    u = Gather(users, user)
    zero = Constant<value = int64[1] {0}>()  one = Constant<value = int64[1] {1}>()
    two = Constant<value = int64[1] {2}>()  axis = Constant<value = int64[1] {1}>()
    first = Slice(ids, zero, one, axis)  item = Squeeze(first, axis)  i = Gather(items, item)
    second = Slice(ids, one, two, axis)  place = Squeeze(second, axis)  p = Gather(places, place)
    h = graphopt.EmbeddingBag(past, history)
    d = Exp(dense)
    x = Concat<axis = 1>(u, i, p, d, h)
    y = MatMul(x, w)
}"""
SIZES = {"users": 50, "items": 30, "places": 9, "past": 40}


@pytest.fixture(scope="module")
def with_tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tables") / "m.gopt"
    graphopt.compile(parse(TABLES), output=path)
    return path


def test_tables_share_the_kernel_that_looks_them_up(with_tables: Path) -> None:
    rows = 4096  # times are rounded to ns, which small batches hardly take
    found = profile(with_tables, rows, seconds=0, peaks=PEAKS)
    tables = {table.table: table for table in found.tables}
    assert {name: table.rows for name, table in tables.items()} == SIZES
    assert tables["users"].features == ("user",)
    assert tables["items"].features == ("ids[:, 0]",)
    assert tables["places"].features == ("ids[:, 1]",)
    assert tables["users"].bytes == rows * (8 + 2 * 4 * 8)
    assert tables["past"].bytes == rows * (3 * (8 + 4 * 8) + 4 * 8)
    times = {name: table.microseconds or 0.0 for name, table in tables.items()}
    assert times["items"] == pytest.approx(times["places"], abs=0.002)
    assert times["users"] / times["items"] == pytest.approx((8 + 64) / (8 + 32), rel=0.05)


def test_features_add_up_to_the_kernels(with_tables: Path) -> None:
    found = profile(with_tables, 16, seconds=0, peaks=PEAKS)
    times = {feature.feature: feature.microseconds for feature in found.features}
    assert times.keys() == {"user", "ids[:, 0]", "ids[:, 1]", "history", "dense", ""}
    assert sum(times.values()) == pytest.approx(found.inside, abs=0.01)
    past = next(table for table in found.tables if table.table == "past")
    assert times["history"] == pytest.approx(past.microseconds, abs=0.002)


def test_stacked_tables_are_told_apart(tmp_path: Path) -> None:
    """They have the names of the source, by the features that their ids come from."""
    fields = [f"f{k}" for k in range(6)]
    takes = "".join(
        f"c{k} = Constant<value = int64 {{{k}}}>()  s{k} = Gather<axis = 1>(ids, c{k})\n"
        f"e{k} = Gather({name}, s{k})\n"
        for k, name in enumerate(fields)
    )
    tables = ", ".join(f"float[{10 + k},4] {name}" for k, name in enumerate(fields))
    joined = ", ".join(f"e{k}" for k in range(6))
    text = f"""(int64[N,6] ids) => (float[N,24] y) <{tables}> {{
        {takes} y = Concat<axis = 1>({joined}) }}"""
    spec = "fixpoint(canonicalize,fold-constants,simplify-slices,fuse-lookups{min_fields=2},dce)"
    graphopt.compile(parse(text), output=tmp_path / "m.gopt", passes=spec)
    found = profile(tmp_path / "m.gopt", 16, seconds=0, peaks=PEAKS)
    assert [kernel.ops for kernel in found.kernels] == [("graphopt.cpu::LookupConcat",)]
    named = {table.table: (table.rows, table.features) for table in found.tables}
    assert named == {f"f{k}": (10 + k, (f"ids[:, {k}]",)) for k in range(6)}


def test_what_cannot_run_here_is_described(with_tables: Path, tmp_path: Path) -> None:
    path = tmp_path / "foreign.gopt"
    shutil.copytree(with_tables, path)
    text = manifest_text({**read_manifest(path), "machine": "riscv64"})
    (path / "manifest.json").write_text(text)
    here, found = profile(with_tables, 5, seconds=0, peaks=PEAKS), profile(path, 5)
    assert found.total is None
    assert "riscv64" in found.device
    assert [k.bytes for k in found.kernels] == [k.bytes for k in here.kernels]
    assert {t.table: t.bytes for t in found.tables} == {t.table: t.bytes for t in here.tables}
    shown = command("profile", path, "--batch", "5")
    assert shown.status == 0, shown.err
    assert "not run here" in shown.out and "whole call" not in shown.out
    given = {"user": np.zeros(5, np.int64)}
    with pytest.raises(InputError, match="missing input"):
        profile(path, inputs=given)


def test_loops_have_no_profile(tmp_path: Path) -> None:
    text = """(float[N] x, bool c) => (float[K] y) { y = If(c) <
        then_branch = long () => (float[A] u) { u = Concat<axis=0>(x, x) },
        else_branch = short () => (float[B] v) { v = Neg(x) }> }"""
    graphopt.compile(parse(text), output=tmp_path / "m.gopt")
    with pytest.raises(ArtifactError, match="cannot be profiled"):
        profile(tmp_path / "m.gopt", seconds=0, peaks=PEAKS)


def test_command(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "roofline", lambda: PEAKS)
    shown = command("profile", artifact, "--batch", "4", "--seconds", "0")
    assert shown.status == 0, shown.err
    assert "dense" in shown.out
    assert "ids from" in shown.out and "several together" in shown.out
    assert "whole call" in shown.out
    parsed = json.loads(command("profile", artifact, "--seconds", "0", "--json").out)
    assert parsed["batch"] == 64
    assert len(parsed["peaks"]["bytes"]) == len(roofline.SIZES)
    assert parsed["kernels"][0]["kernel"]
