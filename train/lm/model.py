"""Makes from a config the model of `jlora lm`: config, weights (quantized or not) and adapter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

import jlora
from jlora.generation.open_model import causal_config
from jlora.lora.adapted_model import Adapted
from jlora.pretrained.grown_tables import load_grown
from jlora.pretrained.load import abstract_base, build, example_batch
from jlora.pretrained.source import PretrainedSource
from jlora.tree.leaf_paths import leaves_by_path
from train.data.random_streams import Stream, stream_key
from train.devices.placement import put_adapted
from train.lm.config import LMConfig
from train.lm.default_targets import trainer_targets
from train.lm.vocabulary.added_tokens import require_trained, training_added, vocabulary
from train.sources.starting_adapter import lora_config, settings, with_abstract_adapter, with_adapter

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def prepare_model(
    config: LMConfig, source: PretrainedSource, mesh: Mesh | None = None, added: Sequence[int] = ()
) -> Adapted:
    """Loads the model and the base's weights, and makes what is trained, on the mesh if there is one.

    With `method: lora` that is a fresh adapter, drawn from the config's seed, or that of `lora.from`; `quantize`
    quantizes the base. With `method: full` the result's `adapter` has a copy of every weight as Full, and its `lora` is
    None.

    Args:
      added: the ids of added tokens, from `add_tokens`; their rows are newly initialised, and trained.
    """
    source.fetch_weights()  # which say whether the head is tied
    model, key = build_model(config, source, added), stream_key(config.seed, Stream.ADAPTER)
    load = partial(load_grown, model, source, mesh=mesh)
    return put_adapted(mesh, _adapt_base(config, model, load, key, added), config)


def _adapt_base(
    config: LMConfig, model: Any, load: Callable[..., Any], key: jax.Array, added: Sequence[int]
) -> Adapted:
    if config.method == "full":
        base = load()
        return Adapted(model, base, _whole_leaves(base), None)
    lora = _lora(config, model.config, added)
    dtype = _base_dtype(config)
    if config.quantize is not None and config.lora.init_lora_weights == "loftq":
        dense, example = load(param_dtype=dtype), example_batch(model.config)
        return Adapted(model, *jlora.init_loftq(key, lora, dense, model.apply, example, kind=config.quantize), lora)
    base = load(param_dtype=dtype, quantize=config.quantize)
    return with_adapter(config.lora, lora, model, base, key)


def abstract_model(config: LMConfig, source: PretrainedSource, added: Sequence[int] = ()) -> Adapted:
    """Does the same as `prepare_model` without weights: every array is a ShapeDtypeStruct.

    `added` are the ids of the tokens that were added.
    """
    return abstract_on(config, build_model(config, source, added), added)


def abstract_on(config: LMConfig, model: Any, added: Sequence[int] = ()) -> Adapted:
    """Does the same as `abstract_model` for a linen model that may differ from the config's.

    The result's `model` is `model`, and every array is a ShapeDtypeStruct: the base in the dtype in which training
    keeps it (quantized, if the config says so), the adapter, or with `method: full` a Full of every leaf. `added` are
    the ids of the tokens that were added, whose rows are trained.
    """
    base = abstract_base(model)
    if config.method == "full":
        return Adapted(model, base, jax.eval_shape(_whole_leaves, base), None)
    base = jax.eval_shape(lambda base: _cast_and_quantize(config, model, base), base)
    return with_abstract_adapter(config.lora, _lora(config, model.config, added), model, base)


def build_model(config: LMConfig, source: PretrainedSource, added: Sequence[int] = ()) -> Any:
    """Builds the linen model in the config's dtype, without weights.

    Its vocabulary has room for `added`, the ids of the tokens that were added. Of the config `method`, `lora`,
    `train.dtype`, `train.remat` and `train.attention` are read.

    Raises:
      JloraError: there is no such model, or it is not a causal language model; the adapter of `lora.from` does not
        train the rows of the added tokens.
    """
    train, stored = config.train, causal_config(source)
    lora = settings(config.lora, _lora(config, stored, added)) if config.method == "lora" else None
    options: dict[str, Any] = {"dtype": jnp.dtype(train.dtype), "remat": train.remat, "attention": train.attention}
    stored = causal_config(source, lora)
    stored.vocab_size = vocabulary(stored, added)
    if lora is not None and config.lora.from_ is not None:
        require_trained(lora, stored, added, config.lora.from_)
    return build(stored, **options)


def _lora(config: LMConfig, stored: PreTrainedConfig, added: Sequence[int]) -> jlora.LoraConfig:
    lora = lora_config(config.lora, trainer_targets(stored.model_type), "CAUSAL_LM")
    return training_added(lora, stored, added)


def _base_dtype(config: LMConfig) -> Any:
    """Returns the dtype to load the base in: float32 if PiSSA, OLoRA or LoftQ need the exact weights."""
    exact = config.lora.is_residual or config.lora.init_lora_weights == "loftq"
    return jnp.dtype(jnp.float32 if exact else config.train.dtype)


def _cast_and_quantize(config: LMConfig, model: Any, base: Any) -> Any:
    """Converts the base to the form in which it is kept in memory."""
    base = jax.tree.map(lambda x: x.astype(_base_dtype(config)), base)
    if config.quantize is None:
        return base
    return jlora.quantize(base, config.quantize, model.apply, example_batch(model.config))


def _whole_leaves(base: Any) -> dict[str, jlora.Full]:
    return {path: jlora.Full(jnp.array(leaf, copy=True)) for path, leaf in leaves_by_path(base).items()}
