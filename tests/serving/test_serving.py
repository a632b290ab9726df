"""What a serving process needs: the runtime, no compiler; and what it shares with others."""

from __future__ import annotations

import gc
import importlib.util
import json
import mmap
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import graphopt
from graphopt.serving import small_pages
from graphopt.serving.artifact import Artifact
from graphopt.testing import parse

ROOT = Path(__file__).parents[2]
BIG = """g (int64[N] ids, float[N,8] x) => (float[N,8] y) <float[8,8] w> {
    rows = Gather(table, ids)
    h = MatMul(x, w)
    y = Add(rows, h)
}"""

SERVE = """
import sys
sys.path.insert(0, {site!r})
import graphopt
import numpy as np
artifact = graphopt.load({artifact!r})
found = artifact.run({{"ids": np.arange(3), "x": np.ones((3, 8), np.float32)}})["y"]
loaded = {{name.partition(".")[0] for name in sys.modules}}
print(float(found.sum()), sorted(loaded & set({unwanted!r})))
"""
UNWANTED = [
    "torch",
    "tvm",
    "onnx",
    "onnxruntime",
    "onnx_graphsurgeon",
    "scipy",
    "typer",
    "rich",
    "psutil",
]


@pytest.fixture(scope="module")
def table() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(500_000, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def artifact(table: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    graph = parse(BIG.replace("> {", ", float[500000,8] table> {", 1))
    (old,) = [value for value in graph.constants() if value.name == "table"]
    graph.replace_uses(old, graph.constant(table, "table"))
    output = tmp_path_factory.mktemp("serving") / "big.gopt"
    return graphopt.compile(graph, output=output, verify=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `pip install --no-deps graphopt numpy apache-tvm apache-tvm-ffi` leaves to import."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "graphopt").symlink_to(ROOT / "graphopt")
    for name in ("numpy", "tvm_ffi", "typing_extensions"):
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.origin is not None
        origin = Path(spec.origin)
        package = origin.parent if origin.name == "__init__.py" else origin
        (folder / package.name).symlink_to(package)
    (folder / "torch.py").touch()  # tvm_ffi would import it
    spec = importlib.util.find_spec("tvm")
    assert spec is not None and spec.submodule_search_locations
    source = Path(spec.submodule_search_locations[0]) / "lib"
    (folder / "tvm" / "lib").mkdir(parents=True)
    for library in source.glob("libtvm_runtime*"):
        (folder / "tvm" / "lib" / library.name).symlink_to(library)
    return folder


def test_the_runtime_alone_is_enough(artifact: Artifact, site: Path) -> None:
    """So the first answer comes soon."""
    given = {"ids": np.arange(3), "x": np.ones((3, 8), np.float32)}
    code = SERVE.format(site=str(site), artifact=str(artifact.path), unwanted=UNWANTED)
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True
    )
    total, loaded = done.stdout.strip().split(" ", 1)
    assert loaded == "[]"
    assert float(total) == pytest.approx(float(artifact.run(given)["y"].sum()), rel=1e-6)


def test_several_artifacts_in_one_process(artifact: Artifact, tmp_path: Path) -> None:
    text = "g (float[N,8] x) => (float[N,8] y) <float[8,8] w> { y = MatMul(x, w) }"
    others = [
        graphopt.compile(parse(text), output=tmp_path / f"{k}.gopt", verify=False) for k in range(2)
    ]
    x = np.ones((4, 8), np.float32)
    before = artifact.run({"ids": np.arange(4), "x": x})["y"]
    first, second = (other.run({"x": x})["y"] for other in others)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(artifact.run({"ids": np.arange(4), "x": x})["y"], before)


HOLD = """
import sys
import numpy as np
import graphopt
artifact = graphopt.load({artifact!r}, large_pages={large_pages})
ids = np.arange(0, 500_000, {step})
artifact.run({{"ids": ids, "x": np.ones((len(ids), 8), np.float32)}})
print("ready", flush=True)
sys.stdin.read()
"""


def held(artifact: Artifact, processes: int, step: int = 1, large_pages: bool = True) -> list[dict]:
    """`memory` of processes that have looked up each `step`-th row, while all of them run."""
    code = HOLD.format(artifact=str(artifact.path), large_pages=large_pages, step=step)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    command = [sys.executable, "-c", code]
    started = [subprocess.Popen(command, **pipes, text=True) for _ in range(processes)]
    try:
        for process in started:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        return [memory(process) for process in started]
    finally:
        for process in started:
            process.communicate()


def memory(process: subprocess.Popen[str]) -> dict[str, int]:
    """KiB of the mapping of weights.bin by kind."""
    found: dict[str, int] = {}
    inside = False
    for line in Path(f"/proc/{process.pid}/smaps").read_text().splitlines():
        name, _, rest = line.partition(":")
        if "-" in name.split(" ")[0]:
            inside = line.endswith("weights.bin")
        elif inside and rest.strip().endswith("kB"):
            found[name] = found.get(name, 0) + int(rest.split()[0])
    return found


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux only: reads /proc")
def test_processes_share_the_weights(artifact: Artifact) -> None:
    found = held(artifact, processes=2)
    print(json.dumps(found))
    for kinds in found:
        assert kinds["Rss"] >= 15_000  # the table: all of it was read
        assert kinds["Private_Dirty"] == 0
        assert kinds["Pss"] <= 0.6 * kinds["Rss"]


@pytest.fixture(scope="module")
def single_pages(artifact: Artifact) -> None:
    """Skips where Linux does not map pages one by one, and says why."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        graphopt.load(artifact.path, large_pages=False)
    if caught:
        pytest.skip(str(caught[0].message))


@pytest.mark.usefixtures("single_pages")
def test_only_rows_that_are_read_become_resident(artifact: Artifact) -> None:
    step = 10_000  # 50 rows of 32 bytes, each on a page of its own
    (found,) = held(artifact, processes=1, step=step, large_pages=False)
    pages = 500_000 // step + 2  # the weights of the layer, and the start of the file
    assert found["Rss"] <= pages * mmap.PAGESIZE >> 10
    assert found["Anonymous"] == 0  # no copies


def test_pages_cannot_be_mapped_singly_everywhere(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"ids": np.arange(3), "x": np.ones((3, 8), np.float32)}
    expected = artifact.run(given)["y"]
    monkeypatch.setattr(small_pages, "_SYSCALL", {})
    with pytest.warns(RuntimeWarning, match="will count as resident: userfaultfd is not known"):
        loaded = graphopt.load(artifact.path, large_pages=False)
    np.testing.assert_array_equal(loaded.run(given)["y"], expected)


@pytest.mark.usefixtures("single_pages")
def test_what_watches_pages_is_closed(artifact: Artifact) -> None:
    def watches() -> int:
        gc.collect()  # what other tests left
        links = [path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
        return sum("userfaultfd" in str(link) for link in links)

    before = watches()
    kept = [graphopt.load(artifact.path, large_pages=False) for _ in range(3)]
    assert watches() == before + len(kept)
    kept.clear()
    assert watches() == before


def test_a_model_compiled_again_under_its_name(tmp_path: Path) -> None:
    x = np.ones((2, 8), np.float32)
    found = []
    for op in ("Neg", "Relu", "Exp"):
        text = f"g (float[N,8] x) => (float[N,8] y) {{ y = {op}(x) }}"
        output = tmp_path / "same.gopt"
        found.append(graphopt.compile(parse(text), output=output, verify=False))
    values = [float(artifact.run({"x": x})["y"][0, 0]) for artifact in found]
    assert values == pytest.approx([-1, 1, np.e])
