"""The CPU target: Relax lowering, kernels of our own, LLVM code generation."""
