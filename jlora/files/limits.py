"""Limits on the sizes that an untrusted file may claim for its model."""

from __future__ import annotations

MOST_LAYERS = 1000
LARGEST_SIZE = 2**24
"""The limit of every other count in a model: tokens of the vocabulary, positions, heads, the hidden size."""
