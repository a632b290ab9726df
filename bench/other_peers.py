"""Peers that only benches measure: TVM as it comes, and `torch.compile`.

Both run on one thread and are compiled for the shapes of each set of inputs. TVM reads the file by
its own ONNX frontend and compiles it with its `zero` and default pipelines.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.peers import Bound, Feeds, Peer


def _tvm(model: Path) -> Callable[[Feeds], Bound]:
    import onnx
    import tvm
    from tvm import relax
    from tvm.relax.frontend.onnx import from_onnx
    from tvm.target import codegen

    source = onnx.load(model)
    host = {"kind": "llvm", "mcpu": str(codegen.llvm_get_system_cpu()), "num-cores": 1}

    def bound(feeds: Feeds) -> Bound:
        shapes = {name: list(array.shape) for name, array in feeds.items()}
        module = from_onnx(source, shape_dict=shapes)
        names = [parameter.name for parameter in module["main"].params]
        built = tvm.compile(relax.get_pipeline("zero")(module), tvm.target.Target(host))
        main = relax.VirtualMachine(built, tvm.cpu())["main"]
        inputs = [tvm.runtime.tensor(feeds[name]) for name in names]

        def run() -> list[np.ndarray]:
            found = main(*inputs)
            tensors = [found] if isinstance(found, tvm.runtime.Tensor) else list(found)
            return [tensor.numpy() for tensor in tensors]

        return run

    return bound


def _torch(model: Path) -> Callable[[Feeds], Bound]:
    import torch
    from torch_model import to_torch

    torch.set_num_threads(1)
    module: Any = to_torch(model).eval()

    def bound(feeds: Feeds) -> Bound:
        compiled = torch.compile(module, dynamic=False)
        arrays = [np.ascontiguousarray(feeds[name]) for name in module.input_names]
        inputs = [torch.from_numpy(array) for array in arrays]

        def run() -> list[np.ndarray]:
            with torch.inference_mode():
                return [tensor.numpy() for tensor in compiled(*inputs)]

        return run

    return bound


PEERS = {
    "tvm": (Peer("tvm", "tvm", "fp32", _tvm),),
    "torch": (Peer("torch.compile", "torch", "fp32", _torch),),
}
