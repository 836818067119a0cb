"""Tiny models with the same random weights in PyTorch and here."""
