"""A machine with a GPU that measures for another one, by TVM's RPC.

There, with the same version of TVM (`SERVER` says the command), a server waits; what it is sent is
code that it runs, so it is for networks where all are trusted.
"""

from __future__ import annotations

import gc
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graphopt.errors import SpecError

_PATIENCE = 10  # seconds, to connect
_SESSION = 3600  # seconds, after which a server ends a session whose client is gone


def key() -> str:
    """What client and server must agree on."""
    import tvm

    return f"graphopt-tvm-{tvm.__version__}"


def server_command(port: int) -> str:
    """What to run on the machine with the GPU."""
    return f"python -m tvm.exec.rpc_server --host 0.0.0.0 --port {port} --key {key()}"


@dataclass(frozen=True)
class Remote:
    """Where a server waits."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Remote:
        """HOST:PORT

        Raises:
            SpecError: it is something else.
        """
        host, _, port = text.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise SpecError(f"--rpc takes HOST:PORT, such as gpu-box:9090, not {text!r}")
        return cls(host.strip("[]"), int(port))

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    def connect(self) -> Session:
        """A session there, to be closed.

        Raises:
            SpecError: nobody answers, or another version of TVM does.
        """
        import tvm.rpc

        try:
            self._ask()
        except TimeoutError:
            raise SpecError(
                f"the server at {self} does not answer: it serves someone else, or is none of TVM's"
            ) from None
        except OSError as error:
            reason = error.strerror or str(error)
            raise SpecError(
                f"no server at {self} ({reason}); start it there with: {server_command(self.port)}"
            ) from None
        try:
            session = tvm.rpc.connect(self.host, self.port, key(), session_timeout=_SESSION)
        except Exception as error:  # TVM raises errors of many kinds
            reason = str(error).strip().splitlines()[-1]
            raise SpecError(
                f"the server at {self} refuses: it must be TVM's, of the same version, started "
                f"with: {server_command(self.port)} ({reason})"
            ) from None
        return Session(self, session)

    def _ask(self) -> None:
        """See that a server answers: it refuses a key that is not its own, and goes on waiting.

        A server takes one session at a time, and who connects meanwhile would wait in silence.
        """
        from tvm.rpc import base

        name = b"client:graphopt-asks"
        with socket.create_connection((self.host, self.port), _PATIENCE) as connection:
            connection.sendall(struct.pack("<ii", base.RPC_MAGIC, len(name)) + name)
            if not connection.recv(4):
                raise ConnectionAbortedError("it closed the connection")


class Session:
    """A connection to a server, and the GPU there."""

    def __init__(self, remote: Remote, session: Any) -> None:
        self.remote, self._session, self._count = remote, session, 0
        self.device = session.cuda(0)

    def close(self) -> None:
        """End it, so that the server serves others."""
        self._session = self.device = None
        gc.collect()  # with what was loaded there, which holds the connection too

    @property
    def compute_version(self) -> str:
        """Of the GPU, such as "9.0".

        Raises:
            SpecError: there is none.
        """
        if not self.device.exist:
            raise SpecError(f"the server at {self.remote} has no GPU that TVM can use")
        return str(self.device.compute_version)

    def load(self, library: Path) -> Any:
        """The module in a library of this machine, loaded there."""
        self._count += 1
        name = f"kernel{self._count}{library.suffix}"
        self._session.upload(str(library), name)
        module = self._session.load_module(name)
        self._session.remove(name)
        return module
