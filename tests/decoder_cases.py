"""Tiny causal language models with the same random weights in PyTorch and here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from encoder_cases import torch_batch, torch_classifier
from transformers import CONFIG_MAPPING, PreTrainedConfig

from jlora.base import load_base

_SIZES = {
    "vocab_size": 60,
    "max_position_embeddings": 64,
    "initializer_range": 0.1,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "pad_token_id": 0,
}
_GPT2_SIZES = {
    "vocab_size": 60,
    "n_positions": 64,
    "initializer_range": 0.1,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
SWITCHES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, tied, as many keys as queries": ("llama", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    "llama with biases and wide heads": ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 16}),
    "llama 3.1's positions": ("llama", {"rope_parameters": LLAMA3}),
    "linear positions": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}}),
    "mistral, windowed": ("mistral", {"sliding_window": 5}),
    "mistral, all": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {}),
    "qwen2, tied": ("qwen2", {"tie_word_embeddings": True, "rms_norm_eps": 1e-5}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "gemma": ("gemma", {"head_dim": 16, "num_key_value_heads": 1}),
    "gemma with biases, exact gelu": ("gemma", {"attention_bias": True, "hidden_act": "gelu"}),
    "gpt2": ("gpt2", {}),
    "gpt2, wide inside": ("gpt2", {"n_inner": 40, "activation_function": "relu", "layer_norm_epsilon": 1e-3}),
    "qwen3 with biases, tied": ("qwen3", {"attention_bias": True, "tie_word_embeddings": True}),
}
"""{name: (model_type, what differs)}: the switches in which published checkpoints differ."""


def tiny_decoder(model_type: str, **switches: Any) -> PreTrainedConfig:
    """A config of two layers, 32 wide, 4 heads that share 2 keys and values, with `switches` set."""
    return CONFIG_MAPPING[model_type](**(_GPT2_SIZES if model_type == "gpt2" else _SIZES) | switches)


def torch_decoder(config: PreTrainedConfig) -> Any:
    """transformers' PyTorch model, all its parameters random."""
    return torch_classifier(config, head="CausalLM")


def random_tokens(config: PreTrainedConfig, rows: int = 3, length: int = 14) -> dict[str, jax.Array]:
    """Rows of tokens, int32, the second cut short and padded on the right."""
    ids = np.random.default_rng(0).integers(5, config.vocab_size, (rows, length))
    mask = np.arange(length)[None, :] < np.array([length, length - 6, length])[:rows, None]
    batch = {"input_ids": np.where(mask, ids, 0), "attention_mask": mask}
    return {name: jnp.asarray(value, jnp.int32) for name, value in batch.items()}


def torch_logits(oracle: Any, batch: dict[str, jax.Array]) -> np.ndarray:
    """(B, T, vocab) of the PyTorch model."""
    import torch

    with torch.no_grad():
        return oracle(**torch_batch(batch)).logits.numpy()


def load_saved(oracle: Any, folder: Path, **options: Any) -> tuple[Any, Any]:
    """(model, base) read from the files that the PyTorch model writes into `folder`."""
    oracle.save_pretrained(folder)
    return load_base(str(folder), **options)
