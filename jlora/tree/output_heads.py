"""Decides from paths, before weights are read, which leaves of jlora's models are quantized by default."""

from __future__ import annotations

OUTPUT_HEADS = ("lm_head", "embed_out", "score", "classifier", "pre_classifier", "qa_outputs")
"""Output modules, which are not quantized: no later layer can correct their rounding errors."""


def is_linear_weight(path: str) -> bool:
    """Returns whether the leaf is the weight of a linear layer (*stack, in, out), not an embedding or a head."""
    return path.rsplit("/", 1)[-1] in ("kernel", "weight") and not is_in_head(path)


def is_in_head(path: str) -> bool:
    """Returns whether the leaf at `path` belongs to an output head."""
    return any(part in OUTPUT_HEADS for part in path.split("/"))
