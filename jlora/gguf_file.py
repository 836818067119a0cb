"""GGUF files, as llama.cpp reads them: a model's config, weights and tokenizer in one file.

The weights are dequantized tensor by tensor by the `gguf` package. llama.cpp keeps the rows of q and k in another order
than Hugging Face (pairs of rotary features side by side); they are put back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedConfig, PreTrainedTokenizerFast

from jlora.errors import JloraError
from jlora.paths import nearest

_KEYS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""{GGUF's name: Hugging Face's}; `blk.3.attn_q.weight` is `model.layers.3.self_attn.q_proj.weight`."""
_SKIPPED = ("rope_freqs.weight",)
"""Numbers that the config says too."""
_CONTROL, _USER_DEFINED = 3, 4
"""Token types that are never split."""


def is_gguf(name: str | Path) -> bool:
    """Whether the name is that of a GGUF file."""
    return str(name).endswith(".gguf")


def gguf_config(file: Path) -> PreTrainedConfig:
    """The config of the model in the file.

    Raises:
      JloraError: no such file, no GGUF file, another architecture than llama, a key that is missing.
    """
    fields = _fields(_open(file))
    architecture = fields.get("general.architecture")
    if architecture != "llama":
        raise JloraError(f"{file}: general.architecture: expected 'llama'; found {architecture!r}")

    def value(key: str) -> Any:
        if f"llama.{key}" not in fields:
            raise JloraError(f"{file}: llama.{key}: expected a value; found no such key{nearest(key, fields)}")
        return fields[f"llama.{key}"]

    scaling = fields.get("llama.rope.scaling.type", "none")
    if scaling != "none":
        raise JloraError(f"{file}: llama.rope.scaling.type: expected none; found {scaling!r}, which is not supported")
    heads = value("attention.head_count")
    return LlamaConfig(
        vocab_size=len(fields["tokenizer.ggml.tokens"]),
        hidden_size=value("embedding_length"),
        intermediate_size=value("feed_forward_length"),
        num_hidden_layers=value("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=fields.get("llama.attention.head_count_kv", heads),
        head_dim=value("rope.dimension_count"),
        max_position_embeddings=value("context_length"),
        rms_norm_eps=float(np.float32(value("attention.layer_norm_rms_epsilon"))),
        rope_parameters={"rope_type": "default", "rope_theta": float(fields.get("llama.rope.freq_base", 10000.0))},
        tie_word_embeddings=not any(tensor.name == "output.weight" for tensor in _open(file).tensors),
        bos_token_id=fields.get("tokenizer.ggml.bos_token_id"),
        eos_token_id=fields.get("tokenizer.ggml.eos_token_id"),
        pad_token_id=fields.get("tokenizer.ggml.padding_token_id"),
    )


@dataclasses.dataclass(frozen=True)
class GgufTensor:
    """A tensor in a GGUF file that has not been dequantized yet, under Hugging Face's key."""

    file: Path
    key: str
    shape: tuple[int, ...]
    stored: Any
    heads: int | None  # of q and k, whose rows are to be put back

    def read(self) -> np.ndarray:
        """The tensor, float32."""
        value = gguf.dequantize(self.stored.data, self.stored.tensor_type).reshape(self.shape).astype(np.float32)
        if self.heads is None:
            return value
        half = self.shape[0] // self.heads // 2
        return value.reshape(self.heads, half, 2, -1).swapaxes(1, 2).reshape(self.shape)

    def require_float(self) -> None:
        """Raises JloraError where the tensor's quantization is one that cannot be read."""
        try:
            gguf.dequantize(self.stored.data[:1], self.stored.tensor_type)
        except (NotImplementedError, KeyError):
            kind = self.stored.tensor_type.name
            raise JloraError(
                f"{self.file}: {self.stored.name}: expected a type that gguf dequantizes; found {kind}"
            ) from None


def gguf_tensors(file: Path) -> dict[str, GgufTensor]:
    """{Hugging Face's key: tensor} of the file.

    Raises:
      JloraError: no such file, no GGUF file, a tensor that the llama architecture does not have.
    """
    reader = _open(file)
    fields = _fields(reader)
    heads = fields.get("llama.attention.head_count")
    rotary = {"attn_q": heads, "attn_k": fields.get("llama.attention.head_count_kv", heads)}
    tensors = {}
    for stored in reader.tensors:
        if stored.name in _SKIPPED:
            continue
        *block, name, parameter = stored.name.split(".")
        if name not in _KEYS:
            raise JloraError(f"{file}: {stored.name}: expected a tensor of llama; found one that it does not have")
        layer = f"model.layers.{block[1]}." if block else ""
        key = f"{layer}{_KEYS[name]}.{parameter}"
        shape = tuple(int(size) for size in reversed(stored.shape))
        tensors[key] = GgufTensor(file, key, shape, stored, rotary.get(name))
    return tensors


def gguf_tokenizer(file: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of the model in the file, with its chat template.

    Raises:
      JloraError: no such file, no GGUF file, a kind of tokenizer that is not supported.
    """
    fields = _fields(_open(file))
    kind, before = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre")
    if kind != "gpt2" or before not in _PRE_TOKENIZERS:
        known = ", ".join(_PRE_TOKENIZERS)
        raise JloraError(
            f"{file}: tokenizer.ggml: expected the model gpt2 with one of {known} before it;"
            f" found {kind!r} with {before!r}"
        )
    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(_PRE_TOKENIZERS[before])
    tokenizer.decoder = decoders.ByteLevel()
    for token, token_type in zip(tokens, fields["tokenizer.ggml.token_type"], strict=True):
        if token_type in (_CONTROL, _USER_DEFINED):
            added = AddedToken(token, normalized=False, special=token_type == _CONTROL)
            tokenizer.add_special_tokens([added]) if added.special else tokenizer.add_tokens([added])
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    special = {name: _token(fields, tokens, key) for name, key in names.items()}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=fields.get("tokenizer.chat_template"),
        model_max_length=fields.get("llama.context_length"),
        **{name: token for name, token in special.items() if token is not None},
    )


_PRE_TOKENIZERS: dict[Any, list[Any]] = {
    "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "smollm": [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
}


def _token(fields: Mapping[str, Any], tokens: list[str], key: str) -> str | None:
    index = fields.get(f"tokenizer.ggml.{key}_token_id")
    return None if index is None else tokens[index]


def _open(file: Path) -> gguf.GGUFReader:
    if not Path(file).is_file():
        raise JloraError(f"{file}: expected a GGUF file; found no such file")
    try:
        return gguf.GGUFReader(file)
    except (ValueError, IndexError, KeyError) as error:
        raise JloraError(f"{file}: expected a whole GGUF file; found: {error}") from None


def _fields(reader: gguf.GGUFReader) -> dict[str, Any]:
    return {key: field.contents() for key, field in reader.fields.items()}
