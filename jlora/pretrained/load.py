"""Loads and saves Hugging Face models: linen module, frozen tree.

The tree is that of `model.init`, {"params": ...}, so that `model.apply(base, batch)` works. `jlora.tree.module_names`
translates the paths of leaves to checkpoint keys.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh

from jlora.errors import JloraError
from jlora.models.registry import abstract_base, build, example_batch
from jlora.pretrained.source import PretrainedSource
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
    "load_weights",
    "save_base",
    "stop_ids",
]


def stop_ids(config: PreTrainedConfig) -> tuple[int, ...]:
    """Returns the ids of the tokens that end a text: `config.eos_token_id` as a tuple; () if there is none."""
    found = getattr(config, "eos_token_id", None)
    return tuple(found) if isinstance(found, list | tuple) else () if found is None else (found,)


def _require_arguments(name: Any, dtype: Any) -> None:
    if not isinstance(name, str | os.PathLike):
        raise JloraError(f"name: expected a folder, a GGUF file or a name on the hub, found {name!r}")
    try:
        known = jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except TypeError:
        known = False
    if not known:
        raise JloraError(f"dtype: expected a floating dtype, such as jnp.float32 or jnp.bfloat16, found {dtype!r}")


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
      JloraError: an override that the config does not have, a head that is missing without a `key`, another value of
        `param_dtype` or `quantize`, a `name` that is not text, or a `dtype` that is not floating point.
    """
    _require_arguments(name, dtype)
    if num_labels is not None:
        config_overrides["num_labels"] = num_labels
    source = PretrainedSource(name, revision)
    config = source.config_with(**config_overrides)
    source.fetch_weights()  # which say whether the head is tied
    model = build(source.with_stored_head(config), dtype=dtype, remat=remat)
    options: dict[str, Any] = {"param_dtype": param_dtype, "quantize": quantize, "key": key, "new_head": new_head}
    return model, load_weights(model, source, mesh=mesh, **options)
