"""Commands that are stopped end soon, even in the middle of native code."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from command import environment, graphopt

# A verb that writes and is then busy outside of Python for hours.
BUSY = """
import hashlib, sys
from pathlib import Path
from graphopt import api
from graphopt.cli import main
from graphopt.ir import atomic

def busy(*args, **kwargs):
    folder = Path(sys.argv[1])
    with (
        atomic.scratch_folder(),
        atomic.temporary_folder(folder) as half,
        atomic.replacing(folder / "file"),
    ):
        (half / "started").touch()
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)

api.runnable = busy
sys.exit(main(["run", "model.onnx", "--random"]))
"""


# A verb that a signal meets in the `exec` of a string, where dataclasses are made.
STOPPED_IN_EXEC = """
import sys
from graphopt import api
from graphopt.cli import main

def stopped(*args, **kwargs):
    exec("import os; os.kill(os.getpid(), int(sys.argv[1]))", globals())

api.runnable = stopped
sys.exit(main(["run", "model.onnx", "--random"]))
"""


@pytest.mark.parametrize(
    ("number", "said"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")]
)
def test_native_code_does_not_delay_the_end(
    tmp_path: Path, number: signal.Signals, said: str
) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", BUSY, str(tmp_path)],
        stderr=subprocess.PIPE,
        text=True,
        env=environment({"TMPDIR": str(tmp_path)}),
    )
    while not any(tmp_path.glob(".graphopt-*/started")):
        assert child.poll() is None
    child.send_signal(number)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 128 + number
    assert err == f"graphopt: {said}\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_a_class_is_made_gives_the_same_status(
    tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / "stopped.py").write_text(STOPPED_IN_EXEC)
    child = [sys.executable, "-m", "stopped", str(int(number))]
    assert subprocess.run(child, cwd=tmp_path, env=environment()).returncode == 128 + number


def test_handlers_are_put_back(tmp_path: Path) -> None:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    threads = threading.active_count()
    graphopt("inspect", tmp_path)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    assert signal.set_wakeup_fd(-1) == -1
    assert threading.active_count() == threads


def test_verbs_work_outside_of_the_main_thread() -> None:
    from graphopt.cli import main

    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(main(["passes", "dce"])))
    thread.start()
    thread.join()
    assert found == [0]
