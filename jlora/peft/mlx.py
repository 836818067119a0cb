"""Translates adapters of mlx-lm to PEFT's names and layouts.

adapter_config.json   {"fine_tune_type": "lora", "lora_parameters": {"rank": 8, "scale": 20.0, "dropout": 0.0}, ...}
adapters.safetensors  model.layers.0.self_attn.q_proj.lora_a  (in, r), PEFT's lora_A.weight transposed
                      model.layers.0.self_attn.q_proj.lora_b  (r, out), PEFT's lora_B.weight transposed
                      model.layers.0.self_attn.q_proj.m       (out,), PEFT's lora_magnitude_vector
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jlora.errors import FileError
from jlora.peft.tensor_keys import PREFIX

WEIGHTS = "adapters.safetensors"
_LARGEST = 2**31
_EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings")
_ENDS = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight", "m": "lora_magnitude_vector"}


def is_mlx(fields: Mapping[str, Any]) -> bool:
    """Returns whether these are the fields of mlx-lm's `adapter_config.json`.

    They have no `peft_type`, but `lora_parameters` or `fine_tune_type`.
    """
    return "peft_type" not in fields and ("lora_parameters" in fields or "fine_tune_type" in fields)


def peft_fields(fields: Mapping[str, Any], keys: Iterable[str], file: Path) -> dict[str, Any]:
    """Returns PEFT's fields for the same adapter: {"peft_type": "LORA", ...}.

    `r` is the rank, `lora_alpha` scale * rank, `use_dora` whether the type is dora, `base_model_name_or_path` the field
    `model` or None, and `target_modules` the sorted modules with a key MODULE.lora_a.

    Args:
      fields: of mlx-lm's `adapter_config.json`, which is `file`.
      keys: of `adapters.safetensors`.

    Raises:
      FileError: `fine_tune_type` (default lora) is neither lora nor dora, `lora_parameters` has no integer `rank` or no
        number `scale`, or it has `alpha`, with which versions of mlx-lm differ in the scale; the adapter is of an
        embedding.
    """
    kind, given = fields.get("fine_tune_type", "lora"), fields.get("lora_parameters")
    if kind not in ("lora", "dora"):
        raise FileError(
            f"{file}: fine_tune_type: expected lora or dora, found {kind!r} (an adapter of mlx-lm), which is not"
            " supported. Fuse it into its model with mlx_lm.fuse, and use that"
        )
    rank, scale = (given.get(name) if isinstance(given, dict) else None for name in ("rank", "scale"))
    if type(rank) is not int or abs(rank) > _LARGEST or isinstance(scale, bool) or not isinstance(scale, int | float):
        raise FileError(
            f"{file}: lora_parameters: expected a rank and a scale, found {given!r} (an adapter of mlx-lm). Write"
            " the numbers that it was trained with"
        )
    if isinstance(given, dict) and "alpha" in given:
        raise FileError(
            f"{file}: lora_parameters.alpha: expected none, found {given['alpha']!r}. Early versions of mlx-lm multiply"
            " scale by alpha / rank, later ones ignore alpha. If your version multiplies, write the product as scale;"
            " then delete alpha"
        )
    modules = sorted({key.rpartition(".")[0] for key in keys if key.endswith(".lora_a")})
    if table := next((name for name in modules if name.rpartition(".")[2] in _EMBEDDINGS), None):
        raise FileError(
            f"{file}: {table}.lora_a: expected adapters of linear layers, found one of an embedding (an adapter of"
            " mlx-lm), which mlx-lm also applies where the embedding is the output head; not supported. Train without"
            " it: leave it out of lora_parameters.keys"
        )
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": fields.get("model"),
        "r": rank,
        "lora_alpha": scale * rank,
        "use_dora": kind == "dora",
        "target_modules": modules,
    }


def peft_tensors(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns {PEFT's key: tensor in PEFT's layout}.

    `x.q.lora_a` (in, r) becomes `base_model.model.x.q.lora_A.weight` (r, in), `x.q.lora_b` (r, out) likewise, and
    `x.q.m` becomes `base_model.model.x.q.lora_magnitude_vector`. Other keys only get the prefix.
    """
    renamed = {}
    for key, tensor in tensors.items():
        module, _, end = key.rpartition(".")
        renamed[f"{PREFIX}{module}.{_ENDS.get(end, end)}"] = tensor.T if end in _ENDS else tensor
    return renamed
