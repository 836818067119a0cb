"""Damaged and invented files for every loader: python -m benchmarks.fuzz."""
