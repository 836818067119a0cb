"""Translates GGUF's metadata and tensor names to Hugging Face's, for each supported architecture."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jlora.errors import FileError, UnsupportedModelError
from jlora.files.limits import LARGEST_SIZE, MOST_LAYERS

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from jlora.gguf.reader import Gguf, StoredBlocks


class Architecture(NamedTuple):
    """How files with one value of `general.architecture` differ from Hugging Face's.

    Attributes:
      model_type: Hugging Face's name.
      permuted: whether the rows of q and k are in llama.cpp's order: features of a rotary pair are adjacent.
      biases: {key of the config: the tensor that the file has if the key is true}.
    """

    model_type: str
    permuted: bool
    biases: Mapping[str, str]


_ATTENTION, _MLP = {"attention_bias": "blk.0.attn_q.bias"}, {"mlp_bias": "blk.0.ffn_gate.bias"}
ARCHITECTURES = {
    "llama": Architecture("llama", permuted=True, biases=_ATTENTION | _MLP),
    "qwen2": Architecture("qwen2", permuted=False, biases={}),
    "qwen3": Architecture("qwen3", permuted=False, biases=_ATTENTION),
}
"""{value of `general.architecture`: its description}. Mistral's files use llama."""

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
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""{GGUF's name: Hugging Face's}; `blk.3.attn_q.weight` is `model.layers.3.self_attn.q_proj.weight`."""

ROPE_FACTORS = "rope_freqs.weight"
"""The tensor of factors that divide the rotary frequencies. In Hugging Face's format they are in the config."""

_COUNTS = {
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "attention.head_count": "num_attention_heads",
}
"""{key without the architecture's prefix: Hugging Face's key} of the required sizes."""

_READ_TOO = (
    "attention.layer_norm_rms_epsilon",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.type",
    "rope.scaling.factor",
)
_SAID_TWICE = ("vocab_size", "tensor_data_layout", "rope.scaling.original_context_length", "rope.scaling.finetuned")
"""Known keys that are not read, because they only repeat what other keys say."""


def architecture_of(content: Gguf) -> tuple[str, Architecture]:
    """Returns (the value of `general.architecture` in `content.fields`, its description in ARCHITECTURES).

    Raises:
      UnsupportedModelError: the file has no such key, the architecture is not in the table, or the file is an adapter
        (`general.type`).
    """
    if content.fields.get("general.type") == "adapter":
        raise UnsupportedModelError(
            f"{content.file}: general.type: expected a model; found an adapter of llama.cpp. Give its base here, and"
            " the adapter in PEFT's format, from which it was converted"
        )
    name = content.fields.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        known, found = ", ".join(ARCHITECTURES), reprlib.repr(name)
        raise UnsupportedModelError(
            f"{content.file}: general.architecture: expected one of {known}; found {found}. {_instead_of(name)}"
        )
    return name, ARCHITECTURES[name]


def _instead_of(architecture: Any) -> str:
    """Returns what to give instead of a file of an architecture that is not in the table."""
    if architecture == "clip":
        return "It is the part of a model that reads images: give the file of the language model"
    return "If docs/models.md lists the model, give its folder in Hugging Face's format, or its name on the hub"


def key_of(content: Gguf, name: str) -> str:
    """Returns Hugging Face's key of the tensor that the file calls `name`.

    `blk.3.attn_q.weight` is `model.layers.3.self_attn.q_proj.weight`; `token_embd.weight` is
    `model.embed_tokens.weight`; `output.weight` is `lm_head.weight`. `content` is only read for the error.

    Raises:
      FileError: no supported architecture has such a tensor.
    """
    *block, module, parameter = name.split(".") if "." in name else ("", name)
    if module not in _KEYS or (block and (len(block) != 2 or block[0] != "blk")):
        architecture, _ = architecture_of(content)
        raise FileError(f"{content.file}: {name}: expected a tensor of {architecture}; found one that it does not have")
    layer = f"model.layers.{block[1]}." if block else ""
    return f"{layer}{_KEYS[module]}.{parameter}"


def heads_of(content: Gguf, stored: StoredBlocks) -> int | None:
    """Returns the number of heads by which the rows of q or k are reordered; None for other tensors.

    For the architecture llama it is the field `llama.attention.head_count` for q, and for k
    `llama.attention.head_count_kv`, or that of q if this is missing.

    Args:
      content: the file.
      stored: one of its tensors; the name says whether it is q or k: `blk.0.attn_q.weight`, `blk.0.attn_k.bias`.

    Raises:
      FileError: the file has no such number, or twice the number does not divide the rows.
    """
    prefix, _ = architecture_of(content)
    key = {"attn_q": "head_count", "attn_k": "head_count_kv"}.get(stored.name.split(".")[-2])
    if key is None:
        return None
    queries = _count(content, f"{prefix}.attention.head_count")
    heads = queries if key == "head_count" else _count(content, f"{prefix}.attention.{key}", queries)
    if stored.shape[0] % (2 * heads):
        rows = stored.shape[0]
        raise FileError(
            f"{content.file}: {stored.name}: expected rows of {prefix}.attention.{key} = {heads} heads; found {rows}"
        )
    return heads


def config_of(content: Gguf) -> PreTrainedConfig:
    """Builds the model's config, such as a LlamaConfig, from the metadata and the tensors.

    In the fields of a llama, `llama.embedding_length` is hidden_size, `llama.feed_forward_length` intermediate_size,
    `llama.block_count` num_hidden_layers, `llama.context_length` max_position_embeddings, `llama.attention.head_count`
    num_attention_heads, and `llama.attention.layer_norm_rms_epsilon` rms_norm_eps (rounded to float32): these are
    required. Optional are `llama.attention.head_count_kv`, `llama.attention.key_length` (head_dim) and the `llama.rope`
    keys. vocab_size is the number of rows of the tensor `token_embd.weight`; without `output.weight` the head is tied.

    Raises:
      FileError: a missing key, or a number out of its range.
      UnsupportedModelError: an architecture that is not in ARCHITECTURES, an unknown key whose value is not zero, or
        scaled positions of another kind than linear and Llama 3's.
    """
    from transformers import CONFIG_MAPPING  # takes half a second, and seconds if PyTorch is installed

    prefix, architecture = architecture_of(content)
    fields, tensors = content.fields, content.tensors
    _require_known(content, prefix)
    values: dict[str, Any] = {theirs: _count(content, f"{prefix}.{key}") for key, theirs in _COUNTS.items()}
    if values["num_hidden_layers"] > MOST_LAYERS:
        found = values["num_hidden_layers"]
        raise FileError(f"{content.file}: {prefix}.block_count: expected at most {MOST_LAYERS}; found {found}")
    heads = values["num_attention_heads"]
    width = _count(content, f"{prefix}.attention.key_length", values["hidden_size"] // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        found = fields.get(f"{prefix}.{key}", width)
        if found != width:
            raise UnsupportedModelError(
                f"{content.file}: {prefix}.{key}: expected the heads' width, {width}; found {found},"
                " which is not supported"
            )
    if "token_embd.weight" not in tensors:
        raise FileError(f"{content.file}: expected token_embd.weight; found no such tensor")
    values |= {
        "vocab_size": tensors["token_embd.weight"].shape[0],
        "num_key_value_heads": _count(content, f"{prefix}.attention.head_count_kv", heads),
        "head_dim": width,
        "rms_norm_eps": float(np.float32(_number(content, f"{prefix}.attention.layer_norm_rms_epsilon"))),
        "rope_parameters": _rope_parameters(content, prefix, width),
        "tie_word_embeddings": "output.weight" not in tensors,
        "bos_token_id": fields.get("tokenizer.ggml.bos_token_id"),
        "pad_token_id": fields.get("tokenizer.ggml.padding_token_id"),
    }
    values |= {key: tensor in tensors for key, tensor in architecture.biases.items()}
    try:
        return CONFIG_MAPPING[architecture.model_type](**values, eos_token_id=_stops(fields))
    except Exception as error:  # transformers' classes raise various exceptions for wrong values
        raise FileError(f"{content.file}: {error}") from error


def _stops(fields: dict[str, Any]) -> int | list[int] | None:
    """Returns the id of the token that ends a text; a list if other tokens end a turn or a message."""
    ids = [fields.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot", "eom")]
    found = list(dict.fromkeys(i for i in ids if i is not None))
    return found if len(found) > 1 else (found[0] if found else None)


def _count(content: Gguf, key: str, default: int | None = None) -> int:
    """Reads a size; `default` if the file does not have the key."""
    found = content.fields.get(key, default)
    if found is not None and not (type(found) is int and 1 <= found <= LARGEST_SIZE):
        said = reprlib.repr(found)
        raise FileError(f"{content.file}: {key}: expected an integer from 1 to {LARGEST_SIZE}; found {said}")
    return int(_number(content, key, found))


def _number(content: Gguf, key: str, default: float | None = None) -> float:
    """Reads a positive number; `default` if the file does not have the key."""
    found = content.fields.get(key, default)
    if not (isinstance(found, int | float) and 0 < found < math.inf):
        said = "no such key" if found is None else reprlib.repr(found)
        raise FileError(
            f"{content.file}: {key}: expected a number above 0; found {said}. Convert the model again, with llama.cpp's"
            " convert_hf_to_gguf.py"
        )
    return found


def _require_known(content: Gguf, prefix: str) -> None:
    """Refuses keys that are not read and not zero: they might change what the model computes."""
    known = {f"{prefix}.{key}" for key in (*_COUNTS, *_READ_TOO, *_SAID_TWICE)}
    for key, value in content.fields.items():
        if key.startswith(f"{prefix}.") and key not in known and value:
            raise UnsupportedModelError(
                f"{content.file}: {key}: expected no such key; found {reprlib.repr(value)}, which is not supported"
            )


def _rope_parameters(content: Gguf, prefix: str, width: int) -> dict[str, Any]:
    """Returns Hugging Face's `rope_parameters`."""
    base = {"rope_theta": float(_number(content, f"{prefix}.rope.freq_base", 10000.0))}
    kind = content.fields.get(f"{prefix}.rope.scaling.type", "none")
    old = _number(content, f"{prefix}.rope.scale_linear", 1.0)
    expected = ("none",) if ROPE_FACTORS in content.tensors else ("none", "linear")
    if kind not in expected:
        raise UnsupportedModelError(
            f"{content.file}: {prefix}.rope.scaling.type: expected {' or '.join(expected)}; found {reprlib.repr(kind)},"
            " which is not supported"
        )
    factor = float(_number(content, f"{prefix}.rope.scaling.factor") if kind == "linear" else old)
    if ROPE_FACTORS in content.tensors:
        return base | _llama3(content, base["rope_theta"], width)
    return base | ({"rope_type": "default"} if factor == 1 else {"rope_type": "linear", "factor": factor})


def _llama3(content: Gguf, theta: float, width: int) -> dict[str, Any]:
    """Finds the parameters of Llama 3.1's scaling that give the file's factors.

    The file has only the factors, which depend on four parameters. Three of these are equal in all published models.
    """
    stored = content.tensors[ROPE_FACTORS]
    stored.require_readable()
    factors = stored.read(np.float32) if stored.shape == (width // 2,) else np.zeros(1, np.float32)
    low, high, length, factor = 1.0, 4.0, 8192, float(factors.max())
    turns = length * theta ** -(np.arange(0, width, 2) / width) / (2 * np.pi)
    share = np.clip((turns - low) / (high - low), 0, 1)
    if not (factor > 0 and np.allclose(factors, 1 / ((1 - share) / factor + share), rtol=1e-4)):
        raise UnsupportedModelError(
            f"{content.file}: {ROPE_FACTORS}: expected Llama 3.1's factors for {width // 2} frequencies;"
            " found others, which are not supported"
        )
    if factor == 1:
        return {"rope_type": "default"}
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": length,
    }
