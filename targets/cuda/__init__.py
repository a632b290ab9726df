"""The CUDA target: code for NVIDIA GPUs, built on any machine."""
