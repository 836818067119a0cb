"""Loads and saves Hugging Face models: config, linen module, frozen tree.

The tree is that of `model.init`, {"params": ...}, so that `model.apply(base, batch)` works. `jlora.tree.module_names`
translates the paths of leaves to checkpoint keys.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh

from jlora.errors import FileError, JloraError, nearest
from jlora.files.bounded_json import read_json
from jlora.gguf.model import gguf_config, is_gguf
from jlora.models.registry import abstract_base, build, example_batch, family
from jlora.pretrained.config_checks import require_plain, require_token_ids
from jlora.pretrained.folder import GENERATION_FILE, WEIGHT_PATTERNS, fetch
from jlora.pretrained.stored_head import with_stored_head
from jlora.pretrained.weights import load_weights, save_base
from jlora.tree.module_names import hf_keys
from jlora.tree.quantized import QuantizationKind

if TYPE_CHECKING:
    from jaxtyping import PRNGKeyArray, PyTree
    from transformers import PreTrainedConfig

__all__ = [
    "abstract_base",
    "build",
    "example_batch",
    "hf_keys",
    "load_base",
    "load_config",
    "load_weights",
    "save_base",
    "stop_ids",
]


def load_config(name: str, *, revision: str | None = None, **overrides: Any) -> PreTrainedConfig:
    """Loads the config of the model folder or hub model `name`; never runs code from a repository.

    If there is a generation_config.json with `eos_token_id`, this replaces the config's own.

    Args:
      name: a folder with config.json, a GGUF file, `package:PACKAGE/PATH` or a hub id.
      revision: the hub's branch, tag or commit.
      overrides: config keys to replace, such as `num_labels`, `id2label`, `label2id`, `problem_type`. Names of labels
        that were stored for another `num_labels` are dropped.

    Raises:
      FileError: no such folder, or a value that the config class does not accept.
      HubError: no such model on the hub.
      UnsupportedModelError: an unsupported `model_type`, code in the repository, or weights quantized by another
        library.
      JloraError: an override that the config class does not have, or labels that contradict `num_labels`.
    """
    from transformers import CONFIG_MAPPING  # takes half a second, and seconds if PyTorch is installed

    place = fetch(name, revision, ["config.json", GENERATION_FILE])
    file = place if is_gguf(place) else place / "config.json"
    stored = gguf_config(place).to_dict() if is_gguf(place) else _read_stored(place)
    family(stored.get("model_type"))
    config_class = CONFIG_MAPPING[stored["model_type"]]
    known = config_class()
    require_plain(file, stored, config_class)
    for key in overrides:
        if not hasattr(known, key):
            raise JloraError(f"{key}: expected a key of {config_class.__name__}{nearest(key, known.to_dict())}")
    try:
        return config_class(**_merge_overrides(stored, overrides))
    except Exception as error:  # transformers' classes raise various exceptions for wrong values
        raise FileError(f"{file}: {error}") from error


def _read_stored(folder: Path) -> dict[str, Any]:
    """Reads config.json; the stop tokens of generation_config.json, which generation uses, replace its own."""
    stored, generation = read_json(folder / "config.json"), folder / GENERATION_FILE
    stops = read_json(generation).get("eos_token_id") if generation.is_file() else None
    require_token_ids(generation, "eos_token_id", stops)
    return stored if stops is None else stored | {"eos_token_id": stops}


def stop_ids(config: PreTrainedConfig) -> tuple[int, ...]:
    """Returns the ids of the tokens that end a text: `config.eos_token_id` as a tuple; () if there is none."""
    found = getattr(config, "eos_token_id", None)
    return tuple(found) if isinstance(found, list | tuple) else () if found is None else (found,)


def _merge_overrides(stored: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """Applies `overrides` to `stored`, and drops label names that were stored for another number of labels."""
    merged = {key: value for key, value in stored.items() if key not in ("dtype", "torch_dtype")} | overrides
    names, count = overrides.get("id2label"), overrides.get("num_labels")
    if names is not None and count is not None and len(names) != count:
        raise JloraError(f"id2label: expected num_labels = {count} names; found {len(names)}")
    if names is not None:
        merged["num_labels"] = len(names)
        merged["label2id"] = overrides.get("label2id") or {label: int(index) for index, label in names.items()}
    elif count is not None and len(stored.get("id2label") or ()) != count:
        merged.pop("id2label", None)
        merged.pop("label2id", None)
    return merged


def load_base(
    name: str,
    *,
    revision: str | None = None,
    num_labels: int | None = None,
    key: PRNGKeyArray | None = None,
    new_head: bool = False,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
    quantize: QuantizationKind | None = None,
    remat: bool = False,
    mesh: Mesh | None = None,
    **config_overrides: Any,
) -> tuple[nn.Module, PyTree]:
    """Loads the linen model and its weights from a Hugging Face folder or hub id.

    Args:
      name: a folder with config.json and safetensors files, a GGUF file, `package:PACKAGE/PATH` (either of them inside
        an installed Python package) or a hub id.
      revision: the hub's branch, tag or commit.
      num_labels: a classifier's number of logits; None means the config's.
      key: initialises a head that the checkpoint does not have.
      new_head: replaces a head for another number of classes with a newly initialised one.
      dtype: the dtype to compute in; logits are float32.
      param_dtype: of the parameters, float32 or bfloat16.
      quantize: "nf4" or "int8" stores the weights of linear layers in 4 or 8 bits (`Quantized` leaves, which
        `jlora.adapt(model.apply)` accepts); the dense model is never in memory.
      remat: compute a layer's values again in the backward pass instead of keeping them.
      mesh: splits the weights over its devices, as `base_shardings` says; no process reads all of them.
      config_overrides: other config keys to replace, such as `id2label`; `tie_word_embeddings=False` gives a tied head
        its own table, a copy of the embedding.

    Returns:
      (model, base): `model.apply(base, batch)` returns logits, float32: (B, num_labels) of a classifier, (B, T, vocab)
      of a causal language model.

    Raises:
      FileError: no such folder; a file is missing, incomplete or refused; a key is missing, unexpected or of another
        shape.
      HubError: the hub has no such model, or cannot be reached.
      UnsupportedModelError: the `model_type`, or a value of the config, is not supported.
      JloraError: an override that the config does not have, a head that is missing without a `key`, or another value of
        `param_dtype` or `quantize`.
    """
    if num_labels is not None:
        config_overrides["num_labels"] = num_labels
    config = load_config(name, revision=revision, **config_overrides)
    fetch(name, revision, WEIGHT_PATTERNS)
    config = with_stored_head(config, name, revision=revision)
    model = build(config, dtype=dtype, remat=remat)
    options: dict[str, Any] = {"param_dtype": param_dtype, "quantize": quantize, "key": key, "new_head": new_head}
    return model, load_weights(model, name, mesh=mesh, revision=revision, **options)
