"""Which leaves of jlora's models are quantized where nothing else is said: by their paths, before they are read."""

from __future__ import annotations

OUTPUT_HEADS = ("lm_head", "embed_out", "score", "classifier", "pre_classifier", "qa_outputs")
"""Modules that make a model's output and stay as they are: errors there are not made good by any later layer."""


def is_linear_weight(path: str) -> bool:
    """Whether the leaf is the weight of a linear layer (*stack, in, out) behind the embeddings and before the head."""
    return path.rsplit("/", 1)[-1] in ("kernel", "weight") and not is_in_head(path)


def is_in_head(path: str) -> bool:
    """Whether the leaf at `path` belongs to an output head."""
    return any(part in OUTPUT_HEADS for part in path.split("/"))
