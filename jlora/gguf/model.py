"""Reads a model's config, weights and tokenizer from one GGUF file (llama.cpp's format)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jlora.gguf.architectures import ROPE_FACTORS, architecture_of, config_of, heads_of, key_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerFast

    from jlora.gguf.reader import StoredBlocks


def is_gguf(name: str | Path) -> bool:
    """Returns whether the name ends with ".gguf"; no file is opened."""
    return str(name).endswith(".gguf")


def gguf_config(file: Path) -> PreTrainedConfig:
    """Reads the config of the model in the file: transformers' class for the architecture, such as LlamaConfig.

    Raises:
      FileError: the file is missing or not a complete GGUF file, or lacks a size of the model.
      UnsupportedModelError: an architecture other than llama, qwen2 and qwen3, or a feature that is not supported.
    """
    from jlora.gguf.reader import read_gguf

    return config_of(read_gguf(file))


def gguf_tokenizer(file: Path) -> PreTrainedTokenizerFast:
    """Reads the tokenizer of the model in the file, with its chat templates.

    Raises:
      FileError: the file is missing or not a complete GGUF file, or its kind of tokenizer is not supported.
    """
    from jlora.gguf.reader import read_gguf
    from jlora.gguf.tokenizer import make_tokenizer  # which loads transformers

    return make_tokenizer(read_gguf(file))


@dataclass(frozen=True)
class GgufTensor:
    """A tensor in a GGUF file that has not been read yet, under Hugging Face's key.

    Attributes:
      file: the GGUF file.
      key: Hugging Face's, such as `model.layers.0.self_attn.q_proj.weight`.
      shape: Hugging Face's, (out, in) of a linear layer.
      stored: the tensor as it is in the file.
      heads: of q and k in llama's files, whose rows are put back into Hugging Face's order; else None.
    """

    file: Path
    key: str
    shape: tuple[int, ...]
    stored: StoredBlocks
    heads: int | None  # of q and k, whose rows `read` puts back into Hugging Face's order

    def read(self, dtype: Any, index: tuple[slice, ...] = ()) -> np.ndarray:
        """Reads the tensor, or its part at `index`, in `dtype`; raises FileError if a number is not finite."""
        value = self.stored.read(dtype)
        if self.heads is not None:
            half = self.shape[0] // self.heads // 2
            value = value.reshape(self.heads, half, 2, -1).swapaxes(1, 2).reshape(self.shape)
        return value[index]

    def as_numpy(self) -> np.ndarray:
        """Reads the whole tensor in float32."""
        return self.read(np.float32)

    def require_float(self) -> None:
        """Raises FileError if the tensor's quantization cannot be read, or the file ends before the tensor does."""
        self.stored.require_readable()


def gguf_tensors(file: Path) -> dict[str, GgufTensor]:
    """Returns {Hugging Face's key: tensor} of the file, without `rope_freqs.weight`, which is in the config instead.

    Raises:
      FileError: the file is missing or not a complete GGUF file, or has a tensor that does not belong to its
        architecture.
      UnsupportedModelError: an architecture other than llama, qwen2 and qwen3.
    """
    from jlora.gguf.reader import read_gguf

    content = read_gguf(file)
    _, architecture = architecture_of(content)
    tensors = {}
    for stored in content.tensors.values():
        if stored.name != ROPE_FACTORS:
            key = key_of(content, stored.name)
            heads = heads_of(content, stored) if architecture.permuted else None
            tensors[key] = GgufTensor(content.file, key, stored.shape, stored, heads)
    return tensors
