"""Choosing the parameters of kernel templates by measuring, and remembering what was measured."""
