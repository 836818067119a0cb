"""Writes adapters for llama.cpp: a GGUF file that is loaded together with the base's (`llama-cli --lora FILE`)."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import gguf
import numpy as np

from jlora.errors import JloraError, UnsupportedModelError
from jlora.files.atomic_folder import whole_folder
from jlora.lora.entries import Adapter, Entry, LowRank
from jlora.lora.matrices import Matrices, to_matrices
from jlora.peft.tensor_keys import peft_layer_names

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class _Architecture(NamedTuple):
    """A family in llama.cpp: its name, and whether llama.cpp reorders the rows of q and k."""

    name: gguf.MODEL_ARCH
    permuted: bool = False


_ARCHITECTURES = {
    "gemma": _Architecture(gguf.MODEL_ARCH.GEMMA),
    "gemma2": _Architecture(gguf.MODEL_ARCH.GEMMA2),
    "gemma3_text": _Architecture(gguf.MODEL_ARCH.GEMMA3),
    "gpt2": _Architecture(gguf.MODEL_ARCH.GPT2),
    "llama": _Architecture(gguf.MODEL_ARCH.LLAMA, permuted=True),
    "mistral": _Architecture(gguf.MODEL_ARCH.LLAMA, permuted=True),
    "phi3": _Architecture(gguf.MODEL_ARCH.PHI3),
    "qwen2": _Architecture(gguf.MODEL_ARCH.QWEN2),
    "qwen3": _Architecture(gguf.MODEL_ARCH.QWEN3),
}
"""{Hugging Face's model_type: llama.cpp's} of families whose linear weights llama.cpp uses unchanged or reordered."""


def save_gguf_lora(
    file: str | os.PathLike,
    adapter: Adapter,
    config: PreTrainedConfig,
    *,
    dtype: Literal["float32", "float16"] = "float32",
) -> None:
    """Writes an adapter as a GGUF file: A and B of each layer, and one lora_alpha.

    The tensors are called `blk.3.attn_q.weight.lora_a` (r, in) and `blk.3.attn_q.weight.lora_b` (out, r). For llama and
    mistral the rows of B of q and k are in llama.cpp's order: within a head, feature i is next to i + half the width.

    llama.cpp scales each update by lora_alpha / r, with r from the tensors, and by 1 if lora_alpha is 0. The file gets
    the largest lora_alpha of all layers; a layer with a smaller one (alpha_pattern, rsLoRA, mixtures) has the ratio
    multiplied into B.

    Args:
      file: the file to write; its folder is created.
      adapter: {path: LowRank} of linear weights.
      config: of the base model: a gemma, gemma2, gemma3_text, gpt2, llama, mistral, phi3, qwen2 or qwen3.
      dtype: of the tensors.

    Raises:
      UnsupportedModelError: another family.
      JloraError: an entry that the format cannot hold (`Full`, `Rows`, DoRA, an embedding, a convolution), or a module
        for which llama.cpp has no name.
    """
    if config.model_type not in _ARCHITECTURES:
        raise UnsupportedModelError(
            f"model_type: expected one whose adapters llama.cpp takes from here ({', '.join(_ARCHITECTURES)}); found"
            f" {config.model_type!r}; merge the adapter, and convert the merged model with llama.cpp"
        )
    architecture = _ARCHITECTURES[config.model_type]
    layers = _layers(adapter, gguf.get_tensor_name_map(architecture.name, config.num_hidden_layers))
    alpha = max((float(np.abs(scale).max()) * len(scale) for _, _, scale in layers.values()), default=0.0) or 1.0
    tensors: dict[str, np.ndarray] = {}
    for name, (a, b, scale) in layers.items():
        folded = np.asarray(b) * (np.asarray(scale) * len(scale) / alpha)
        tensors[f"{name}.weight.lora_a"] = np.asarray(a)
        tensors[f"{name}.weight.lora_b"] = _in_their_order(folded, name, architecture, config)
    _write(Path(file), architecture, tensors, alpha, np.dtype(dtype))


def _layers(adapter: Adapter, names: Any) -> dict[str, Matrices]:
    """Returns {GGUF's name of the weight, without `.weight`: A, B and scale} of all adapted layers."""
    layers = {}
    for path, entry in adapter.items():
        low_rank = _require_supported(path, entry)
        for module, matrices in zip(peft_layer_names(path, low_rank), to_matrices(low_rank), strict=True):
            name = names.get_name(module)
            if name is None:
                raise JloraError(
                    f"{path}: expected a weight that llama.cpp has; found {module}, for which it has no name"
                )
            if len(matrices.scale):
                layers[name] = matrices
    return layers


def _require_supported(path: str, entry: Entry) -> LowRank:
    merge = "merge the adapter, and convert the merged model with llama.cpp"
    if not isinstance(entry, LowRank):
        raise JloraError(f"{path}: expected A and B alone for llama.cpp, found what is trained whole; {merge}")
    if entry.magnitude is not None:
        raise JloraError(f"{path}: expected plain LoRA for llama.cpp, found DoRA's magnitude; {merge}")
    if entry.kind != "linear":
        found = "an embedding" if entry.kind == "lookup" else "a convolution"
        raise JloraError(f"{path}: expected a linear weight for llama.cpp, found {found}; {merge}")
    return entry


def _in_their_order(b: np.ndarray, name: str, architecture: _Architecture, config: Any) -> np.ndarray:
    """Reorders the rows of B (out, r) for q and k as llama.cpp does: features of a rotary pair are adjacent."""
    heads = {"attn_q": config.num_attention_heads, "attn_k": getattr(config, "num_key_value_heads", None)}
    count = heads.get(name.rpartition(".")[2]) if architecture.permuted else None
    if count is None:
        return b
    return b.reshape(count, 2, -1, b.shape[1]).swapaxes(1, 2).reshape(b.shape)


def _write(
    file: Path, architecture: _Architecture, tensors: dict[str, np.ndarray], alpha: float, dtype: np.dtype
) -> None:
    with (
        whole_folder(file.parent, name=f".{file.name}.partial") as partial,
        closing(gguf.GGUFWriter(partial / file.name, gguf.MODEL_ARCH_NAMES[architecture.name])) as writer,
    ):
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(alpha))
        for name, tensor in tensors.items():
            writer.add_tensor(name, np.ascontiguousarray(tensor, dtype))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
