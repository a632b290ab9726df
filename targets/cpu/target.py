"""Compiles for a CPU: this one by default, or any that LLVM knows."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import tvm
from tvm.target import codegen

from graphopt.analysis.program import describe
from graphopt.errors import SpecError
from graphopt.ir.graph import Graph
from graphopt.machine import cpu_name, host_features, tiles_allowed
from graphopt.targets.base import Compiled, Oob, Precision, Target
from graphopt.targets.tuning.options import Tuning
from graphopt.targets.tuning.tuner import Summary, Tuner

if TYPE_CHECKING:
    from graphopt.targets.relax import build

# LLVM's names of the instruction sets that our code may use, and Linux's names of the same.
_FEATURES = {
    "avx2": "avx2",
    "fma": "fma",
    "f16c": "f16c",
    "avx512f": "avx512f",
    "avx512bw": "avx512bw",
    "avx512dq": "avx512dq",
    "avx512vl": "avx512vl",
    "avx512vbmi": "avx512vbmi",
    "avx512vnni": "avx512_vnni",
    "avx512bf16": "avx512_bf16",
    "avx512fp16": "avx512_fp16",
    "neon": "asimd",
    "dotprod": "asimddp",
    "fullfp16": "asimdhp",
    "i8mm": "i8mm",
    "bf16": "bf16",
    "sve": "sve",
    "sve2": "sve2",
}
_TILES = {"amx-tile": "amx_tile", "amx-bf16": "amx_bf16", "amx-int8": "amx_int8"}
_MACHINES = ("x86_64", "aarch64")


@dataclass(frozen=True)
class CpuTarget(Target):
    """One CPU model.

    Attributes:
        mcpu: LLVM's name of it, such as "sapphirerapids", "x86-64-v3" or "neoverse-v1".
        machine: its architecture, as Linux names it.
        differences: LLVM's names of instruction sets that it has beyond its name, or lacks, such as
            "+avx512bf16" and "-amx-tile".
        precision: what dense layers multiply.
        tiles: whether they may use AMX, which code has to ask the system for.
    """

    mcpu: str
    machine: str = platform.machine()
    differences: tuple[str, ...] = ()
    precision: Precision = "fp32"
    tiles: bool = False

    name: ClassVar[str] = "cpu"
    portable: ClassVar[bool] = False
    own_passes: ClassVar[str] = (
        "join-windows,tabulate-codes,"
        "fixpoint(cancel-transposes,simplify-reshapes,simplify-slices,cse,dce)"
    )

    @classmethod
    def parse(cls, argument: str) -> CpuTarget:
        if not argument:
            return cls._host()
        mcpu, *differences = argument.split(",")
        for difference in differences:
            if difference[:1] not in ("+", "-") or difference[1:] not in {**_FEATURES, **_TILES}:
                raise SpecError(
                    f"{difference!r} is no instruction set with a + or - before it; "
                    f"there are: {', '.join({**_FEATURES, **_TILES})}"
                )
        for machine in dict.fromkeys((platform.machine(), *_MACHINES)):
            known = codegen.llvm_get_cpu_archlist(_llvm(machine))
            if mcpu in {str(name) for name in known}:
                return cls(mcpu, machine, tuple(differences))
        raise SpecError(
            f"LLVM knows no {' or '.join(_MACHINES)} CPU called {mcpu!r}; "
            "try x86-64-v3, skylake-avx512, sapphirerapids or neoverse-v1"
        )

    @classmethod
    def _host(cls) -> CpuTarget:
        """This machine.

        LLVM names a CPU by its model number. Hypervisors make numbers up, and hide instruction
        sets: what Linux says is there counts.
        """
        named = cls(str(codegen.llvm_get_system_cpu()), tiles=True)
        here, promised = host_features(), set(named.features)
        if not here:  # Not known.
            return replace(named, tiles=False)
        if not tiles_allowed():
            here -= set(_TILES.values())
        names = {**_FEATURES, **_TILES}.items()
        differences = [
            f"{'+' if linux in here else '-'}{llvm}"
            for llvm, linux in names
            if (linux in here) != (linux in promised)
        ]
        return replace(named, differences=tuple(differences), tiles=False)

    @property
    def llvm(self) -> tvm.target.Target:
        """TVM's description of it."""
        return _llvm(self.machine, self.mcpu, self.differences)

    @property
    def label(self) -> str:
        """What `parse` makes the same of."""
        return ",".join((self.mcpu, *self.differences))

    @property
    def features(self) -> tuple[str, ...]:
        """The instruction sets that compiled code may use, under Linux's names."""
        found = {str(f) for f in codegen.llvm_get_cpu_features(self.llvm)}
        used = {**_FEATURES, **(_TILES if self.tiles else {})}
        return tuple(linux for llvm, linux in used.items() if llvm in found)

    @property
    def lanes(self) -> int:
        """float32 elements in a vector register."""
        widths = {"avx512f": 16, "avx2": 8}
        return next((lanes for name, lanes in widths.items() if name in self.features), 4)

    @property
    def multiplies_bytes(self) -> bool:
        # Pairs of 16 bits are as fast as floats where these have 16 lanes (two units for both).
        return "avx512_vnni" in self.features or self.lanes == 8

    @property
    def row_levels(self) -> int:
        from graphopt.ops.dynamic_matmul import EXACT_LEVELS

        if not self.multiplies_bytes:
            return 0
        return self.verified_levels if "avx512_vnni" in self.features else EXACT_LEVELS

    @property
    def multiplies_bfloat16(self) -> bool:
        from graphopt.targets.cpu.kernels.bfloat16 import words_for

        return words_for(self.with_tiles.features, self.lanes) is not None

    @property
    def runs_here(self) -> bool:
        host = set(CpuTarget.parse("").with_tiles.features)
        return self.machine == platform.machine() and host.issuperset(self.features)

    @property
    def with_tiles(self) -> CpuTarget:
        """This target using AMX, where it has it."""
        tiled = replace(self, tiles=True)
        return tiled if set(_TILES.values()) <= set(tiled.features) else self

    def computing(self, precision: Precision) -> CpuTarget:
        if precision not in ("fp32", "bf16"):
            super().computing(precision)
        if precision == "bf16" and not {"avx512_bf16", "bf16"} & set(self.features):
            raise SpecError(
                f"{self.mcpu} has no instruction that multiplies bfloat16 (AVX512-BF16, or BF16 of "
                "Armv8.6), so --precision bf16 would gain nothing"
            )
        found = replace(self, precision=precision, tiles=False)
        return found.with_tiles if precision == "bf16" else found

    def legalize(self, graph: Graph) -> Graph:
        from graphopt.rewrite import RewriteStats, rewrite
        from graphopt.targets.cpu import legalize, packed_weights, quantized_dense
        from graphopt.targets.cpu.kernels.amx import amx_for
        from graphopt.targets.cpu.kernels.bfloat16 import words_for
        from graphopt.targets.relax import expand, narrow_floats

        working = graph.clone()
        dynamic = quantized_dense.dynamic_to_dense
        if not self.multiplies_bytes:
            dynamic = quantized_dense.dynamic_to_floats
        rewrite(working, (packed_weights.stored_to_dequantized, dynamic), RewriteStats())
        expand.expand_functions(working)
        narrow_floats.widen_bfloat16(working)
        narrow_floats.widen_float16(working)
        features, every = self.with_tiles.features, self.precision == "bf16"
        words, amx = words_for(features, self.lanes), amx_for(features, "int8")
        permutes = "avx512vbmi" in features
        legalize.legalize(working, self.lanes, self.multiplies_bytes, words, every, amx, permutes)
        return working

    def _using(self, graph: Graph) -> CpuTarget:
        """This target with the instruction sets that a legalized graph needs."""
        tiled = any({"words", "amx"} & node.attrs.keys() for node in graph.walk())
        return self.with_tiles if tiled else self

    def compile(
        self,
        graph: Graph,
        library: Path,
        oob: Oob,
        stage: Callable[[str], Any],
        tuning: Tuning | None = None,
    ) -> Compiled:
        from graphopt.targets.relax import build, lowering

        stage("lower")
        working = self.legalize(graph)
        used = self._using(working)
        tuned: dict[str, dict[str, Any]] = {}
        revise = None
        if tuning is not None:
            stage("tune")
            began = time.monotonic()
            summary = used._tune(working, tuning.of_templates)
            tuned["tuning"] = asdict(summary)
            if tuning.meta_schedule:
                left = tuning.less(time.monotonic() - began, summary.measured)
                revise = used._searching(left, stage, tuned)
            stage("lower")
        lowered = lowering.lower(working, oob)
        stage("build")
        code = lowered.module, used.llvm, self.machine, library
        built = build.build(*code, lowered.emitted, lowered.functions, revise)
        facts = {
            "target": f"cpu:{self.label}",
            "machine": self.machine,
            "cpu_features": list(used.features),
            "precision": self.precision,
            "tvm": tvm.__version__,
            "sizes": built.sizes,
            "shaping": built.shaping,
            "shared": built.shared,
            "late_outputs": built.late,
            "program": describe(working, built.program),
            **tuned,
        }
        arrays = tuple(value.const for value in lowered.constants if value.const is not None)
        numbers = {"kernels": built.kernels, "calls": built.calls}
        return Compiled((*arrays, *built.embedded), facts, numbers)

    def _tune(self, graph: Graph, tuning: Tuning) -> Summary:
        from graphopt.targets.cpu.tuned import choose_params

        if tuning.measures and not self.runs_here:
            raise SpecError(f"code for {self.mcpu} does not run here, so it cannot be tuned here")
        tuner = Tuner(tuning, self.llvm, self._tuned_for)
        choose_params(graph, tuner)
        return tuner.summary

    def _searching(
        self, tuning: Tuning, stage: Callable[[str], Any], facts: dict[str, dict[str, Any]]
    ) -> build.Revise:
        """What searches schedules for kernels without a template, and notes it in `facts`."""
        from graphopt.targets.cpu.searched import search

        def revise(merged: tvm.IRModule, scheduled: tvm.IRModule) -> tvm.IRModule:
            stage("search")
            module, found = search(merged, scheduled, tuning, self.llvm, self._tuned_for)
            facts["search"] = asdict(found)
            stage("build")
            return module

        return revise

    @property
    def _tuned_for(self) -> str:
        """The CPU and its instruction sets, as tuning caches call them."""
        return f"{cpu_name()}; {self.label}: {','.join(self.features)}"


def _llvm(machine: str, mcpu: str = "", differences: Sequence[str] = ()) -> tvm.target.Target:
    description: dict[str, Any] = {"kind": "llvm", "num-cores": 1}
    if mcpu:
        description["mcpu"] = mcpu
    if differences:
        description["mattr"] = list(differences)
    if machine != platform.machine():
        description["mtriple"] = f"{machine}-linux-gnu"
    return tvm.target.Target(description)
