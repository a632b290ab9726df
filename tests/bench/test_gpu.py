"""The GPU benchmark, as far as it goes without a GPU: payloads, checks, peers, tables."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gpu_emulator
import numpy as np
import pytest

BENCH = Path(__file__).parents[2] / "bench"
sys.path.insert(0, str(BENCH))

import gpu  # noqa: E402
import gpu_cases  # noqa: E402
import gpu_device  # noqa: E402
import gpu_lookup  # noqa: E402
import gpu_payload  # noqa: E402
import gpu_peers  # noqa: E402
import gpu_report  # noqa: E402
import gpu_timing  # noqa: E402
import gpu_unpack  # noqa: E402
import production  # noqa: E402

from graphopt.errors import ArtifactError, OutputError  # noqa: E402
from graphopt.ir import onnx_io  # noqa: E402
from graphopt.targets.cuda import nvcc  # noqa: E402
from graphopt.testing import parse, random_inputs, run_onnxruntime  # noqa: E402

MODEL = """(int64[N,2] ids, float[N,3] dense) => (float[N,1] y) <float[50,4] table, float[11,1] w> {
    rows = Gather(table, ids)
    shape = Constant<value_ints=[-1,8]>()
    flat = Reshape(rows, shape)
    x = Concat<axis=1>(flat, dense)
    sums = MatMul(x, w)
    y = Sigmoid(sums)
}"""


@pytest.fixture(scope="module")
def emulation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("emulation")


@pytest.fixture(scope="module")
def cases(emulation: Path) -> Path:
    """A case, compiled for emulation, with stored inputs of batch 2, drawn ones of 5, up to 10."""
    folder = emulation / "models" / "tiny"
    folder.mkdir(parents=True)
    graph = parse(MODEL)
    onnx_io.save(graph, folder / "model.onnx")
    feeds = random_inputs(graph, {"N": 2})
    np.savez(folder / "inputs_b2.npz", **feeds)
    np.savez(folder / "expected_b2.npz", **run_onnxruntime(graph, feeds))
    with gpu_emulator.compiled_for_emulation(emulation):
        gpu_cases.make_case(folder, emulation / "cases" / "tiny", "", ["fp32"], [5], 10)
    return emulation / "cases"


def test_a_case_has_inputs_outputs_and_costs(cases: Path) -> None:
    case = cases / "tiny"
    assert gpu_timing.batches_of(case) == [2, 5]
    described = json.loads((case / "case.json").read_text())
    assert described["left_out"] == {}
    # The product counts 11 * 2; what else is computed of a sample is one sigmoid.
    assert described["costs"]["5"]["flops"] >= 5 * 22
    ends = 5 * (2 * 8 + 3 * 4 + 4)
    assert ends + 11 * 4 < described["costs"]["5"]["bytes"] <= ends + 11 * 4 + 50 * 16


def test_production_shapes_can_be_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvcc, "find", lambda: Path("nvcc"))
    monkeypatch.setattr(nvcc, "fatbin", lambda source, architectures: (b"code", {}))
    text = MODEL.replace("[50,4]", "[9999,4]")
    monkeypatch.setattr(production, "MODELS", {"small": (lambda: parse(text), 8)})
    case = tmp_path / "small"
    gpu_cases.make_production_case("small", case, "sm_80", ["fp32"], [2, 64])
    assert json.loads((case / "case.json").read_text())["most"] == 256
    assert gpu_timing.batches_of(case) == [2, 8]  # 64 is 8 times the latter
    graph = onnx_io.load(case / "fp32.gopt" / "model.onnx")
    (table,) = (v.const for v in graph.constants() if v.const is not None and v.const.size > 9999)
    period = gpu_cases.PERIOD
    np.testing.assert_array_equal(table[period:], table[:-period])
    assert not np.array_equal(table[period:], table[period - 1 : -1])


def test_a_payload_runs_with_python_and_numpy_only(cases: Path, tmp_path: Path) -> None:
    payload, packages = tmp_path / "bench.pyz", tmp_path / "packages"
    assert gpu_payload.pack(cases, payload) == payload.stat().st_size < gpu_payload.MOST
    packages.mkdir()
    numpy = Path(np.__file__).parent
    for name in ("numpy", "numpy.libs"):
        if (numpy.parent / name).exists():
            (packages / name).symlink_to(numpy.parent / name)
    libraries = gpu_emulator.stand_ins(cases.parent)
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(packages),
        "LD_PRELOAD": ":".join(map(str, libraries)),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-S", str(payload), "--batches", "2,10,20", "--seconds", "0"]
    command += ["--peers", "torch,onnxruntime", "--profile", "2", "--json", "found.json"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "torch: not installed" in done.stdout
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["device"]["name"] == "emulator"
    rows = {
        row["batch"]: row["engines"]["graphopt fp32"] for row in found["models"]["tiny"]["rows"]
    }
    assert set(rows) == {2, 5, 10} and max(row["error"] for row in rows.values()) <= 1
    late = [sys.executable, "-S", str(payload), "--limit", "0", "--json", "late.json"]
    done = subprocess.run(late, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 1 and "tiny: there was no time left" in done.stdout
    assert json.loads((tmp_path / "late.json").read_text())["models"]["tiny"]["failure"]


def test_files_that_are_the_same_are_packed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_payload, "_runtime", lambda *_: [])
    folder, noise = tmp_path / "cases" / "one", np.random.default_rng(0).bytes(100_000)
    folder.mkdir(parents=True)
    for name in ("a.bin", "b.bin"):
        (folder / name).write_bytes(noise)
    assert gpu_payload.pack(tmp_path / "cases", tmp_path / "bench.pyz") < 110_000
    gpu_unpack.unpack(tmp_path / "bench.pyz", tmp_path / "there")
    for name in ("a.bin", "b.bin"):
        assert (tmp_path / "there/cases/one" / name).read_bytes() == noise


def test_lookups_fill_their_tables_where_they_run(
    emulation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_payload, "_runtime", lambda *_: [])
    monkeypatch.setattr(gpu_lookup, "TABLES", 3)
    with gpu_emulator.compiled_for_emulation(emulation):
        gpu_lookup.make_case(tmp_path / "cases" / gpu_lookup.NAME, "", rows=70_000, dim=8)
    assert gpu_payload.pack(tmp_path / "cases", tmp_path / "bench.pyz") < 1 << 20
    gpu_unpack.unpack(tmp_path / "bench.pyz", tmp_path / "there")
    path = tmp_path / "there/cases" / gpu_lookup.NAME / "fp32.gopt"
    tables = gpu_lookup._filled(path)
    assert [table.shape for table in tables] == [(70_000, 8)] * 3
    ids = np.random.default_rng(0).integers(0, 70_000, (3, 5))
    wanted = np.concatenate([table[row] for table, row in zip(tables, ids)], axis=1)
    feeds = {f"ids{k}": row for k, row in enumerate(ids)}
    (found,) = gpu_emulator.run(path, [feeds], emulation)
    np.testing.assert_array_equal(found["y"], wanted)
    row = {"right": True, "device": 100.0, "bytes": 2 * 10**8}
    measured = {"tables": 26, "rows": 10**6, "dim": 128, "batches": {8192: row}}
    (line,) = gpu_lookup.lines(measured, 4e12)
    assert line.endswith("1,000,000 x 128, batch 8192: right, 100.0 us, 2000 GB/s, 50% of a copy")


def test_a_payload_that_is_too_large_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_payload, "_runtime", lambda *_: [])
    monkeypatch.setattr(gpu_payload, "MOST", 1000)
    (tmp_path / "cases").mkdir()
    (tmp_path / "cases" / "noise").write_bytes(np.random.default_rng(0).bytes(2000))
    with pytest.raises(OutputError, match="take fewer models"):
        gpu_payload.pack(tmp_path / "cases", tmp_path / "bench.pyz")
    assert not (tmp_path / "bench.pyz").exists()


def test_without_a_gpu_there_is_one_clear_line(
    cases: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise ArtifactError("this machine has no NVIDIA driver")

    monkeypatch.setattr(gpu_device, "describe", missing)
    models = cases.parent / "models"
    with pytest.raises(SystemExit, match=r"no NVIDIA driver; .* --payload FILE"):
        gpu.main([models])
    with pytest.raises(SystemExit, match=r"nothing: no model\.onnx there"):
        gpu.main([cases.parent / "nothing"])
    assert gpu.models_in([models, models / "tiny"]) == [models / "tiny"]


# ------------------------------------------------------------------- checking, peers


@pytest.mark.parametrize(
    ("found", "fp32", "tf32"),
    [(1.0, 0, 0), (1.00005, 0.45, 0.0023), (1.01, 91, 0.45), (np.nan, np.inf, np.inf)],
)
def test_errors_are_shares_of_what_is_allowed(found: float, fp32: float, tf32: float) -> None:
    arrays = [{"y": np.array([0.5, x], np.float32)} for x in (found, 1.0)]
    for precision, wanted in (("fp32", fp32), ("tf32", tf32)):
        assert gpu_timing.worst_error(*arrays, precision) == pytest.approx(wanted, rel=0.1)


def test_only_rows_that_are_expected_are_compared() -> None:
    found = {"y": np.array([[1.0], [2.0], [3.0]])}
    assert gpu_timing.worst_error(found, {"y": np.array([[1.0], [2.0]])}, "fp32") == 0
    assert gpu_timing.worst_error(found, {"y": np.ones((4, 1))}, "fp32") == np.inf


def test_onnx_runtime_is_checked_and_timed(cases: Path) -> None:
    times = gpu_peers._session_times(cases / "tiny", 5, "fp32", 0.0, device="cpu")
    assert times["error"] <= 1 and times["call"] > 0 and times["end_to_end"] > 0


def test_torch_is_checked_and_timed(cases: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    import gpu_torch

    monkeypatch.setattr(torch, "compile", lambda module, **_: module)  # half a minute
    wanted = {"cases": [str(cases / "tiny")], "batches": [2, 5, 9], "deadline": 2**31}
    jobs = gpu_torch.prepared(wanted)
    keys = [job.key for job in jobs]
    assert keys == [["tiny", b, f"torch {p}"] for p in ("tf32", "fp32") for b in (5, 2)]
    for job in jobs:
        times = gpu_torch.times(job, 0.0)
        assert times["error"] <= 1 and times["call"] > 0
    late = gpu_torch.prepared(wanted | {"deadline": 0})
    assert {job.failure for job in late} == {"not compiled in time"}


# ------------------------------------------------------------------- tables


def found_of(**models: Any) -> dict[str, Any]:
    device = {"name": "Some GPU", "capability": "9.0"}
    limits = {"bytes_per_s": 3e12, "tf32_flop_per_s": 4e14}
    return {"device": device, "ceilings": limits, "models": models}


def row_of(batch: int, ours: float, theirs: float) -> dict[str, Any]:
    engines = {
        "graphopt tf32": {"error": 0.1, "device": ours, "call": ours, "end_to_end": ours},
        "torch tf32": {"error": 0.1, "device": theirs, "call": theirs, "end_to_end": theirs},
    }
    return {"batch": batch, "engines": engines, "flops": 10**6, "bytes": 3 * 10**6}


def test_tables_give_ratios_and_what_was_achieved() -> None:
    found = found_of(
        a={"rows": [row_of(1, 10.0, 40.0), row_of(512, 10.0, 10.0)]},
        b={"rows": [row_of(1, 10.0, 10.0)]},
        c={"failure": "no luck"},
    )
    assert gpu_report.heading(found) == (
        "Some GPU (compute capability 9.0): copies at 3000 GB/s, tf32 products at 400 TFLOP/s"
    )
    assert "300 GB/s  0.10 TFLOP/s" in gpu_report.lines("a", found["models"]["a"])
    assert gpu_report.lines("c", found["models"]["c"]) == "c: no luck"
    text = gpu_report.comparison(found)
    assert (
        "torch tf32 over graphopt tf32, device, batch 1: 2.00 over 2 models, smallest 1.00 (b)"
        in text
    )
    assert "device, batch 512: 1.00 over 1 models" in text


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    assert gpu_report.comparison(found_of()) == "not measured"
    missing = gpu_report.markdown(tmp_path / "none.json")
    assert missing == "Speed on a GPU: not measured."


def test_tables_for_the_readme(tmp_path: Path) -> None:
    found = found_of(
        a={"rows": [row_of(1, 10.0, 40.0), row_of(512, 10.0, 10.0)]},
        b={"rows": [row_of(1, 123.4, 123.4)]},
    )
    found |= {"versions": {"torch": "2.11"}, "date": "2026-01-02"}
    row = {"right": True, "device": 100.0, "bytes": 2 * 10**8}
    shape = {"tables": 26, "rows": 10**6, "dim": 128}
    found["lookups"] = {**shape, "batches": {"8192": row}}
    (tmp_path / "gpu.json").write_text(json.dumps(found))
    parts = gpu_report.markdown(tmp_path / "gpu.json").split("\n\n")
    head, lookups, answers, meaning, means, table = parts
    assert head.startswith("Some GPU") and head.endswith("; 2026-01-02, torch 2.11.")
    assert lookups.endswith("as a share of a copy's speed: 67% at batch 8192.")
    assert answers.startswith("Answers of 2 models are within")
    assert meaning.startswith("`device` is time on")
    assert means.splitlines() == [
        "| torch tf32 over graphopt tf32, mean (models) | batch 1 | batch 512 |",
        "|---|---:|---:|",
        "| `device` | 2.00 (2) | 1.00 (1) |",
        "| `call` | 2.00 (2) | 1.00 (1) |",
        "| `end_to_end` | 2.00 (2) | 1.00 (1) |",
    ]
    assert table.splitlines()[2:] == [
        "| a | 10 / 10 (4.00) | 10 / 10 (1.00) |",
        "| b | 123 / 123 (1.00) | not measured |",
    ]
    found["models"]["a"]["rows"][0]["engines"]["graphopt tf32"]["error"] = 1.5
    (tmp_path / "gpu.json").write_text(json.dumps(found))
    assert "; a at batch 1: graphopt tf32 is off by 1.50 times that" in gpu_report.markdown(
        tmp_path / "gpu.json"
    )
