"""Weights of a frozen base in 8 or 4 bits: how they are stored, and which ones."""
