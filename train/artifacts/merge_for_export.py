"""Merges base and adapter for export: writes the adapter as PEFT does and the merged model as Hugging Face does.

The merged model is read back and checked.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

import jlora
from jlora.algebra.merge import merge_leaves
from jlora.errors import JloraError
from jlora.files.atomic_folder import whole_folder
from jlora.initialization.residual import subtract_initial
from jlora.lora.adapted_model import Adapted
from jlora.pretrained.folder import whole_model
from jlora.pretrained.load import build, load_weights, save_base
from jlora.pretrained.source import PretrainedSource
from jlora.tree.leaf_paths import replace_leaves
from jlora.tree.quantized import is_quantized
from train.devices.placement import to_first
from train.devices.processes import first_alone

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOLERANCE = 1e-4
"""The largest difference of float32 logits that is allowed between the merged model read back and that in memory."""


def write_adapter(
    folder: Path,
    adapted: Adapted,
    adapter: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase | None,
    label_entries: dict[str, Any] | None,
    base_model: str,
) -> None:
    """Writes the adapter for PEFT, with the tokenizer and a classifier's class names (labels.json).

    The folder gets adapter_config.json, adapter_model.safetensors, and labels.json and the tokenizer's files if they
    are given. An adapter that was trained on a residual base (`adapted.initial` is not None) is converted to one of
    twice the rank for the original base.

    Args:
      folder: written as a whole, or not at all.
      adapted: its `lora` must not be None.
      adapter: the trained one, {path: entry}.
      tokenizer: None if there is none to write.
      label_entries: keys that a classifier's labels add to its config.json, from `Labels.config_entries`; None without
        labels.
      base_model: the base that PEFT loads it on.
    """
    assert adapted.lora is not None
    with whole_folder(folder) as partial:
        jlora.save_adapter(partial, _for_the_original(adapted, adapter), adapted.lora, base_model=base_model)
        if label_entries is not None:
            text = json.dumps(label_entries, indent=2) + "\n"
            (partial / "labels.json").write_text(text, encoding="utf-8")
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)


def write_gguf_lora(file: Path, adapted: Adapted, adapter: dict[str, Any]) -> None:
    """Writes the adapter, {path: entry}, as a GGUF file for llama.cpp, for the original base.

    An adapter that was trained on a residual base (`adapted.initial` is not None) is converted to one of twice the rank
    for the original base. The file's metadata are those of the config of `adapted.model`.

    Raises:
      JloraError: the file cannot hold the adapter (entries other than LowRank, DoRA's magnitudes) or the model's
        family.
    """
    jlora.save_gguf_lora(file, _for_the_original(adapted, adapter), adapted.model.config)


def _for_the_original(adapted: Adapted, adapter: dict[str, Any]) -> dict[str, Any]:
    return adapter if adapted.initial is None else subtract_initial(adapter, adapted.initial)


def write_merged(
    folder: Path, adapted: Adapted, adapter: dict[str, Any], tokenizer: PreTrainedTokenizerBase | None, dtype: str
) -> None:
    """Merges base and adapter and writes them as one checkpoint for transformers, with the tokenizer.

    The folder, which is written as a whole or not at all, gets config.json, safetensors files and, unless it is None,
    the tokenizer's files. Leaves are merged one after another into the host's memory. With several processes all take
    part in merging, but only the first one keeps the model in memory and writes it.

    Args:
      adapted: its `model` and `base` are read.
      adapter: the trained one, {path: entry}; {} writes the base.
      dtype: of the files: "float32", "bfloat16" or "float16".
    """
    leaves = {path: _in_host(leaf) for path, leaf in merge_leaves(adapted.base, adapter)}
    merged = replace_leaves(adapted.base, leaves)
    with first_alone("merged") as writes:
        if writes:
            with whole_model(folder) as partial:
                save_base(partial, adapted.model, merged, dtype=dtype)
                if tokenizer is not None:
                    tokenizer.save_pretrained(partial)


def _in_host(leaf: Any) -> Any:
    """Copies the leaf to the first process's host memory; a quantized one, which is small, is not copied to it."""
    leaf = to_first(leaf)
    return leaf if is_quantized(leaf) else jax.tree.map(np.asarray, leaf)


def read_back(
    folder: Path, compute_dtype: Any, mesh: Mesh | None = None, *, param_dtype: Any = jnp.float32
) -> tuple[Any, Any]:
    """Reads (model, base) from the files of a folder that `write_merged` wrote.

    The model, a linen module, computes in `compute_dtype`; the base, a tree of weights, has arrays of `param_dtype`, on
    the mesh if there is one.
    """
    source = PretrainedSource(folder)
    model = build(source.config, dtype=compute_dtype)
    return model, load_weights(model, source, param_dtype=param_dtype, mesh=mesh)


def largest_difference(in_memory: np.ndarray, from_files: np.ndarray) -> float:
    """Returns max |a - b| of two arrays of logits of one shape; NaN if either has one."""
    return float(np.max(np.abs(in_memory - from_files)))


def require_equal(difference: float, folder: Path) -> None:
    """Raises JloraError if the merged model's logits differ from those of base and adapter in memory.

    `difference` is a result of `largest_difference`; up to 1e-4 is allowed, NaN is not. The error names `folder`.
    """
    if not difference <= TOLERANCE:
        raise JloraError(
            f"{folder}: read back, its logits differ by {difference:.3g} from those in memory (allowed: {TOLERANCE});"
            " the files must not be used"
        )
