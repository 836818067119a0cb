"""Benchmarks of many adapters that train together."""
