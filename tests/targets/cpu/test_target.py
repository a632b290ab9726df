"""Finding and describing the CPU target."""

from __future__ import annotations

import platform
from dataclasses import replace

import pytest

from graphopt.artifact import host_features
from graphopt.errors import SpecError
from graphopt.targets.base import find
from graphopt.targets.cpu.target import CpuTarget


def test_the_default_is_this_machine() -> None:
    target = find("cpu")
    assert isinstance(target, CpuTarget)
    assert set(target.features) <= host_features() or not host_features()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names x86 CPUs")
@pytest.mark.parametrize(
    ("name", "lanes"), [("x86-64", 4), ("x86-64-v3", 8), ("skylake-avx512", 16)]
)
def test_vector_width_follows_the_cpu(name: str, lanes: int) -> None:
    target = find(f"cpu:{name}")
    assert isinstance(target, CpuTarget)
    assert target.lanes == lanes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cpu:pentium9", "knows no .* CPU called 'pentium9'"),
        ("cqu", "did you mean 'cpu'"),
        ("tpu9000x", "there are: cpu, cuda, onnxruntime, reference"),
        ("onnxruntime:x", "takes no argument"),
        ("reference:x", "takes no argument"),
    ],
)
def test_refused(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        find(text)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names x86 CPUs")
def test_bfloat16_where_there_is_an_instruction_for_it() -> None:
    assert find("cpu:cooperlake").computing("bf16") == CpuTarget("cooperlake", precision="bf16")
    large = CpuTarget("sapphirerapids", precision="bf16", tiles=True)
    assert find("cpu:sapphirerapids").computing("bf16") in (large, replace(large, tiles=False))
    assert {"amx_tile", "amx_bf16", "amx_int8"} <= set(large.features)
    assert not any("amx" in name for name in CpuTarget("sapphirerapids").features)
    with pytest.raises(SpecError, match="x86-64-v3 has no instruction that multiplies bfloat16"):
        find("cpu:x86-64-v3").computing("bf16")
    with pytest.raises(SpecError, match="onnxruntime has no kernels for --precision bf16"):
        find("onnxruntime").computing("bf16")
