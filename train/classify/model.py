"""Makes from a config what the training loop needs: labels, tokens, model, base and adapter."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

import jlora
from jlora.errors import JloraError
from jlora.lora.adapted_model import Adapted
from jlora.lora.targets import is_trained_whole
from jlora.models.registry import FAMILIES, family
from jlora.pretrained.load import abstract_base, build, load_weights
from jlora.pretrained.source import PretrainedSource
from jlora.pretrained.tokenizer import pad_id
from jlora.pretrained.weights import new_heads
from jlora.tree.leaf_paths import leaves_by_path
from jlora.tree.module_names import module_names
from train.classify.config import Config
from train.classify.data.label_notes import describe_labels, near_equal
from train.classify.data.labels import Labels, encode_rows, infer_labels, of_one_kind
from train.classify.data.splits import Data, Split
from train.classify.data.tokens import Tokens, default_cache_dir, tokenize
from train.data.bad_rows import note_left_out
from train.data.random_streams import Stream, stream_key
from train.devices.placement import put_adapted
from train.sources.starting_adapter import lora_config, with_abstract_adapter, with_adapter

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A split that is ready for batches.

    Attributes:
      rows: texts and raw labels.
      tokens: of the same rows.
      labels: the result of `encode_labels`.
      pad_id: the id that pads rows.
    """

    rows: Split
    tokens: Tokens
    labels: np.ndarray
    pad_id: int

    @property
    def lengths(self) -> np.ndarray:
        """The number of tokens of each row, int (n,)."""
        return self.tokens.lengths

    def __len__(self) -> int:
        return len(self.tokens)


def prepare_splits(
    config: Config, data: Data, tokenizer: PreTrainedTokenizerBase
) -> tuple[Labels, dict[str, Prepared]]:
    """Returns (labels, {split: Prepared}); the labels come from the training rows, and the log describes them.

    The splits are those of `data.splits`, `train` among them, without rows left out by `data.skip_bad_rows`. Of the
    config `task`, `data.skip_bad_rows` and `data.max_length` are read. Tokens are cached in `default_cache_dir()`.

    Raises:
      JloraError: labels that fit no task or differ in kind, or a label that does not fit, with file and row; or
        `data.max_length` is out of the tokenizer's range.
    """
    skip, train = config.data.skip_bad_rows, data.splits["train"]
    rest = of_one_kind(train) if skip else train
    labels = infer_labels(rest, config.task, data.label_names, data.splits)
    # Labels first: they are cheap to check, so a wrong one is found before anything is tokenized.
    rows, encoded = {}, {}
    for name, given in data.splits.items():
        rows[name], encoded[name], errors = encode_rows(given, labels, name, skip)
        for line in [*note_left_out(name, errors, len(given)), describe_labels(labels, encoded[name], name)]:
            logger.info(line)
    for line in near_equal(labels):
        logger.warning("classes: %s", line)
    splits = {
        name: Prepared(
            kept,
            tokenize(kept, tokenizer, config.data.max_length, default_cache_dir()),
            encoded[name],
            pad_id(tokenizer),
        )
        for name, kept in rows.items()
    }
    for name, split in splits.items():
        if split.tokens.cut:
            share = f"{split.tokens.cut:,} of {len(split.tokens):,}"
            logger.warning("%s: %s rows cut at data.max_length=%d tokens", name, share, config.data.max_length)
    return labels, splits


def prepare_model(config: Config, source: PretrainedSource, labels: Labels, mesh: Mesh | None = None) -> Adapted:
    """Loads the encoder and its weights, and makes what is trained, on the mesh if there is one.

    With `method: lora` that is a fresh adapter, or that of `lora.from`; with other methods the result's `lora` is None
    and its `adapter` is that of `whole_leaves`. A head that the checkpoint lacks, or that `new_head` replaces, is drawn
    from the config's seed.

    Args:
      source: the encoder.
      labels: say how many outputs the head has.
    """
    model = build_model(config, source, **labels.config_entries())
    head_key = stream_key(config.seed, Stream.NEW_HEAD)
    base = load_weights(model, source, key=head_key, new_head=config.new_head, mesh=mesh)
    heads = new_heads(model, source, new_head=config.new_head)
    if config.method == "lora":
        lora, key = _lora_config(config, model), stream_key(config.seed, Stream.ADAPTER)
        adapted = with_adapter(config.lora, lora, model, base, key, _modules_of(heads))
    else:
        adapted = Adapted(model, base, whole_leaves(config, base), None)
    _warn_of_frozen_heads(adapted, source.place, heads)
    return put_adapted(mesh, adapted, config)


def abstract_model(config: Config, source: PretrainedSource) -> Adapted:
    """Does the same as `prepare_model` without weights and data: every array is a ShapeDtypeStruct.

    The head has the classes of `data.label_names`, else those of the columns if `data.label` is a list, else as many as
    the model's config.json; one output for `task: regression`.
    """
    columns = config.data.label if isinstance(config.data.label, list) else []  # each is a class
    names = config.data.label_names or columns
    distinct = dict.fromkeys(names.values() if isinstance(names, dict) else names)
    overrides: dict[str, Any] = {"id2label": dict(enumerate(distinct))} if distinct else {}
    if config.task == "regression":
        overrides = {"num_labels": 1}
    model = build_model(config, source, **overrides)
    base = abstract_base(model)
    if config.method != "lora":
        return Adapted(model, base, jax.eval_shape(lambda base: whole_leaves(config, base), base), None)
    # Only a stored adapter may have the heads; without one, no weights are opened.
    heads = new_heads(model, source, new_head=config.new_head) if config.lora.from_ else {}
    return with_abstract_adapter(config.lora, _lora_config(config, model), model, base, _modules_of(heads))


def _modules_of(heads: Iterable[str]) -> list[str]:
    """Returns the names of the modules with leaves at these paths."""
    return [module_names(path, None)[0] for path in heads]


def _lora_config(config: Config, model: Any) -> jlora.LoraConfig:
    return lora_config(config.lora, list(family(model.config.model_type).targets), "SEQ_CLS")


def whole_leaves(config: Config, base: Any) -> dict[str, jlora.Full]:
    """Returns {path: Full} of the leaves that `method: full` (all) or `method: head` (the head) trains.

    The head is everything in modules whose names end in `classifier` or `score`. The values are copies of the base's
    arrays. `base` is the model's tree.
    """
    head = jlora.LoraConfig(task_type="SEQ_CLS")
    return {
        path: jlora.Full(jnp.array(leaf, copy=True))
        for path, leaf in leaves_by_path(base).items()
        if config.method == "full" or is_trained_whole(head, module_names(path, None)[0])
    }


def classifier_config(source: PretrainedSource, **overrides: Any) -> PreTrainedConfig:
    """Makes the config of an encoder; `overrides` replace its keys, such as num_labels.

    Raises:
      JloraError: there is no such model, its model_type is not supported or is not that of a classifier, or an override
        is not a key of its config.
    """
    config = source.config_with(**overrides)
    if family(config.model_type).task != "SEQ_CLS":
        known = ", ".join(kind for kind, module in FAMILIES.items() if module.task == "SEQ_CLS")
        raise JloraError(
            f"{source.name}: config.json: model_type: expected a model that classifies ({known}),"
            f" found {config.model_type!r}; jlora lm trains language models"
        )
    return config


def build_model(config: Config, source: PretrainedSource, **overrides: Any) -> Any:
    """Builds the linen model of the run, without weights.

    Before the labels are known, its head has the stored config's size. `Labels.config_entries` are the `overrides` that
    make it the model that the run trains. Of the config `train.dtype`, `train.remat` and `train.attention` are read.
    """
    stored, train = classifier_config(source, **overrides), config.train
    return build(stored, dtype=jnp.dtype(train.dtype), remat=train.remat, attention=train.attention)


def _warn_of_frozen_heads(adapted: Adapted, place: str, heads: dict[str, list[str]]) -> None:
    """Warns of heads that are random and not trained: they remain random, and an adapter's file lacks them."""
    frozen = [key for path, keys in heads.items() if path not in adapted.adapter for key in keys]
    if frozen:
        lost = "; adapter/ does not hold them, only merged/ does" if adapted.lora else ""
        logger.warning(
            "%s: newly initialised, and frozen: %s%s. lora.modules_to_save trains what it names",
            place, ", ".join(frozen), lost,
        )  # fmt: skip
