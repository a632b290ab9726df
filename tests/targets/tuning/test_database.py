"""The tuning cache: keys, concurrent writers, sudden death, files that are something else."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from graphopt.errors import OutputError, TuningCacheError
from graphopt.targets.tuning.database import Database, Key, as_text

KEY = Key("gemm", "v1", '{"k":3}', "some cpu", "0.27")


def test_what_is_added_is_found_again(tmp_path: Path) -> None:
    Database(tmp_path / "t.db").add(KEY, {"rows": 4, "lanes": 16}, 0.5)
    assert Database(tmp_path / "t.db").costs(KEY) == {'{"lanes":16,"rows":4}': 0.5}
    assert Database(tmp_path / "t.db", read_only=True).costs(KEY) == {'{"lanes":16,"rows":4}': 0.5}


def test_the_latest_measurement_counts() -> None:
    database = Database(None)
    database.add(KEY, {"rows": 4}, 0.5)
    database.add(KEY, {"rows": 4}, 0.7)
    assert database.costs(KEY) == {'{"rows":4}': 0.7}


@pytest.mark.parametrize("field", ["family", "version", "problem", "target", "compiler"])
def test_every_part_of_the_key_counts(field: str) -> None:
    database = Database(None)
    database.add(KEY, {}, 0.5)
    assert database.costs(replace(KEY, **{field: "other"})) == {}


def test_text_does_not_depend_on_order() -> None:
    assert as_text({"b": 1, "a": (2, 3)}) == as_text({"a": [2, 3], "b": 1})


def _write_many(path: Path, writer: int) -> None:
    database = Database(path)
    for k in range(20):
        database.add(KEY, {"writer": writer, "k": k}, 1.0)


def test_concurrent_writers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[3])  # new processes import this file
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=_write_many, args=(tmp_path / "t.db", k)) for k in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert len(Database(tmp_path / "t.db").costs(KEY)) == 60


def test_a_killed_writer_leaves_what_it_had_written(tmp_path: Path) -> None:
    code = (
        "import sys, itertools; from pathlib import Path\n"
        "from graphopt.targets.tuning.database import Database, Key\n"
        f"key, database = {KEY!r}, Database(Path(sys.argv[1]))\n"
        "for k in itertools.count():\n"
        "    database.add(key, {'k': k}, 1.0)\n"
        "    print(k, flush=True)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "t.db")]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    written = 0
    while written < 5:
        written = int(child.stdout.readline())
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    database = Database(tmp_path / "t.db")
    assert len(database.costs(KEY)) > written
    database.add(KEY, {"k": -1}, 1.0)


def test_names_that_mean_something_in_addresses(tmp_path: Path) -> None:
    path = tmp_path / "50% #1?.db"
    Database(path).add(KEY, {}, 1.0)
    assert path.is_file()


def test_reading_needs_a_file(tmp_path: Path) -> None:
    with pytest.raises(TuningCacheError, match="no such tuning cache"):
        Database(tmp_path / "absent.db", read_only=True)
    assert list(tmp_path.iterdir()) == []


def test_reading_never_writes(tmp_path: Path) -> None:
    Database(tmp_path / "t.db").add(KEY, {}, 1.0)
    with pytest.raises(OutputError, match="cannot be used"):
        Database(tmp_path / "t.db", read_only=True).add(KEY, {"k": 1}, 1.0)


def test_another_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "poem.txt").write_text("Shall I compare thee to a summer's day? " * 40)
    with pytest.raises(TuningCacheError, match="not a tuning cache"):
        Database(tmp_path / "poem.txt")
    (tmp_path / "empty.db").touch()
    with pytest.raises(TuningCacheError, match="not a tuning cache"):
        Database(tmp_path / "empty.db", read_only=True)


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be used"):
        Database(tmp_path / "nowhere" / "t.db")
