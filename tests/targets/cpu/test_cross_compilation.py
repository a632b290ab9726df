"""Code for other CPUs: it is made, it says where it runs, and AArch64 code is executed in QEMU."""

from __future__ import annotations

import platform
import shutil
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import graphopt
from graphopt.analysis.batch_sizes import batch_sizes
from graphopt.errors import ArtifactError, OutputError
from graphopt.machine import host_features
from graphopt.serving import manifest
from graphopt.serving.artifact import Artifact
from graphopt.serving.manifest import WEIGHTS
from graphopt.serving.signature import TensorSpec
from graphopt.targets.base import Precision, find
from graphopt.targets.cpu.target import CpuTarget
from graphopt.targets.portable import OnnxModel
from graphopt.targets.relax import linking
from graphopt.testing import parse, random_inputs

HERE = Path(__file__).parent
GCC = shutil.which("aarch64-linux-gnu-gcc")
QEMU = shutil.which("qemu-aarch64")
LAYER = "g (float[N,5] x) => (float[N,7] y) <float[5,7] w> { y = MatMul(x, w) }"
ON_X86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="compiles on x86 for AArch64")
CROSS = pytest.mark.skipif(GCC is None, reason="no linker: install gcc-aarch64-linux-gnu")
EXECUTES = pytest.mark.skipif(QEMU is None, reason="no emulator: install qemu-user")


def test_a_cpu_of_another_architecture() -> None:
    target = find("cpu:neoverse-v1")
    assert isinstance(target, CpuTarget)
    assert (target.machine, target.lanes) == ("aarch64", 4)
    assert {"asimd", "sve"} <= set(target.features)


@ON_X86
@CROSS
def test_an_artifact_for_another_machine_is_made_and_not_run(tmp_path: Path) -> None:
    path = tmp_path / "arm.gopt"
    artifact = graphopt.compile(parse(LAYER), "cpu:neoverse-v1", output=path)
    assert "portable" in str(artifact.report["verification"]) or artifact.report["verification"]
    for refused in (
        lambda: artifact.run({"x": np.ones((1, 5), np.float32)}),
        lambda: Artifact.load(path),
    ):
        with pytest.raises(ArtifactError, match="compiled for aarch64, this machine is x86_64"):
            refused()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names an x86 CPU")
def test_an_artifact_for_a_newer_cpu(tmp_path: Path) -> None:
    target = find("cpu:sapphirerapids")
    assert isinstance(target, CpuTarget)
    if set(target.features) <= set(find("cpu").features):  # type: ignore[attr-defined]
        pytest.skip("this CPU has all that a Sapphire Rapids has")
    artifact = graphopt.compile(parse(LAYER), "cpu:sapphirerapids", output=tmp_path / "new.gopt")
    with pytest.raises(ArtifactError, match="needs CPU features that this machine lacks"):
        artifact.run({"x": np.ones((1, 5), np.float32)})


WIDE = """(float[N,64] x) => (float[N,96] y) <float[64,96] w> { y = MatMul(x, w) }"""
BYTES = """(float[N,64] x) => (float[N,96] y) <int8[64,96] c, float[96] s> {
    y = graphopt.DynamicMatMul(x, c, s)
}"""


@ON_X86
@pytest.mark.parametrize("mcpu", ["sapphirerapids", "graniterapids"])
@pytest.mark.parametrize(
    ("text", "precision", "instruction"),
    [(WIDE, "bf16", "tdpbf16ps"), (BYTES, "fp32", "tdpbusd")],
    ids=["bf16", "int8"],
)
def test_an_artifact_that_needs_amx(
    text: str, precision: Any, instruction: str, mcpu: str, tmp_path: Path
) -> None:
    if "amx_tile" in host_features():
        pytest.skip("this CPU has AMX")
    artifact = graphopt.compile(
        parse(text), f"cpu:{mcpu}", output=tmp_path / "amx.gopt", precision=precision
    )
    assert {"amx_tile", "amx_bf16", "amx_int8"} <= set(artifact.manifest["cpu_features"])
    assert artifact.manifest["target"] == f"cpu:{mcpu}"
    code = subprocess.run(
        ["objdump", "-d", artifact.path / "model.so"], capture_output=True, text=True, check=True
    ).stdout
    assert instruction in code
    with pytest.raises(ArtifactError, match=r"lacks .*amx_bf16, amx_int8, amx_tile") as refusal:
        Artifact.load(artifact.path)
    assert "\n" not in str(refusal.value)


@ON_X86
def test_an_artifact_of_floats_needs_no_amx(tmp_path: Path) -> None:
    artifact = graphopt.compile(parse(WIDE), "cpu:sapphirerapids", output=tmp_path / "amx.gopt")
    assert not any("amx" in name for name in artifact.manifest["cpu_features"])


@ON_X86
def test_tiles_that_the_system_does_not_allow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = graphopt.compile(parse(BYTES), "cpu:sapphirerapids", output=tmp_path / "amx.gopt")
    needed = set(artifact.manifest["cpu_features"])
    monkeypatch.setattr(manifest, "host_features", lambda: needed)
    monkeypatch.setattr(manifest, "tiles_allowed", lambda: False)
    with pytest.raises(ArtifactError, match="needs AMX, and the system does not let"):
        Artifact.load(artifact.path)


@ON_X86
def test_what_to_install_for_linking(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(linking.shutil, "which", lambda name: None)
    monkeypatch.setattr(linking.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(OutputError, match=r"gcc-aarch64-linux-gnu \(Debian, Ubuntu\).*ziglang"):
        graphopt.compile(parse(LAYER), "cpu:neoverse-v1", output=tmp_path / "arm.gopt")


# --------------------------------------------------------------------- execution


def written(array: np.ndarray, with_data: bool = True) -> bytes:
    code = {"i": 0, "u": 1, "f": 2, "b": 6}[array.dtype.kind]
    head = [code, 8 * array.itemsize, array.ndim, *array.shape]
    return struct.pack(f"{len(head)}q", *head) + (array.tobytes() if with_data else b"")


def weights_of(artifact: Artifact) -> list[np.ndarray]:
    data = (artifact.path / WEIGHTS).read_bytes()
    return [
        np.frombuffer(data[e["offset"] : e["offset"] + e["nbytes"]], e["dtype"]).reshape(e["shape"])
        for e in artifact.manifest["weights"]
    ]


def emulated(
    program: Path, artifact: Artifact, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """What the artifact computes in QEMU; `outputs` give dtypes and shapes."""
    weights = weights_of(artifact)
    sizes = [inputs[k].shape[axis] for k, axis in artifact.manifest["sizes"]]
    counts = [len(sizes), len(weights), len(inputs), len(outputs), *sizes]
    content = struct.pack(f"{len(counts)}q", *counts)
    content += b"".join(map(written, (*weights, *inputs)))
    content += b"".join(written(array, with_data=False) for array in outputs)
    call = program.with_suffix(".call")
    call.write_bytes(content)
    command = [str(QEMU), "-L", "/usr/aarch64-linux-gnu", str(program), str(call)]
    done = subprocess.run(command, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    found, start = [], 0
    for array in outputs:
        piece = np.frombuffer(done.stdout, array.dtype, array.size, start)
        found.append(piece.reshape(array.shape))
        start += array.nbytes
    return found


def linked(artifact: Artifact, folder: Path) -> Path:
    program = folder / "run"
    library = artifact.path / "model.so"
    source = HERE / "run_artifact.c"
    options = ["-O1", "-rdynamic", f"-Wl,-rpath,{artifact.path}"]
    subprocess.run([str(GCC), *options, source, library, "-lm", "-o", program], check=True)
    return program


@ON_X86
@CROSS
@EXECUTES
@pytest.mark.parametrize(
    ("mcpu", "precision", "error"),
    # Sums of about a hundred float32 terms in another order; operands with 8 significant bits.
    [("neoverse-n1", "fp32", 1e-4), ("neoverse-v1", "fp32", 1e-4), ("neoverse-v1", "bf16", 0.05)],
)
def test_a_model_on_aarch64(
    mcpu: str, precision: Precision, error: float, example: Path, tmp_path: Path
) -> None:
    output = tmp_path / "arm.gopt"
    artifact = graphopt.compile(example, f"cpu:{mcpu}", output=output, precision=precision)
    program = linked(artifact, tmp_path)
    graph = graphopt.load(example)
    for batch in (1, 7, 64, 0):
        feeds = random_inputs(graph, batch_sizes(graph, batch), seed=batch)  # type: ignore[arg-type]
        expected = OnnxModel(example).run(feeds)
        names: Sequence[TensorSpec] = artifact.signature.inputs
        found = emulated(
            program, artifact, [feeds[spec.name] for spec in names], list(expected.values())
        )
        for array, wanted in zip(found, expected.values()):
            np.testing.assert_allclose(array, wanted, rtol=error, atol=error / 10)
