"""The modules that `jlora lm` adapts if `lora.target_modules` is null."""

from __future__ import annotations

_ATTENTION = {
    "bloom": ("query_key_value", "dense"),
    "falcon": ("query_key_value", "dense"),
    "gpt2": ("c_attn", "c_proj"),
    "gpt_neo": ("q_proj", "k_proj", "v_proj", "out_proj"),
    "llama": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mistral": ("q_proj", "k_proj", "v_proj", "o_proj"),
}
"""{model_type: modules}. In GPT-2 c_proj is also the name of the MLP's second product."""


def trainer_targets(model_type: str) -> list[str] | str:
    """Returns the default `target_modules` of `jlora lm` for this type: ["q_proj", ...] for "llama".

    These are the projections of attention for bloom, falcon, gpt2, gpt_neo, llama and mistral; "all-linear" for others.
    PEFT's own defaults (`jlora.default_targets`) often adapt fewer modules: only q_proj and v_proj of Llama.
    """
    names = _ATTENTION.get(model_type)
    return "all-linear" if names is None else list(names)
