"""The names of the modules that make a model's output, and which weights stay dense because of them."""

from __future__ import annotations

HEAD = "lm_head"
"""The name of a language model's output head in transformers and PEFT."""

OUTPUT_EMBEDDINGS = (HEAD, "embed_out")
"""Names of the layer that computes a language model's logits. "all-linear" leaves it out, as in PEFT."""

HEAD_NAMES = ("classifier", "score")
"""The modules that PEFT adds to `modules_to_save` for sequence and token classification."""

_ANSWERS = ("qa_outputs",)

TASK_HEADS: dict[str, tuple[str, ...]] = {
    "SEQ_CLS": HEAD_NAMES,
    "TOKEN_CLS": HEAD_NAMES,
    "QUESTION_ANS": _ANSWERS,
    "CAUSAL_LM": (),
    "SEQ_2_SEQ_LM": (),
    "FEATURE_EXTRACTION": (),
}
"""{PEFT's task type: the modules that are trained in full for it}."""

OUTPUT_HEADS = (*OUTPUT_EMBEDDINGS, *HEAD_NAMES, "pre_classifier", *_ANSWERS)
"""Modules that stay dense in a quantized model: errors there are not made good by any later layer."""


def is_linear_weight(path: str) -> bool:
    """Returns whether the leaf is the weight of a linear layer (*stack, in, out), not an embedding or a head.

    The path alone decides: its last part is `kernel` or `weight`, and no part is the name of a head (`is_in_head`).
    """
    return path.rsplit("/", 1)[-1] in ("kernel", "weight") and not is_in_head(path)


def is_in_head(path: str) -> bool:
    """Returns whether the leaf at `path` belongs to an output head: a part of the path is one of OUTPUT_HEADS.

    These are lm_head, embed_out, classifier, score, pre_classifier and qa_outputs.
    """
    return any(part in OUTPUT_HEADS for part in path.split("/"))
