"""Small models run by ONNX Runtime, on inputs that they may well refuse."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

SECONDS = 20.0
"""After this long a run counts as failed: a loop may never meet its end."""


class Execution:
    """A model as ONNX Runtime runs it, without optimizations, in one thread.

    Attributes:
        complaint: what ONNX Runtime last said where it failed.
    """

    def __init__(self, model: bytes) -> None:
        import onnxruntime

        self.complaint = ""
        self._onnxruntime = onnxruntime
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._session: Any = None
        try:
            self._session = onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no base of their own
            self._note(error)

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> np.ndarray | None:
        """The first output, None where the model cannot be run on `feeds`."""
        if self._session is None:
            return None
        options = self._onnxruntime.RunOptions()
        options.log_severity_level = 4
        alarm = threading.Timer(SECONDS, lambda: setattr(options, "terminate", True))
        alarm.daemon = True
        alarm.start()
        try:
            return np.asarray(self._session.run(None, dict(feeds), options)[0])
        except Exception as error:
            self._note(error)
            return None
        finally:
            alarm.cancel()

    def _note(self, error: Exception) -> None:
        self.complaint = " ".join(str(error).split())[:200]
