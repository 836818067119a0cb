"""What a run ships: the adapter in PEFT's format, the merged model in Hugging Face's, and the proof of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

import jlora
from jlora.algebra.merge import merged_leaves
from jlora.errors import JloraError
from jlora.files.atomic_folder import whole_folder
from jlora.initialization.residual import subtract_initial
from jlora.lora.adapted_model import Adapted
from jlora.pretrained.folder import whole_model
from jlora.pretrained.load import build, load_config, load_weights, save_base
from jlora.tree.leaf_paths import replace_leaves
from jlora.tree.quantized import is_quantized
from train.devices.placement import to_first
from train.devices.processes import first_alone

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOLERANCE = 1e-4
"""The largest difference of logits, merged read back against in memory, that float32 may show."""


def write_adapter(
    folder: Path,
    adapted: Adapted,
    adapter: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase | None,
    label_entries: dict[str, Any] | None,
    base_model: str,
) -> None:
    """The adapter as PEFT opens it on `base_model`, with the tokenizer and a classifier's class names (labels.json).

    Where it was trained on a residual base, it is written as one of twice the rank for the original one.

    Args:
      adapted: its `lora` must not be None.
      label_entries: what a classifier's labels add to its config.json, as `Labels.config_entries` has them.
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
    """The adapter as llama.cpp loads it on the original base."""
    jlora.save_gguf_lora(file, _for_the_original(adapted, adapter), adapted.model.config)


def _for_the_original(adapted: Adapted, adapter: dict[str, Any]) -> dict[str, Any]:
    return adapter if adapted.initial is None else subtract_initial(adapter, adapted.initial)


def write_merged(
    folder: Path, adapted: Adapted, adapter: dict[str, Any], tokenizer: PreTrainedTokenizerBase | None, dtype: str
) -> None:
    """Base and adapter as one checkpoint that transformers opens, with the tokenizer beside it.

    Leaves are merged one after the other, and held in the host's memory. Of several processes all take part, and the
    first one holds the model and writes it.
    """
    leaves = {path: _in_host(leaf) for path, leaf in merged_leaves(adapted.base, adapter)}
    merged = replace_leaves(adapted.base, leaves)
    with first_alone("merged") as writes:
        if writes:
            with whole_model(folder) as partial:
                save_base(partial, adapted.model, merged, dtype=dtype)
                if tokenizer is not None:
                    tokenizer.save_pretrained(partial)


def _in_host(leaf: Any) -> Any:
    """The leaf in numpy, where this process writes; a quantized one, which is small, stays where it is."""
    leaf = to_first(leaf)
    return leaf if is_quantized(leaf) else jax.tree.map(np.asarray, leaf)


def read_back(
    folder: Path, compute_dtype: Any, mesh: Mesh | None = None, *, param_dtype: Any = jnp.float32
) -> tuple[Any, Any]:
    """(model, base) of a folder that `write_merged` wrote, read from its files."""
    model = build(load_config(str(folder)), dtype=compute_dtype)
    return model, load_weights(model, str(folder), param_dtype=param_dtype, mesh=mesh)


def largest_difference(in_memory: np.ndarray, from_files: np.ndarray) -> float:
    """max |a - b| of two arrays of logits."""
    return float(np.max(np.abs(in_memory - from_files)))


def require_equal(difference: float, folder: Path) -> None:
    """Raises JloraError where the merged model's logits are not those of base and adapter in memory."""
    if not difference <= TOLERANCE:
        raise JloraError(
            f"{folder}: read back, its logits differ by {difference:.3g} from those in memory (allowed: {TOLERANCE});"
            " the files must not be used"
        )
