"""A server of TVM's RPC on the stand-ins, until its standard input ends; prints its port."""

from __future__ import annotations

import sys

from tvm.rpc.server import Server

from graphopt.targets.tuning.remote import key

if __name__ == "__main__":
    server = Server("127.0.0.1", 9300, 9500, key=key(), silent=True)
    print(server.port, flush=True)
    sys.stdin.read()
    server.terminate()
