"""What both sides start from: the recipe of configs/sst2.yaml, its data as tokens, one folder of weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from benchmarks.classify import peft_side
from jlora import save_base
from jlora.errors import JloraError
from jlora.lora.adapted_model import Adapted
from jlora.pretrained.source import PretrainedSource
from train.classify.config import COMMAND, Config
from train.classify.data.batches import Batch
from train.classify.data.labels import Labels
from train.classify.data.splits import load_data
from train.classify.model import Prepared, prepare_model, prepare_splits
from train.cli.parse import parse_command_line
from train.cli.resolve import resolve
from train.run.padded_lengths import choose_lengths

SST2 = Path(__file__).parents[2] / "configs" / "sst2.yaml"
EPOCH_ROWS = 6920
MAX_LENGTH = 64
_LARGEST_DIFFERENCE = 1e-4


@dataclasses.dataclass(frozen=True)
class Setup:
    """The data of one epoch, the padded lengths of the trainer's batches, and the weights' folder."""

    config: Config
    tokenizer: PreTrainedTokenizerBase
    labels: Labels
    split: Prepared
    buckets: tuple[int, ...]
    folder: Path


def read_config(train: str | None, model: str | None) -> Config:
    """The offline recipe of configs/sst2.yaml, on other data or another model where they are given."""
    overrides = [f"data.train={train}"] * (train is not None) + [f"model={model}"] * (model is not None)
    sizes = [f"data.max_length={MAX_LENGTH}", f"data.max_rows={EPOCH_ROWS}", "train.dtype=float32"]
    config = resolve(
        parse_command_line(["--config", str(SST2), "--offline", *sizes, *overrides], COMMAND), use_offline=True
    )
    # A validation split of its own, not read further, so that no training rows are split off.
    return config.model_copy(update={"data": config.data.model_copy(update={"validation": config.data.train})})


def prepare(config: Config, folder: Path) -> Setup:
    """Tokenizes the training rows and writes the model with its new, seeded head into `folder`.

    Raises:
      JloraError: bad data or weights, or logits that differ between the two sides.
    """
    source = PretrainedSource(config.model)
    data = load_data(config.data, config.seed, config.task)
    data = dataclasses.replace(data, splits={"train": data.splits["train"]})
    labels, splits = prepare_splits(config, data, source.tokenizer)
    model = prepare_model(config.model_copy(update={"method": "head"}), source, labels)
    buckets = choose_lengths(config, {"train": splits["train"].tokens.lengths}, model.base)
    save_base(folder, model.model, model.base)
    setup = Setup(
        config.model_copy(update={"model": str(folder)}), source.tokenizer, labels, splits["train"], buckets, folder
    )
    _require_same_logits(setup, model)
    return setup


def variant(config: Config, method: str, *, dropout: bool) -> Config:
    """The config with another method; without `dropout` that of model and adapter is off."""
    rate = config.lora.lora_dropout if dropout else 0.0
    parts = {
        "lora": config.lora.model_copy(update={"lora_dropout": rate}),
        "train": config.train.model_copy(update={"dropout": dropout}),
    }
    return config.model_copy(update={"method": method, **parts})


def full_batch(setup: Setup, rows: int, length: int) -> Batch:
    """Random tokens without padding: int32 (rows, length)."""
    rng = np.random.default_rng(0)
    inputs = {
        "input_ids": rng.integers(len(setup.tokenizer) // 2, len(setup.tokenizer), (rows, length), np.int32),
        "attention_mask": np.ones((rows, length), np.int32),
    }
    if setup.split.tokens.token_type_ids is not None:
        inputs["token_type_ids"] = np.zeros((rows, length), np.int32)
    labels = rng.integers(0, len(setup.labels), rows, np.int32)
    return Batch(inputs, labels, np.ones(rows, np.float32), np.arange(rows, dtype=np.int32))


def _require_same_logits(setup: Setup, model: Adapted) -> None:
    rows = full_batch(setup, 4, 16)
    found = np.asarray(model.model.apply(model.base, jax.tree.map(jnp.asarray, rows.inputs)))
    oracle = AutoModelForSequenceClassification.from_pretrained(setup.folder).eval()
    with torch.no_grad():
        expected = oracle(**peft_side.tensors(rows.inputs, rows.labels)).logits.numpy()
    difference = float(np.abs(found - expected).max())
    if not difference < _LARGEST_DIFFERENCE:
        raise JloraError(
            f"{setup.folder}: expected the same logits in JAX and PyTorch, found a difference of {difference}"
        )
