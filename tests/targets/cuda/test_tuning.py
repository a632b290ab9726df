"""Dense layers tuned on a GPU: what is measured, what is kept, and what is used without a GPU."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from math import inf
from pathlib import Path
from typing import get_args

import gpu_emulator
import numpy as np
import onnx
import pytest
import tvm

import graphopt
from graphopt.errors import SpecError, TuningMissError
from graphopt.ir import onnx_io
from graphopt.ir.dims import Sym
from graphopt.ir.graph import Graph
from graphopt.ir.types import TensorType
from graphopt.ops.dynamic_matmul import DOMAIN, OP_TYPE
from graphopt.pipeline.report import Report
from graphopt.targets.cuda import nvcc
from graphopt.targets.cuda import tuning as gpu_tuning
from graphopt.targets.cuda.gemm_defaults import shared_limit
from graphopt.targets.cuda.gemm_family import GpuGemmFamily, GpuGemmProblem, ranges_of
from graphopt.targets.cuda.kernels import elementary
from graphopt.targets.cuda.kernels.gemm import FewRows, Math, RowDots, Tile
from graphopt.targets.cuda.target import CudaTarget
from graphopt.targets.tuning import remote
from graphopt.targets.tuning.database import Database, Key, as_text
from graphopt.targets.tuning.options import Tuning
from graphopt.targets.tuning.remote import Remote
from graphopt.targets.tuning.tuner import Tuner

FAMILY = GpuGemmFamily()
K, N = 24, 36
TILE = Tile(32, 32, 64, 32, 32, 3, 4)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    text = f"agraph (float[n, {K}] x) => (float[n, {N}] y) {{ y = MatMul (x, w) }}"
    parsed = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 21]>\n{text}')
    weights = np.random.default_rng(0).standard_normal((K, N)).astype(np.float32)
    parsed.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    onnx.save(parsed, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def key(rows: int, math: Math = "Fp32") -> Key:
    problem = as_text(asdict(GpuGemmProblem(K, N, math, rows)))
    return Key(FAMILY.name, FAMILY.version(), problem, "cuda sm_90", tvm.__version__)


def test_measured_on_the_gpu_that_is_there(model: Path, emulation: Path, tmp_path: Path) -> None:
    cache = tmp_path / "t.db"
    facts = gpu_emulator.tune(model, cache, emulation, trials=4, batches=(1, 40))
    assert facts["target"] == "cuda:sm_90"  # that GPU's
    assert facts["tuning"]["measured"] == 4 and facts["tuning"]["known"] == 2
    known = Database(cache, read_only=True).costs(key(40))
    assert len(known) == 2 and known[as_text(asdict(FAMILY.default(_problem(40))))] == 1.0
    assert {type(FAMILY.parse(json.loads(text))) for text in known} <= {Tile, FewRows}


def test_layers_whose_rows_have_a_range_each(emulation: Path, tmp_path: Path) -> None:
    """On rows that are coded already; in 7 bits, whose sums ONNX Runtime has right on any CPU."""
    rng = np.random.default_rng(1)
    graph = Graph(opsets={"": 18, DOMAIN: 1})
    x = graph.add_input("x", TensorType("float32", (Sym.named("m"), K)))
    codes = graph.constant(rng.integers(-127, 128, (K, N)).astype(np.int8))
    scales = graph.constant(rng.uniform(0.001, 0.01, N).astype(np.float32))
    y = graph.insert(OP_TYPE, [x, codes, scales], {"levels": 127}, domain=DOMAIN).output
    graph.set_outputs([y], ["y"])
    onnx.save(onnx_io.to_proto(graph), tmp_path / "model.onnx")
    cache = tmp_path / "t.db"
    facts = gpu_emulator.tune(tmp_path / "model.onnx", cache, emulation, trials=6, batches=(1, 40))
    assert facts["tuning"]["measured"] == 6 and facts["tuning"]["known"] == 2
    known = [Database(cache, read_only=True).costs(key(rows, "Codes")) for rows in (1, 40)]
    kinds = {type(FAMILY.parse(json.loads(text))) for costs in known for text in costs}
    assert [len(costs) for costs in known] == [3, 3] and kinds == {Tile, FewRows}


class Elsewhere:
    """A GPU far away, on which nothing may be run."""

    device = None

    def load(self, library: Path) -> None:
        assert library.exists()


def test_what_spills_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = {"registers": 255, "shared_bytes": 0, "spill_bytes": 8}
    resources = {"sm_90": {"main_kernel": taken}}
    monkeypatch.setattr(nvcc, "fatbin", lambda source, architectures: (b"code", resources))
    elementary.register()
    measure = partial(gpu_tuning._ratios, gpu_tuning._Gpu("sm_90", Elsewhere()))  # type: ignore[arg-type]
    target = CudaTarget(("sm_90",))._tvm()
    tuning = Tuning(tmp_path / "t.db", trials=3, batches=(40,))
    tuner = Tuner(tuning, target, "cuda sm_90", measure)
    tuner.tune(FAMILY, [_problem(40)])
    assert tuner.params(FAMILY, _problem(40)) == FAMILY.default(_problem(40))
    assert sorted(Database(tuning.cache).costs(key(40)).values()) == [1.0, inf, inf]
    assert tuner.summary.speedup == 1.0


def _problem(rows: int) -> GpuGemmProblem:
    return GpuGemmProblem(K, N, "Fp32", rows)


def test_what_was_measured_is_used_without_a_gpu(
    model: Path, emulation: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "t.db"
    database = Database(cache)
    database.add(key(1), asdict(FewRows(2, 16, 256)), 0.5)
    database.add(key(64), asdict(TILE), 0.5)
    database.close()
    tuning = Tuning(cache, batches=(1, 64), read_only=True, error_on_miss=True)
    with gpu_emulator.compiled_for_emulation(emulation):
        made = tmp_path / "m.gopt"
        graphopt.compile(model, "cuda", output=made, passes="O0", tuning=tuning, verify=False)
        source = (made / "model.cu").read_text()
        assert f"few_rows<2, 16, 256, graphopt::Fp32, {K}, {N}>" in source
        assert f"Tile<32, 32, 64, 32, 32, 3, 4>, graphopt::Fp32, {K}, {N}>" in source
        missing = Tuning(cache, batches=(1, 65), read_only=True, error_on_miss=True)
        with pytest.raises(TuningMissError, match=r"gpu-gemm .*rows=65 on cuda sm_90"):
            graphopt.compile(model, "cuda", passes="O0", tuning=missing)


def test_measured_on_another_machine(
    model: Path, emulation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, report = tmp_path / "t.db", Report()
    with gpu_emulator.rpc_server(emulation) as port, gpu_emulator.compiled_for_emulation(emulation):
        there = Remote("127.0.0.1", port)
        tuning = Tuning(cache, trials=2, batches=(1,), remote=there)
        graphopt.compile(model, "cuda", passes="O0", tuning=tuning, report=report, verify=False)
        assert report.facts["tuning"]["measured"] == 2
        with pytest.raises(SpecError, match=rf"the GPU at 127\.0\.0\.1:{port} is sm_90, .*sm_80"):
            graphopt.compile(model, "cuda:sm_80", passes="O0", tuning=tuning, verify=False)
        session = there.connect()
        monkeypatch.setattr(remote, "_PATIENCE", 0.5)
        with pytest.raises(SpecError, match="does not answer: it serves someone else"):
            there.connect()
        session.close()
        monkeypatch.setattr(remote, "_PATIENCE", 30)
        monkeypatch.setattr(remote, "key", lambda: "another-version")
        with pytest.raises(SpecError, match=r"refuses: .*same version.*--key another-version"):
            there.connect()
    assert len(Database(cache, read_only=True).costs(key(1))) == 2
    with pytest.raises(SpecError, match=rf"no server at 127.0.0.1:{port} \(.*--port {port}"):
        there.connect()


def test_where_to_measure() -> None:
    assert Remote.parse("gpu-box:9090") == Remote("gpu-box", 9090)
    assert Remote.parse("[::1]:9090") == Remote("::1", 9090)
    for text in ("gpu-box", "gpu-box:", ":9090", "gpu-box:0", "gpu-box:70000", "gpu-box:x"):
        with pytest.raises(SpecError, match="--rpc takes HOST:PORT"):
            Remote.parse(text)
    with pytest.raises(SpecError, match="say how long"):
        Tuning(remote=Remote("gpu-box", 9090))
    with pytest.raises(SpecError, match="tuned on this machine's"):
        Tuner(Tuning(trials=1, remote=Remote("gpu-box", 9090)), tvm.target.Target("llvm"), "cpu")


def test_refusals(model: Path, emulation: Path) -> None:
    with gpu_emulator.compiled_for_emulation(emulation):
        with pytest.raises(SpecError, match=r"tuned on one, but .*no NVIDIA driver"):
            graphopt.compile(model, "cuda", passes="O0", tuning=Tuning(trials=1))
        with pytest.raises(SpecError, match="tuned for 5 batch sizes at most"):
            tuning = Tuning(trials=1, batches=(1, 2, 3, 4, 5, 6))
            graphopt.compile(model, "cuda", passes="O0", tuning=tuning)
    with pytest.raises(gpu_emulator.LaunchError, match=r"is sm_80, .*try --target cuda:sm_80"):
        gpu_emulator.tune(model, emulation / "t.db", emulation, 1, (1,), 80, "cuda:sm_90")


def test_candidates_fit() -> None:
    for math in get_args(Math):
        for k, n, rows in ((13, 1, 64), (429, 400, 1), (429, 400, 64), (1024, 1024, 8192)):
            problem = GpuGemmProblem(k, n, math, rows)
            found = list(FAMILY.candidates(problem))
            assert len(found) >= 3 and len(set(found)) == len(found)
            for params in found:
                assert FAMILY.parse(asdict(params)) == params
                assert isinstance(params, RowDots) == (n == 1)
                if not isinstance(params, RowDots):
                    assert 4 * params.shared_words(math) <= shared_limit(math)


def test_ranges_meet_half_way() -> None:
    few = FewRows(1, 16, 512)
    assert ranges_of({1: few, 64: few, 400: TILE}) == ((160, few), (None, TILE))
    assert ranges_of({7: TILE}) == ((None, TILE),)
