"""Finding and describing the CPU target."""

from __future__ import annotations

import platform

import pytest

from graphopt.errors import SpecError
from graphopt.machine import host_features
from graphopt.targets.base import find
from graphopt.targets.cpu import target as module
from graphopt.targets.cpu.target import CpuTarget

HALVES = "+avx512bf16,+avx512fp16"


def test_the_default_is_this_machine() -> None:
    target = find("cpu")
    assert isinstance(target, CpuTarget)
    assert set(target.features) <= host_features() or not host_features()
    assert find(f"cpu:{target.label}") == target


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names x86 CPUs")
@pytest.mark.parametrize(
    ("called", "has", "allowed", "label"),
    [
        ("rocketlake", "all", True, f"rocketlake,{HALVES},+amx-tile,+amx-bf16,+amx-int8"),
        ("rocketlake", "all", False, f"rocketlake,{HALVES}"),
        ("sapphirerapids", "all", True, "sapphirerapids"),
        ("sapphirerapids", "all", False, "sapphirerapids,-amx-tile,-amx-bf16,-amx-int8"),
        ("x86-64-v3", "avx2 fma", True, "x86-64-v3,-f16c"),
        ("znver4", "", True, "znver4"),
    ],
)  # fmt: skip
def test_instruction_sets_are_those_that_linux_reports(
    called: str, has: str, allowed: bool, label: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the model number is that a hypervisor shows."""
    every = set(CpuTarget("sapphirerapids", "x86_64", tiles=True).features)
    reported = every if has == "all" else set(has.split())
    monkeypatch.setattr(module.codegen, "llvm_get_system_cpu", lambda: called)
    monkeypatch.setattr(module, "host_features", lambda: set(reported))
    monkeypatch.setattr(module, "tiles_allowed", lambda: allowed)
    target = CpuTarget.parse("")
    assert target.label == label
    tiles = {name for name in reported if name.startswith("amx")}
    if reported:
        assert set(target.features) == reported - tiles
        assert set(target.with_tiles.features) == (reported if allowed else reported - tiles)


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
        (
            "cpu:znver4,avx2",
            "'avx2' is no instruction set with a . or - before it; there are: avx2,",
        ),
        ("cpu:znver4,+mmx", "'.mmx' is no instruction set"),
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
    assert find("cpu:sapphirerapids").computing("bf16") == large
    assert {"amx_tile", "amx_bf16", "amx_int8"} <= set(large.features)
    assert not any("amx" in name for name in CpuTarget("sapphirerapids").features)
    with pytest.raises(SpecError, match="x86-64-v3 has no instruction that multiplies bfloat16"):
        find("cpu:x86-64-v3").computing("bf16")
    with pytest.raises(SpecError, match="onnxruntime has no kernels for --precision bf16"):
        find("onnxruntime").computing("bf16")


@pytest.mark.parametrize(("exact", "levels"), [(True, 255), (False, 127)])
def test_rows_have_levels_that_onnxruntime_verifies(
    monkeypatch: pytest.MonkeyPatch, exact: bool, levels: int
) -> None:
    """Here, and on the CPU that a portable model is likely to run on."""
    monkeypatch.setattr("graphopt.targets.base.sums_bytes_exactly", lambda: exact)
    assert CpuTarget.parse("icelake-server").row_levels == levels
    assert CpuTarget.parse("haswell").row_levels == 127
    assert CpuTarget.parse("skylake-avx512").row_levels == 0
