"""The modules that `train.lm` adapts where `lora.target_modules` is null."""

from __future__ import annotations

_ATTENTION = {
    "bloom": ("query_key_value", "dense"),
    "falcon": ("query_key_value", "dense"),
    "gpt2": ("c_attn", "c_proj"),
    "gpt_neo": ("q_proj", "k_proj", "v_proj", "out_proj"),
    "llama": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mistral": ("q_proj", "k_proj", "v_proj", "o_proj"),
}
"""By `model_type`. GPT-2 calls the second product of its MLP c_proj too."""


def trainer_targets(model_type: str) -> list[str] | str:
    """`target_modules` for a model of this type: ["q_proj", ...] for "llama", "all-linear" where the table has none.

    PEFT's own defaults, which `jlora.default_targets` gives, often adapt less: q_proj and v_proj of Llama.
    """
    names = _ATTENTION.get(model_type)
    return "all-linear" if names is None else list(names)
