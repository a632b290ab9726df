"""Files and folders that appear whole or not at all."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from graphopt.errors import OutputError
from graphopt.ir import atomic


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    with atomic.replacing(tmp_path / "x") as temporary:
        temporary.write_text("new")
        assert not (tmp_path / "x").exists()
    assert (tmp_path / "x").read_text() == "new"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "x").write_text("old")
    with pytest.raises(error), atomic.replacing(tmp_path / "x") as temporary:
        temporary.write_text("new")
        raise error
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_folders_are_replaced_whole_or_not_at_all(
    tmp_path: Path, error: type[BaseException]
) -> None:
    for name in ("a", "b"):
        with atomic.replacing_folder(tmp_path / "x") as temporary:
            (temporary / name).touch()
    with pytest.raises(error), atomic.replacing_folder(tmp_path / "x") as temporary:
        (temporary / "c").touch()
        raise error
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")] == ["x", "x/b"]


def test_folders_that_are_replaced_at_the_same_time(tmp_path: Path) -> None:
    def replace(k: int) -> None:
        for _ in range(200):
            with atomic.replacing_folder(tmp_path / "x") as temporary:
                (temporary / str(k)).touch()

    with ThreadPoolExecutor(4) as pool:
        for _ in pool.map(replace, range(4)):
            pass
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    assert len(list((tmp_path / "x").iterdir())) == 1


def test_devices_are_not_replaced() -> None:
    with (
        pytest.raises(OutputError, match="not a regular file"),
        atomic.replacing(Path("/dev/null")),
    ):
        raise AssertionError("must not get here")
    assert Path("/dev/null").is_char_device()


def test_a_folder_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"), atomic.replacing(tmp_path / "a/b"):
        pass


def test_what_is_unfinished_can_be_discarded(tmp_path: Path) -> None:
    with atomic.temporary_folder(tmp_path) as folder, atomic.replacing(tmp_path / "x") as file:
        (folder / "half").touch()
        atomic.discard_unfinished()
        assert list(tmp_path.iterdir()) == []
        file.touch()
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    atomic.discard_unfinished()
    assert (tmp_path / "x").exists()  # finished files are safe


def test_scratch_is_discarded_and_forgotten() -> None:
    folder, other = atomic.scratch_folder(), atomic.scratch_folder()
    atomic.discard_unfinished()
    assert not Path(folder.name).exists()
    before = len(atomic._unfinished)
    del folder, other
    assert len(atomic._unfinished) == before - 2
