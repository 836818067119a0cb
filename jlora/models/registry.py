"""The table of supported models by Hugging Face's `model_type`, and functions that build one of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jlora.errors import JloraError, UnsupportedModelError
from jlora.models.blocks.rotary import require_rope_type
from jlora.models.families import (
    bert,
    bloom,
    distilbert,
    falcon,
    gemma,
    gemma2,
    gemma3,
    gpt2,
    gpt_neo,
    gpt_neox,
    gptj,
    llama,
    mistral,
    opt,
    phi3,
    qwen2,
    qwen3,
    roberta,
)
from jlora.models.family import Family

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

FAMILIES: dict[str, Family] = {
    "bert": bert.FAMILY,
    "bloom": bloom.FAMILY,
    "distilbert": distilbert.FAMILY,
    "falcon": falcon.FAMILY,
    "gemma": gemma.FAMILY,
    "gemma2": gemma2.FAMILY,
    "gemma3_text": gemma3.FAMILY,
    "gpt2": gpt2.FAMILY,
    "gpt_neo": gpt_neo.FAMILY,
    "gpt_neox": gpt_neox.FAMILY,
    "gptj": gptj.FAMILY,
    "llama": llama.FAMILY,
    "mistral": mistral.FAMILY,
    "opt": opt.FAMILY,
    "phi3": phi3.FAMILY,
    "qwen2": qwen2.FAMILY,
    "qwen3": qwen3.FAMILY,
    "roberta": roberta.FAMILY,
}


def family(model_type: Any, where: str = "config.json") -> Family:
    """Returns the family of models that Hugging Face calls `model_type`; `where` is the file that it is from.

    Raises:
      UnsupportedModelError: the family is not supported.
    """
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise UnsupportedModelError(
            f"{where}: model_type: expected one of {', '.join(FAMILIES)}; found {model_type!r}, for which there is no"
            " code here. Take a model of one of these; any other function in JAX takes jlora.init and jlora.adapt"
        )
    return FAMILIES[model_type]


def default_targets(model_type: str) -> tuple[str, ...]:
    """Returns PEFT's default `target_modules` for models of this type: ("query", "value") for "bert".

    Raises:
      UnsupportedModelError: the family is not supported.
    """
    return family(model_type).targets


def build(
    config: PreTrainedConfig, *, dtype: Any = jnp.float32, remat: bool = False, attention: str = "auto"
) -> nn.Module:
    """Builds the linen model of `config`, without weights: a sequence classifier or a causal language model.

    Args:
      config: of one of FAMILIES.
      dtype: the dtype to compute in; parameters and logits are float32.
      remat: compute a layer's values again in the backward pass instead of keeping them.
      attention: the kernel that computes attention: auto, blockwise, cudnn, splash or full; see
        `jlora.models.attention.attention`.

    Raises:
      UnsupportedModelError: the family or a value of the config is not supported; the message names the key.
    """
    require_supported(config)
    return family(config.model_type).model(config, dtype=dtype, remat=remat, attention=attention)


def require_supported(config: PreTrainedConfig, where: str = "config.json") -> None:
    """Raises UnsupportedModelError that begins with `where`, the config's file, and the key of a value not supported.

    Values that only some layers read are checked when the model is first traced.
    """
    for key, honoured in family(config.model_type, where).honoured.items():
        found = getattr(config, key, None)
        if found not in honoured:
            raise UnsupportedModelError(
                f"{where}: {key}: expected {honoured[-1]!r}; found {found!r}, which is not supported"
            )
    if config.hidden_size % config.num_attention_heads and getattr(config, "head_dim", None) is None:
        raise UnsupportedModelError(
            f"{where}: hidden size: expected a multiple of the {config.num_attention_heads} attention "
            f"heads; found {config.hidden_size}"
        )
    require_rope_type(getattr(config, "rope_parameters", None), where)


def example_batch(config: PreTrainedConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of a batch with one row, each int32 (1, 8).

    It has `input_ids` and `attention_mask`, and `token_type_ids` if the family uses them.
    """
    names = ["input_ids", "attention_mask"] + ["token_type_ids"] * family(config.model_type).token_types
    return {name: jax.ShapeDtypeStruct((1, 8), jnp.int32) for name in names}


def abstract_base(model: Any) -> Any:
    """Returns the tree of `model.init`, {"params": ...}, with ShapeDtypeStructs; computes nothing.

    Raises:
      UnsupportedModelError: no model can be built from the config's values.
    """
    try:
        return jax.eval_shape(lambda batch: model.init(jax.random.key(0), batch), example_batch(model.config))
    except JloraError:
        raise
    except Exception as error:  # layers raise various exceptions for wrong values
        kind = type(model).__name__
        raise UnsupportedModelError(
            f"config.json: expected values of a {kind}; found one that it does not take: {error}"
        ) from error
