"""jlora beside PEFT on PyTorch: python -m benchmarks.classify."""
