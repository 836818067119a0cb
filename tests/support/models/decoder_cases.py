"""Tiny causal language models with the same random weights in PyTorch and here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file
from transformers import CONFIG_MAPPING, PreTrainedConfig

import jlora
from jlora.models.registry import abstract_base
from jlora.pretrained.load import load_base
from jlora.tree.leaf_paths import leaves_by_path, replace_leaves
from tests.support.adapters.lora_cases import normal
from tests.support.models.encoder_cases import difference, torch_batch, torch_classifier

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
_COMMON = {"vocab_size": 60, "initializer_range": 0.1, "pad_token_id": 0}
_GPT2_SIZES = _COMMON | {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
_GPT_NEO_SIZES = _COMMON | {"hidden_size": 32, "num_heads": 4, "num_layers": 2, "max_position_embeddings": 64}
_FALCON_SIZES = _COMMON | {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
_SIZES_OF = {
    "bloom": _COMMON | {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "falcon": _FALCON_SIZES,
    "gpt2": _GPT2_SIZES,
    "gpt_neo": _GPT_NEO_SIZES | {"attention_types": [[["global", "local"], 1]], "window_size": 5},
    "gpt_neox": _FALCON_SIZES | {"intermediate_size": 48},
    "gptj": _GPT2_SIZES | {"rotary_dim": 4},
    "opt": _FALCON_SIZES | {"ffn_dim": 48},
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.1, 1.2, 1.3],
    "long_factor": [2.0, 3.0, 4.0],
    "partial_rotary_factor": 0.75,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
GEMMA3_POSITIONS = {
    "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
SWITCHES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, tied, as many keys as queries": (
        "llama",
        {"tie_word_embeddings": True, "num_key_value_heads": 4, "hidden_act": "gelu"}
        | {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}},
    ),
    "llama 3.1 with biases and wide heads": (
        "llama",
        {"attention_bias": True, "mlp_bias": True, "head_dim": 16, "rope_parameters": LLAMA3},
    ),
    "llama, one key, yarn": ("llama", {"num_key_value_heads": 1, "rope_parameters": YARN}),
    "llama, dynamic positions": (
        "llama",
        {"max_position_embeddings": 10}
        | {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}},
    ),
    "mistral, windowed": ("mistral", {"sliding_window": 5, "head_dim": 16}),
    "mistral, all": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {}),
    "qwen2, tied, a window behind": (
        "qwen2",
        {"tie_word_embeddings": True, "rms_norm_eps": 1e-5}
        | {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen3 with biases, tied": ("qwen3", {"attention_bias": True, "tie_word_embeddings": True}),
    "gemma": ("gemma", {"head_dim": 16, "num_key_value_heads": 1}),
    "gemma with biases, the old name of its gelu": ("gemma", {"attention_bias": True, "hidden_act": "gelu"}),
    "gemma2": (
        "gemma2",
        {"sliding_window": 5, "head_dim": 16, "query_pre_attn_scalar": 20}
        | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    ),
    "gemma2, without caps, untied": (
        "gemma2",
        {"attn_logit_softcapping": None, "final_logit_softcapping": None, "tie_word_embeddings": False},
    ),
    "gemma3": (
        "gemma3_text",
        {"num_hidden_layers": 5, "sliding_window": 4, "sliding_window_pattern": 2, "query_pre_attn_scalar": 20}
        | {"rope_parameters": GEMMA3_POSITIONS},
    ),
    "phi3, windowed": ("phi3", {"sliding_window": 5, "eos_token_id": 2}),
    "phi3, longer than trained": ("phi3", {"original_max_position_embeddings": 10, "rope_parameters": LONGROPE}),
    "phi3, as long as trained, tied": (
        "phi3",
        {"original_max_position_embeddings": 20, "rope_parameters": LONGROPE, "tie_word_embeddings": True},
    ),
    "gpt2": ("gpt2", {}),
    "gpt2, wide inside": ("gpt2", {"n_inner": 40, "activation_function": "relu", "layer_norm_epsilon": 1e-3}),
}
"""{name: (model_type, what differs)}: the switches in which published checkpoints differ."""


def tiny_decoder(model_type: str, **switches: Any) -> PreTrainedConfig:
    """A config of two layers, 32 wide, 4 heads that share 2 keys and values, with `switches` set."""
    return CONFIG_MAPPING[model_type](**_SIZES_OF.get(model_type, _SIZES) | switches)


def torch_decoder(config: PreTrainedConfig) -> Any:
    """transformers' PyTorch model, all its parameters random."""
    oracle = torch_classifier(config, head="CausalLM")
    if config.model_type == "falcon":
        config._attn_implementation = "sdpa"  # the eager one adds ALiBi twice
    return oracle


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


def loaded_case(model_type: str, switches: dict[str, Any], folder: Path) -> tuple[Any, Path, Any, Any]:
    """(PyTorch's model, the folder with its files, our model, our base), of a value of SWITCHES."""
    oracle = torch_decoder(tiny_decoder(model_type, **switches))
    return oracle, folder, *load_saved(oracle, folder)


def random_base(model: Any) -> Any:
    """Random weights, norms about 1 (about 0 where they are stored so); nothing is compiled for it."""
    abstract = abstract_base(model)
    leaves = leaves_by_path(abstract)
    return replace_leaves(abstract, {p: 0.2 * normal(seed, *leaves[p].shape) for seed, p in enumerate(leaves)})


def quick(fn: Any) -> Any:
    """`fn` compiled without the dear passes: for programs that run a few times on a few numbers."""
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return jax.jit(fn, compiler_options=options)


def assert_same_logits(oracle: Any, model: Any, base: Any) -> None:
    """PyTorch's logits of each document: of a whole row, of a padded one, and of two that are packed into one."""
    batch = random_tokens(model.config)
    ids, mask, places = batch["input_ids"], batch["attention_mask"], np.arange(14)
    second = np.array([[0], [0], [1]]) * (places >= 9)
    packed = {"segment_ids": jnp.asarray(1 + second), "position_ids": jnp.asarray(places - 9 * second)}
    found = np.asarray(quick(model.apply)(base, batch | packed))
    assert found.dtype == np.float32
    real = np.asarray(mask[:2], bool)
    rows = torch_logits(oracle, {"input_ids": ids[:2], "attention_mask": mask[:2]})
    assert difference(found[:2][real], rows[real]) < 1e-5
    for part in (slice(0, 9), slice(9, 14)):
        alone = torch_logits(oracle, {"input_ids": ids[2:, part], "attention_mask": mask[2:, part]})
        assert difference(found[2:, part], alone) < 1e-5


def assert_same_files(oracle: Any, theirs: Path, model: Any, base: Any, ours: Path) -> None:
    """What is written into `ours` has the keys and bits of `theirs`, and PyTorch opens it: a tied head stays tied."""
    jlora.save_base(ours, model, base)
    expected, found = (load_file(folder / "model.safetensors") for folder in (theirs, ours))
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[key], expected[key]) for key in expected)
    opened = type(oracle).from_pretrained(ours).state_dict()
    assert opened.keys() == oracle.state_dict().keys()
    assert all((opened[key] == value).all() for key, value in oracle.state_dict().items())


def assert_same_generation(oracle: Any, model: Any, base: Any) -> None:
    """Greedily, token by token from prompts padded on the left: PyTorch's tokens and logits, in one compile."""

    @quick
    def step(base: Any, ids: jax.Array, mask: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
        batch = {"input_ids": ids, "attention_mask": mask}
        hidden, cache = model.apply(base, batch, cache, method="extend")
        return model.apply(base, hidden[:, 0], method="logits"), cache

    ids = random_tokens(model.config)["input_ids"][::2, :12]
    mask = jnp.ones_like(ids).at[1, :3].set(0)
    expected = torch_generation(oracle, {"input_ids": ids, "attention_mask": mask}, 5)
    cache, logits = model.empty_cache(2, 17, jnp.float32), []
    for place in range(16):
        column = slice(place, place + 1)
        found, cache = step(base, ids[:, column], mask[:, column], cache)
        if place >= 11:
            logits.append(found)
            ids = jnp.concatenate([ids, found.argmax(-1)[:, None].astype(jnp.int32)], axis=1)
            mask = jnp.concatenate([mask, jnp.ones((2, 1), jnp.int32)], axis=1)
    np.testing.assert_array_equal(ids, expected.sequences.numpy())
    assert difference(jnp.stack(logits), [step.numpy() for step in expected.logits]) < 1e-5
    assert step._cache_size() == 1


def torch_generation(oracle: Any, batch: dict[str, jax.Array], count: int) -> Any:
    """What PyTorch's greedy `generate` gives, sequences (B, T + count) and the logits of the new tokens."""
    oracle.generation_config.eos_token_id = None
    options = {"do_sample": False, "max_new_tokens": count, "return_dict_in_generate": True, "output_logits": True}
    return oracle.generate(**torch_batch(batch), pad_token_id=0, **options)
