"""Loads a trained classifier from a run folder, a merged folder or an adapter folder."""

from __future__ import annotations

import dataclasses
import logging
import reprlib
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import jax
import numpy as np

import jlora
from jlora.errors import AdapterMismatchError, FileError
from jlora.files.bounded_json import read_json
from jlora.files.nearest_file import nearest_file
from jlora.files.path_checks import as_path
from jlora.lora.adapted_model import Adapted
from jlora.peft.base_model import base_of
from jlora.peft.folder import head_rows
from jlora.pretrained.load import build, example_batch, load_weights
from jlora.pretrained.locate import settle_hub
from jlora.pretrained.source import PretrainedSource
from jlora.pretrained.tokenizer import pad_id
from jlora.pretrained.weights import new_heads
from train.classify.data.labels import Labels, ProblemType, labels_of_config
from train.classify.data.splits import Split
from train.classify.data.tokens import tokenize
from train.classify.evaluate import logits_forward, logits_of
from train.classify.model import Prepared, classifier_config
from train.data.bucketing import bucket_lengths
from train.loop.evaluation import make_eval_step

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained classifier.

    Attributes:
      adapted: model, base and adapter; the adapter is {} if it is merged into the base.
      tokenizer: of its texts.
      labels: the task and its classes.
    """

    adapted: Adapted
    tokenizer: PreTrainedTokenizerBase
    labels: Labels

    def logits(self, rows: Split, max_length: int, batch_size: int = 64, bucket_count: int = 6) -> np.ndarray:
        """Computes logits, float32 (n, L), of the rows' texts, at most `batch_size` at once."""
        tokens = tokenize(rows, self.tokenizer, max_length)
        if tokens.cut:
            logger.warning("%d of %d rows cut at %d tokens", tokens.cut, len(tokens), max_length)
        prepared = Prepared(rows, tokens, np.zeros(len(rows), np.int32), pad_id(self.tokenizer))
        buckets = bucket_lengths(tokens.lengths, bucket_count, limit=max_length)
        eval_step = make_eval_step(logits_forward(self.adapted.model.apply))
        step = partial(eval_step, self.adapted.adapter or None, self.adapted.base)
        return logits_of(step, prepared, buckets, min(batch_size, len(rows)))


@dataclasses.dataclass(frozen=True)
class TrainedSource:
    """A trained classifier whose weights are not read yet.

    Attributes:
      base: the merged model, or the base of the adapter.
      adapter: the adapter's folder in PEFT's format, with adapter_config.json; None if it is merged.
    """

    base: PretrainedSource
    adapter: Path | None

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the adapter's folder if it has one (tokenizer_config.json), else the base's."""
        own = self.adapter if self.adapter and (self.adapter / "tokenizer_config.json").is_file() else None
        return (self.base if own is None else PretrainedSource(own)).tokenizer

    def load(self) -> Trained:
        """Reads the weights.

        Class names of an adapter come from the `labels.json` of its folder, if it has one. Without that file, the
        adapter's head says how many classes there are, and without a head the base's config.

        Raises:
          AdapterMismatchError: the adapter does not fit the base, or neither of them has the head.
          FileError: a file is missing or damaged.
          JloraError: the model is not a classifier.
        """
        if self.adapter is None:
            model = build(classifier_config(self.base))
            return Trained(Adapted(model, load_weights(model, self.base), {}, None), self.tokenizer, _labels(model))
        model = build(classifier_config(self.base, **_read_labels(self.adapter)))
        # The adapter brings the head that the base lacks, and replaces these random values.
        weights = load_weights(model, self.base, key=jax.random.key(0), new_head=True)
        adapter, config = jlora.load_adapter(self.adapter, weights, model.apply, example_batch(model.config))
        _require_heads(self.adapter, self.base.name, new_heads(model, self.base, new_head=True), adapter)
        return Trained(Adapted(model, weights, adapter, config), self.tokenizer, _labels(model))


def open_trained(folder: str | Path, base: str | None = None) -> TrainedSource:
    """Opens a run folder (its merged/, or else its adapter/), a merged folder or an adapter folder.

    The first of `folder`, its merged/ and its adapter/ that has an adapter_config.json or a config.json is opened. A
    merged model has the adapter {}.

    Args:
      folder: made by `train.classify` or `train.export`; an adapter folder may be PEFT's.
      base: an adapter's base model; None means the one that its configuration names.

    Raises:
      FileError: there is no such folder, or neither file is in one of them.
    """
    path = as_path(str(folder))
    for place in (path, path / "merged", path / "adapter"):
        if (place / "adapter_config.json").is_file():
            name = base or base_of(place)
            settle_hub(name)
            return TrainedSource(PretrainedSource(name), place)
        if (place / "config.json").is_file():
            return TrainedSource(PretrainedSource(place), None)
    found = "none of them" if path.is_dir() else f"no such folder{nearest_file(path)}"
    if path.is_file():
        found = f"a file. Give the folder that it is in: {path.parent}"
    raise FileError(
        f"{path}: expected a run folder (merged/, adapter/), a model (config.json) or an adapter"
        f" (adapter_config.json), found {found}"
    )


def load_trained(folder: str | Path, base: str | None = None) -> Trained:
    """Opens and loads a trained classifier; takes and raises what `open_trained` and `TrainedSource.load` do."""
    return open_trained(folder, base).load()


def _read_labels(folder: Path) -> dict[str, Any]:
    """Returns the config's label entries: from `labels.json`, else only the number of rows of the adapter's head."""
    file = folder / "labels.json"
    if file.is_file():
        return read_label_entries(file)
    rows = head_rows(folder)
    return {} if rows is None else {"num_labels": rows}


def read_label_entries(file: Path) -> dict[str, Any]:
    """Reads id2label, label2id and problem_type from `labels.json`, and nothing else.

    The file has {"id2label": {"0": "bad", "1": "good"}, "problem_type": "single_label_classification"}, and may have
    more.

    Returns:
      {"id2label": {int: class name}, "label2id": {class name: int}, "problem_type": text}; label2id is made from
        id2label.

    Raises:
      FileError: not a JSON object, class names are not text, ids are not 0, 1, ..., problem_type is unknown, a
        regression has two names or more, or a single label fewer than two.
    """
    stored = read_json(file)
    names, problem = stored.get("id2label"), stored.get("problem_type")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise FileError(f"{file}: id2label: expected an object of id: class name; found {reprlib.repr(names)}")
    ids = [str(index) for index in range(len(names))]
    if not ids or set(names) != set(ids):
        raise FileError(f"{file}: id2label: expected the ids 0, 1, ... of the classes; found {reprlib.repr([*names])}")
    if problem not in get_args(ProblemType):
        expected = ", ".join(get_args(ProblemType))
        raise FileError(f"{file}: problem_type: expected one of {expected}; found {reprlib.repr(problem)}")
    if problem == "regression" and len(ids) > 1:
        raise FileError(f"{file}: id2label: expected one output, as problem_type is {problem}; found {len(ids)}")
    if problem == "single_label_classification" and len(ids) < 2:
        raise FileError(f"{file}: id2label: expected two classes or more, as problem_type is {problem}; found one")
    return Labels(cast(ProblemType, problem), tuple(names[index] for index in ids)).config_entries()


def _require_heads(folder: Path, name: str, heads: dict[str, list[str]], adapter: dict[str, Any]) -> None:
    """Raises AdapterMismatchError if neither the base nor the adapter has the head: it was random, and is lost."""
    lost = [key for path, keys in heads.items() if path not in adapter for key in keys]
    if lost:
        raise AdapterMismatchError(
            f"{folder}: expected {', '.join(lost)} in the base or the adapter; found them neither in {name} nor here."
            " The adapter was trained on another base, which has them: give that one with --base, or use the run's"
            " merged/"
        )


def _labels(model: Any) -> Labels:
    return labels_of_config(model.config.id2label, model.config.problem_type)
