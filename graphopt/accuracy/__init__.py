"""Compression inside an error budget: data, metrics, and the driver that spends the budget."""
