"""Targets: where an optimized graph runs. Each is imported only when it is used."""
