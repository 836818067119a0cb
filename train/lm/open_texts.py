"""Reads what a language model's run needs before any weights: tokenizer and texts."""

from __future__ import annotations

import dataclasses
import datetime
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from jax.sharding import Mesh

from jlora.generation.open_model import causal_config
from jlora.pretrained.source import PretrainedSource
from train.cli.log_slow_steps import working
from train.devices.platform import attention_of
from train.lm.config import LMConfig
from train.lm.data.batches import width_of_packed
from train.lm.data.examples import Examples
from train.lm.data.load import Data, load_examples
from train.lm.data.packing import Packed
from train.lm.model import build_model
from train.lm.step_arguments import batch_names
from train.lm.text.chat_templates import with_template
from train.lm.vocabulary.added_tokens import add_tokens
from train.run.manifest import run_day
from train.task.check_tokens import longest_batch, require_tokens_fit
from train.task.protocol import EndedRun, Opened

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Texts(Opened):
    """The data of a language model's run.

    Attributes:
      source: where the base is.
      tokenizer: with the added tokens.
      rows: the rows that batches are made of.
      data: the result of `load_examples`, which also has the rows.
      added: the ids of the tokens that were added to the tokenizer.
    """

    tokenizer: PreTrainedTokenizerBase
    source: PretrainedSource
    rows: dict[str, Examples | Packed]
    data: Data
    added: tuple[int, ...]


LanguageRun = EndedRun[LMConfig, Texts]


def open_texts(config: LMConfig, mesh: Mesh | None, *, resume: bool) -> Texts:
    """Reads tokenizer and texts, and checks that they fit the model; checks the model before it reads any data.

    Args:
      mesh: the run's; None means one device.
      resume: whether chats see the day on which the run in `output_dir` was started as today.

    Raises:
      JloraError: the model is not a causal language model, data cannot be read, or the model does not take the tokens
        or the length of the rows.
    """
    source = PretrainedSource(config.model)
    causal_config(source)
    tokenizer, added = open_tokenizer(config, source)
    model = build_model(config, source, added)
    attention = attention_of(config, model, batch_names(config), mesh)
    day = run_day(Path(config.output_dir), resume=resume)
    data = read_texts(config, tokenizer, day)
    width = width_of_packed(data.rows)
    longest = width or longest_batch((rows.lengths for rows in data.rows.values()), config.data.max_length)
    remedy = ". With a tokenizer without them, data.add_tokens adds them to both"
    require_tokens_fit(model, {name: rows.ids for name, rows in data.rows.items()}, longest, remedy)
    return Texts(
        model=model,
        tokenizer=tokenizer,
        source=source,
        rows=data.rows,
        data=data,
        added=added,
        contents={name: vars(rows) for name, rows in data.rows.items()},
        curve="perplexity",
        width=width,
        attention=attention,
        day=day,
    )


def open_tokenizer(config: LMConfig, source: PretrainedSource) -> tuple[PreTrainedTokenizerBase, tuple[int, ...]]:
    """Returns (the model's tokenizer, the ids that `add_tokens` returns for `data.add_tokens`, () if there are none).

    The tokenizer has the chat template of `data.chat_template`, if that is given.
    """
    tokenizer = with_template(source.tokenizer, config.data.chat_template)
    if not config.data.add_tokens:
        return tokenizer, ()
    return tokenizer, add_tokens(tokenizer, config.data.add_tokens, causal_config(source).vocab_size)


def read_texts(config: LMConfig, tokenizer: PreTrainedTokenizerBase, day: datetime.date | None = None) -> Data:
    """Reads and tokenizes the texts of `config.data` as `load_examples` does, and logs its notes.

    Raises JloraError as it does. `day`: None is today.
    """
    with working("reading and tokenizing the data"):
        data = load_examples(config.data, tokenizer, config.seed, day)
    for note in data.notes:
        logger.info(note)
    return data
