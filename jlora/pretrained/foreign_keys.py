"""Recognizes keys that another tool, or a wrapper around the model, has put into a file of weights."""

from __future__ import annotations

_WRAPPERS = {
    "_orig_mod.": "torch.compile adds. Save model._orig_mod",
    "module.": "DataParallel adds. Save model.module",
    "_fsdp_wrapped_module.": "FSDP adds. Gather the whole state_dict and save that",
    "language_model.": "a model with images has. Save its language model alone",
    "model.language_model.": "a model with images has. Save its language model alone",
}


def say_whose_key(key: str) -> str:
    """Returns what wrote a key that a model does not have, and what to do; "" if that is not known."""
    if key.startswith("base_model.model."):
        return (
            "that of a PEFT model that is not merged. Save model.merge_and_unload(), or give the base and the adapter"
            " apart"
        )
    if ".lora_A." in key or ".lora_B." in key or ".base_layer." in key:
        return "a key of an adapter. Save model.merge_and_unload(), or give the base and the adapter apart"
    if ".weight." in key or key.endswith((".qweight", ".qzeros", ".scales", ".SCB")):
        return "one of quantized weights (bitsandbytes, GPTQ, AWQ). Give the 16-bit model that they were made from"
    for start, adds in _WRAPPERS.items():
        if key.startswith(start):
            return f"one that begins with {start}, which {adds} with save_pretrained"
    return ""
