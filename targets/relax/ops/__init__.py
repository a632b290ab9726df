"""Converters from ONNX ops to Relax, one module per family of ops.

Importing this package imports every module in it, and so registers their converters.
"""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
