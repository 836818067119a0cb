"""From a config to what the loop needs: labels, tokens, model, base and adapter."""

from __future__ import annotations

import dataclasses
import logging
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

import jlora
from jlora.base import abstract_base, build, example_batch, load_config, load_weights
from jlora.errors import JloraError
from jlora.init import abstract_adapter
from jlora.models import family
from jlora.names import module_names
from jlora.paths import leaves_by_path
from jlora.targets import is_trained_whole
from train.batches import bucket_lengths
from train.config import Config, LoraSection
from train.data import Data, Split
from train.labels import Labels, encode, infer_labels
from train.sources import local_path
from train.tokens import Tokens, default_cache_dir, tokenize

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A split ready for batches: rows, tokens, encoded labels, and the id that fills rows up."""

    rows: Split
    tokens: Tokens
    labels: np.ndarray
    pad_id: int


@dataclasses.dataclass(frozen=True)
class Adapted:
    """The model with what is trained on it.

    Attributes:
      model: linen module. base: its frozen tree.
      adapter: {path: LowRank | Full}: everything that is trained, with every method.
      lora: the adapter's settings; None with other methods.
    """

    model: Any
    base: Any
    adapter: dict[str, Any]
    lora: jlora.LoraConfig | None


def model_folder(name: str) -> str:
    """The folder of a local model, or the hub's name as it is."""
    folder = local_path(name)
    return name if folder is None else str(folder)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer beside the model.

    Raises:
      JloraError: the folder or hub model has none.
    """
    try:
        return AutoTokenizer.from_pretrained(model_folder(name))
    except (OSError, ValueError) as error:
        raise JloraError(f"{name}: expected a tokenizer beside the model (tokenizer.json); found {error}") from None


def prepare_splits(
    config: Config, data: Data, tokenizer: PreTrainedTokenizerBase
) -> tuple[Labels, dict[str, Prepared], tuple[int, ...]]:
    """(labels, {split: Prepared}, bucket lengths); labels come from the training rows."""
    labels = infer_labels(data.splits["train"], config.task, data.label_names)
    # Labels first: they are cheap to check, and a wrong one is known before anything is tokenized.
    encoded = {name: encode(split, labels, name) for name, split in data.splits.items()}
    splits = {
        name: Prepared(
            split,
            tokenize(split, tokenizer, config.data.max_length, default_cache_dir()),
            encoded[name],
            tokenizer.pad_token_id,
        )
        for name, split in data.splits.items()
    }
    for name, split in splits.items():
        if split.tokens.cut:
            share = f"{split.tokens.cut:,} of {len(split.tokens):,}"
            logger.warning("%s: %s rows cut at data.max_length=%d tokens", name, share, config.data.max_length)
    lengths = np.concatenate([split.tokens.lengths for split in splits.values()])
    return labels, splits, bucket_lengths(lengths, config.train.bucket_count, limit=config.data.max_length)


def prepare_model(config: Config, labels: Labels) -> Adapted:
    """Model, base weights and a fresh adapter (or the one of `lora.from`)."""
    head_key, adapter_key = jax.random.split(jax.random.key(config.seed))
    model = _build(config, labels.config_entries())
    base = load_weights(model, model_folder(config.model), key=head_key)
    example = example_batch(model.config)
    if config.method != "lora":
        return Adapted(model, base, whole_leaves(config, base), None)
    lora = lora_config(config.lora, model)
    if config.lora.from_ is not None:
        adapter, stored = jlora.load_adapter(config.lora.from_, base, model.apply, example)
        lora = dataclasses.replace(stored, lora_dropout=lora.lora_dropout)
        return Adapted(model, base, _with_dropout(adapter, lora.lora_dropout), lora)
    return Adapted(model, base, jlora.init(adapter_key, lora, base, model.apply, example), lora)


def abstract_model(config: Config) -> Adapted:
    """The same without weights and data: every array is a ShapeDtypeStruct."""
    names = config.data.label_names
    distinct = dict.fromkeys(names.values() if isinstance(names, dict) else names or [])
    overrides: dict[str, Any] = {"id2label": dict(enumerate(distinct))} if distinct else {}
    if config.task == "regression":
        overrides = {"num_labels": 1}
    model = _build(config, overrides)
    base = abstract_base(model)
    if config.method != "lora":
        return Adapted(model, base, jax.eval_shape(lambda base: whole_leaves(config, base), base), None)
    lora = lora_config(config.lora, model)
    return Adapted(model, base, abstract_adapter(lora, base, model.apply, example_batch(model.config)), lora)


def lora_config(section: LoraSection, model: Any) -> jlora.LoraConfig:
    """The section as the library's LoraConfig; targets that are not given are the family's."""
    fields = section.model_dump(exclude={"from_"})
    if fields["target_modules"] is None:
        fields["target_modules"] = list(family(model.config.model_type).TARGETS)
    return jlora.LoraConfig(**fields, task_type="SEQ_CLS")


def whole_leaves(config: Config, base: Any) -> dict[str, jlora.Full]:
    """What `method: full` trains (every leaf) and `method: head` (the classification head)."""
    head = jlora.LoraConfig(task_type="SEQ_CLS")
    return {
        path: jlora.Full(jnp.array(leaf, copy=True))
        for path, leaf in leaves_by_path(base).items()
        if config.method == "full" or is_trained_whole(head, module_names(path, None)[0])
    }


def steps_of(config: Config, rows: int) -> tuple[int, int]:
    """(optimizer steps of an epoch, optimizer steps of the run) for so many training rows."""
    batch = config.train.batch_size * config.train.gradient_accumulation_steps
    per_epoch = math.ceil(rows / batch)
    return per_epoch, config.train.max_steps or max(1, round(config.train.epochs * per_epoch))


def _build(config: Config, overrides: dict[str, Any]) -> Any:
    model_config = load_config(model_folder(config.model), **overrides)
    return build(model_config, dtype=jnp.dtype(config.train.dtype), remat=config.train.remat)


def _with_dropout(adapter: dict[str, Any], rate: float) -> dict[str, Any]:
    return {
        path: dataclasses.replace(entry, dropout=rate) if isinstance(entry, jlora.LowRank) else entry
        for path, entry in adapter.items()
    }
