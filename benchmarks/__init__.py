"""Measurements of jlora against PEFT on PyTorch; need the extra `bench`."""
