"""GGUF files of tiny models, written by llama.cpp's own package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np

_ARCHITECTURES = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2, "qwen3": gguf.MODEL_ARCH.QWEN3}


def writer(path: Path, config: Any, architecture: str = "llama") -> gguf.GGUFWriter:
    """A file with the metadata of `config`."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    return writer


def close(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_tensors(
    writer: gguf.GGUFWriter,
    config: Any,
    tensors: dict[str, np.ndarray],
    *,
    quantization: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
) -> None:
    """The tensors as llama.cpp's converter writes them: matrices quantized, rows of llama's q and k reordered."""
    names = gguf.get_tensor_name_map(_ARCHITECTURES[writer.arch], config.num_hidden_layers)
    for key, value in tensors.items():
        if writer.arch == "llama" and ".q_proj." in key:
            value = _permuted(value, config.num_attention_heads)
        if writer.arch == "llama" and ".k_proj." in key:
            value = _permuted(value, config.num_key_value_heads)
        name = names.get_name(key, try_suffixes=(".weight", ".bias"))
        assert name is not None, key
        kind = quantization if value.ndim > 1 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quantize(value, kind), raw_dtype=kind)


def write_model(path: Path, oracle: Any, **options: Any) -> None:
    """A PyTorch model's config and weights."""
    config = oracle.config
    tied = config.tie_word_embeddings
    tensors = {key: value.numpy() for key, value in oracle.state_dict().items() if not (tied and "lm_head" in key)}
    file = writer(path, config, config.model_type)
    add_tensors(file, config, tensors, **options)
    close(file)


def _permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows in llama.cpp's order: the pairs that are turned together side by side."""
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
