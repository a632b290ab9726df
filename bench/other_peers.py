"""Peers that only benches measure: `torch.compile`, and TVM as it comes.

Both get the graph as our passes leave it, where loops over bags are bags and unrolled attention is
attention. They compile it for one thread and the shapes of each set of inputs, with weights as
constants; inputs are bound, outputs handed over without a copy. `torch.compile` freezes weights,
chooses the fastest of its kernels (`max_autotune`) and calls them from C++. ONNX Runtime folds what
follows from the shapes before TVM's frontend reads the graph, which then goes through TVM's `zero`
and default pipelines for the same CPU as ours; its own schedules for CPUs (dlight) changed no time.

Compilers crash and hang: another process is the first to compile for a shape, in `LIMIT` seconds.
What PyTorch generates there is found again in its cache.
"""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from isolation import Lost, isolated_map

from graphopt.measuring.peers import Bound, Feeds, Peer, Unavailable, bind

LIMIT = 300.0  # seconds for one shape


def _tvm(model: Path, feeds: Feeds) -> Bound:
    import tvm
    from tvm import relax
    from tvm.relax.frontend.onnx import from_onnx

    from graphopt.targets.cpu.target import CpuTarget

    target = tvm.target.Target({**CpuTarget.parse("").llvm.export(), "opt-level": 3})
    with tvm.transform.PassContext(opt_level=3):
        module = from_onnx(_of_shapes(model, feeds))
        names = [parameter.name for parameter in module["main"].params]
        built = tvm.compile(relax.get_pipeline("zero")(module), target)
    main = relax.VirtualMachine(built, tvm.cpu())["main"]
    inputs = [tvm.runtime.tensor(feeds[name]) for name in names]

    def run() -> list[np.ndarray]:
        found = main(*inputs)
        tensors = [found] if isinstance(found, tvm.runtime.Tensor) else found
        return [np.from_dlpack(tensor) for tensor in tensors]

    return run


def _of_shapes(model: Path, feeds: Feeds) -> Any:
    """The optimized model for inputs of these shapes, of standard ops without shape arithmetic."""
    import onnx
    import onnxruntime as ort

    import graphopt
    from graphopt.ir import onnx_io

    with tempfile.TemporaryDirectory() as scratch:
        given, folded = Path(scratch) / "given.onnx", Path(scratch) / "folded.onnx"
        onnx_io.save(graphopt.optimize(model), given)
        proto = onnx.load(given, load_external_data=False)
        for value in proto.graph.input:
            for dim, size in zip(value.type.tensor_type.shape.dim, feeds[value.name].shape):
                dim.dim_value = size
        for value in proto.graph.output:
            value.type.tensor_type.ClearField("shape")  # its symbols are known now
        onnx.save(proto, given)
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(folded)
        options.log_severity_level = 4
        ort.InferenceSession(str(given), options, providers=["CPUExecutionProvider"])
        return onnx.load(folded)


def _torch(model: Path, feeds: Feeds) -> Bound:
    import torch
    from torch_model import to_torch

    torch.set_num_threads(1)
    torch._dynamo.reset()  # what it was compiled for before would be asked for first
    module: Any = to_torch(model).eval()
    options = {"freezing": True, "cpp_wrapper": True, "max_autotune": True}
    compiled = torch.compile(module, dynamic=False, options=options)
    inputs = [torch.from_numpy(np.asarray(feeds[name], order="C")) for name in module.input_names]

    def run() -> list[np.ndarray]:
        with torch.inference_mode():
            return [tensor.numpy() for tensor in compiled(*inputs)]

    return run


Attempt = tuple[str, Path, dict[str, np.ndarray]]
COMPILERS = {"tvm": _tvm, "torch": _torch}


def _opened(name: str, model: Path) -> Callable[[Feeds], Bound]:
    coming: deque[Attempt] = deque()
    done = isolated_map(refusal, iter(coming.popleft, None), jobs=1, timeout=LIMIT)

    def bound(feeds: Feeds) -> Bound:
        coming.append((name, model, dict(feeds)))
        _, reason = next(done)
        if reason is not None:
            raise Unavailable(reason.reason if isinstance(reason, Lost) else reason)
        return COMPILERS[name](model, feeds)

    return bound


def refusal(attempt: Attempt) -> str | None:
    """Why a compiler cannot run a model on some inputs; None if it can."""
    name, model, feeds = attempt
    peer = Peer(name, name, "fp32", lambda path: partial(COMPILERS[name], path))
    try:
        bind(peer.open(model), feeds)
    except Unavailable as error:
        return str(error)
    return None


PEERS = {
    "tvm": (Peer("tvm", "tvm", "fp32", partial(_opened, "tvm")),),
    "torch": (Peer("torch.compile", "torch", "fp32", partial(_opened, "torch")),),
}
