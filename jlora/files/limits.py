"""How much a file may say that a model has, whoever wrote it."""

from __future__ import annotations

MOST_LAYERS = 1000
LARGEST_SIZE = 2**24
"""Of all that is counted in a model: words, positions, heads, numbers in a token's vector."""
