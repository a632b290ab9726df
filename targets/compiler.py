"""TVM, imported without PyTorch, which takes longer to import than TVM itself."""

from graphopt.serving.bridge import absent


def load() -> None:
    """Import TVM; packages that use it call this before any module of theirs imports it."""
    with absent("torch"):
        import tvm  # noqa: F401
