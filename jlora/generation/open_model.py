"""Loads a causal language model for generation from a run, a folder, a GGUF file or the hub, and its adapter if any."""

from __future__ import annotations

import dataclasses
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax.numpy as jnp

from jlora.errors import FileError, JloraError, UnsupportedModelError
from jlora.files.path_checks import as_path
from jlora.files.run_folder import find_adapter
from jlora.generation.generator import Generator
from jlora.generation.stored_vocabulary import with_stored_vocabulary
from jlora.lora.adapted_model import Adapted
from jlora.lora.config import LoraConfig
from jlora.lora.tied_embedding import needs_own_head
from jlora.models.registry import FAMILIES, family
from jlora.peft.base_model import base_of
from jlora.peft.folder import load_adapter, read_lora_config
from jlora.pretrained.load import build, example_batch, load_weights, stop_ids
from jlora.pretrained.locate import settle_hub
from jlora.pretrained.source import PretrainedSource

if TYPE_CHECKING:
    from jax.sharding import Mesh
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """A loaded language model, from `load_language_model`.

    Attributes:
      adapted: the model, its base and its adapter ({} if there is none).
      tokenizer: the adapter's, or else the model's.
      stop_ids: the ids of the tokens that end a text.
    """

    adapted: Adapted
    tokenizer: PreTrainedTokenizerBase
    stop_ids: tuple[int, ...]

    @property
    def generator(self) -> Generator:
        """What completes prompts with the base and the adapter."""
        return Generator(self.adapted.model, self.adapted.base, self.adapted.adapter or None)


def causal_config(source: PretrainedSource, lora: LoraConfig | None = None) -> PreTrainedConfig:
    """Copies the config of a causal language model, and unties the head if the files or `lora` need that.

    Args:
      source: the model.
      lora: `tie_word_embeddings` is set to False if it adapts the embedding or the head, or trains one in full, without
        `ensure_weight_tying`. None leaves the config as it is.

    Raises:
      FileError: there is no such model (HubError, a subclass: not on the hub), or its config.json is damaged.
      UnsupportedModelError: the `model_type` is not supported, or not a causal language model.
    """
    config = copy(source.with_stored_head(source.config))
    if family(config.model_type).task != "CAUSAL_LM":
        known = ", ".join(kind for kind, found in FAMILIES.items() if found.task == "CAUSAL_LM")
        raise UnsupportedModelError(
            f"{source.name}: config.json: model_type: expected a causal language model ({known}),"
            f" found {config.model_type!r}; jlora classify trains classifiers, jlora predict labels texts with them"
        )
    if lora is not None and needs_own_head(lora, family(config.model_type).embedding):
        config.tie_word_embeddings = False
    return config


def load_language_model(
    name: str,
    *,
    adapter: str | None = None,
    base: str | None = None,
    use_adapter: bool = True,
    dtype: Any = jnp.float32,
    quantize: Literal["int8", "nf4"] | None = None,
    mesh: Mesh | None = None,
) -> LanguageModel:
    """Opens a run folder (its merged/, or else its adapter/), an adapter folder, or a model.

    Args:
      name: a folder, a GGUF file, a hub model, or package:PACKAGE/PATH; an adapter folder may be PEFT's.
      adapter: the folder of an adapter to put on the model `name`; then `base` must be None.
      base: the base model, if `name` is an adapter; None means the one that its configuration names.
      use_adapter: if false, loads only the base.
      dtype: of the computation and the weights.
      quantize: how the base is stored; None means not quantized.
      mesh: its devices share the base's weights, as `base_shardings` says; None is one device.

    Raises:
      JloraError: there is no such model, it is a classifier, the adapter does not fit its base, or both `adapter` and
        `base` are given.
    """
    name, folder = _parts(name, adapter, base, use_adapter)
    settle_hub(name)
    source, options = PretrainedSource(name), {"dtype": dtype, "quantize": quantize, "mesh": mesh}
    return open_language_model(source, folder, use_adapter=use_adapter, **options)


def open_language_model(
    source: PretrainedSource,
    folder: Path | None,
    *,
    use_adapter: bool = True,
    dtype: Any = jnp.float32,
    quantize: Literal["int8", "nf4"] | None = None,
    mesh: Mesh | None = None,
) -> LanguageModel:
    """Opens the model `source` with the adapter in `folder`, which may be None; the rest as for `load_language_model`.

    The tokenizer is the adapter's, if there is one in its folder.
    """
    source.fetch_weights()  # which say whether the head is tied
    lora = read_lora_config(folder) if folder is not None and use_adapter else None
    model = build(causal_config(source, lora), dtype=jnp.dtype(dtype))
    weights = load_weights(model, source, param_dtype=jnp.dtype(dtype), quantize=quantize, mesh=mesh)
    if folder is not None and use_adapter:
        model, weights = with_stored_vocabulary(folder, model, weights)
    adapted = Adapted(model, weights, {}, None)
    if folder is not None and use_adapter:
        entries, config = load_adapter(folder, weights, model.apply, example_batch(model.config))
        adapted = dataclasses.replace(adapted, adapter=entries, lora=config)
    if folder is not None and (folder / "tokenizer_config.json").is_file():
        source = PretrainedSource(folder)
    tokenizer = source.tokenizer
    return LanguageModel(adapted, tokenizer, end_ids(model.config, tokenizer))


def _parts(name: str, adapter: str | None, base: str | None, use_adapter: bool) -> tuple[str, Path | None]:
    """Returns (the base's name, the folder of its adapter or None)."""
    if adapter is not None:
        if base is not None:
            raise JloraError(f"--base: expected none together with --adapter, whose base is --model; found {base!r}")
        return name, as_path(adapter)
    path = as_path(name)
    merged = [path, path / "merged"]
    found = next((place for place in merged if (place / "config.json").is_file()), None)
    if found is not None and (use_adapter or found == path):
        return str(found), None
    folder = find_adapter(path)
    if folder is not None:
        return base or base_of(folder), folder
    if path.is_dir():
        raise FileError(
            f"{path}: expected a run folder (merged/, adapter/), a model (config.json) or an adapter"
            " (adapter_config.json), found none of them"
        )
    return name, None


def end_ids(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Returns the ids of the tokens that end a text: `eos_token_id` of the model's config, then the tokenizer's.

    The config's may be a number, a list or None, the tokenizer's a number or None. Each id is there once: [7, 2] and 2
    give (7, 2); None counts as no id, and the result may be ().
    """
    ids = (*stop_ids(config), tokenizer.eos_token_id)
    return tuple(dict.fromkeys(index for index in ids if index is not None))
