"""Loads a language model's data from files or the hub: reads, holds out, samples, tokenizes and packs rows."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from jlora.errors import JloraError
from jlora.printable import counted
from train.data.bad_rows import note_left_out
from train.lm.data.examples import Counts, Examples, join
from train.lm.data.hold_out import are_few_long_texts, hold_out_ends
from train.lm.data.length import fit
from train.lm.data.packing import Packed, pack
from train.lm.data.rows import hold_out_rows, read_rows, sample_rows
from train.lm.data.tokenize import tokenize_texts
from train.lm.text.chat_templates import with_template
from train.lm.text.documents import Documents, documents_of
from train.lm.text.formats import too_long

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from train.lm.config import DataSection

_SPLITS = ("train", "validation")


@dataclass(frozen=True)
class Data:
    """The result of `load_examples`.

    Attributes:
      splits: {"train", "validation"}: the examples.
      rows: the rows that batches are made of: the same examples, packed if `data.packing` is true.
      notes: for the user: detected formats, rows held out, sampled, split, cut and left out, tokens, packing.
      chats: whether training rows are chats, written by the template.
    """

    splits: dict[str, Examples]
    rows: dict[str, Examples | Packed]
    notes: tuple[str, ...]
    chats: bool


def load_examples(
    config: DataSection, tokenizer: PreTrainedTokenizerBase, seed: int, day: datetime.date | None = None
) -> Data:
    """Loads train and validation data, the same for the same `seed` and `day` (None: today) on every machine.

    If no validation data is given, `validation_fraction` of train is held out: rows, or the ends of plain texts that
    are few and long (`are_few_long_texts`). Then `max_rows` takes a sample of each split. `packing` packs examples into
    rows of `max_length` tokens.

    Args:
      day: what chat templates see as today.

    Raises:
      JloraError: data cannot be read or is neither text nor a chat, with its file and row (`skip_bad_rows` leaves such
        rows out); `max_length` is more than the tokenizer's; rows are too long and `data.too_long` makes that an error;
        or a split has nothing to learn.
    """
    tokenizer = with_template(tokenizer, config.chat_template)
    if config.max_length > tokenizer.model_max_length:
        most = f"the tokenizer's {tokenizer.model_max_length}"
        raise JloraError(f"data.max_length={config.max_length}: expected at most {most} tokens")
    notes: list[str] = []
    documents = _documents(config, tokenizer, seed, day, notes)
    splits = {name: _examples(name, parts, config, tokenizer, notes) for name, parts in documents.items()}
    chats = any(part.from_template for part in documents["train"])
    if not config.packing:
        return Data(splits, {**splits}, tuple(notes), chats)
    packed = {name: pack(examples, config.max_length) for name, examples in splits.items()}
    for name, rows in packed.items():
        padding = f"{rows.padding_share:.1%} of them padding"
        notes.append(
            f"{name}: {counted(len(splits[name]), 'example')} packed into {counted(len(rows), 'row')}, {padding}"
        )
    return Data(splits, {**packed}, tuple(notes), chats)


def prompts(examples: Examples, count: int, prompt_tokens: int) -> list[np.ndarray]:
    """Returns at most `count` prompts, int32 (tokens,) each, from examples that are spread evenly over the data.

    The prompt of a chat or pair is everything before its first answer; that of a plain text its first `prompt_tokens`
    tokens, or half of the text if it is not longer than that. Examples that end with their prompt are left out; if no
    other is left, the list is empty.
    """
    lengths = examples.lengths
    of_text = np.where(lengths > prompt_tokens, prompt_tokens, lengths // 2)
    wanted = np.where(examples.prompts > 0, examples.prompts, of_text)
    open_ended = np.flatnonzero(wanted < lengths)  # if the prompt fills its example, the answer was cut off
    taken = min(count, len(open_ended))
    chosen = open_ended[np.arange(taken) * len(open_ended) // max(taken, 1)]
    starts = examples.offsets[chosen]
    return [examples.ids[start:end] for start, end in zip(starts, starts + wanted[chosen], strict=True)]


def _documents(
    config: DataSection,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    day: datetime.date | None,
    notes: list[str],
) -> dict[str, list[Documents]]:
    """Returns {"train", "validation"}: the texts of each split, file by file."""
    rows = {name: read_rows(name, config, notes) for name in _SPLITS if getattr(config, name) is not None}
    fraction = config.validation_fraction
    by_ends = "validation" not in rows and are_few_long_texts(rows["train"], config)
    if "validation" not in rows and not by_ends:
        count = sum(map(len, rows["train"]))
        rows = dict(zip(_SPLITS, hold_out_rows(rows["train"], fraction, seed), strict=True))
        held_out = f"{sum(map(len, rows['validation'])):,} of {count:,} training rows held out"
        notes.append(f"no validation data: {held_out} (data.validation_fraction={fraction}, seed {seed})")
    for name, parts in rows.items():
        rows[name] = sample_rows(parts, config.max_rows, name, seed)
        if (there := sum(map(len, parts))) > (taken := sum(map(len, rows[name]))):
            notes.append(f"{name}: a sample of {taken:,} of {there:,} rows (data.max_rows, seed {seed})")
    documents = {
        name: [documents_of(part.table, part.rows.tolist(), part.form, config, tokenizer, day) for part in parts]
        for name, parts in rows.items()
    }
    notes += [note for name, parts in documents.items() for part in parts for note in _of_rows(name, part)]
    if by_ends:
        texts = documents["train"]
        halves = zip(*(hold_out_ends(part, fraction) for part in texts), strict=True)
        documents = {name: list(half) for name, half in zip(_SPLITS, halves, strict=True)}
        which = f"the last {fraction:.0%} of each of {sum(map(len, texts))} texts"
        notes.append(f"no validation data: {which} held out (data.validation_fraction={fraction})")
    return documents


def _of_rows(name: str, part: Documents) -> list[str]:
    """Returns notes about the unused parts of a file's rows."""
    notes = []
    if part.unread:
        keys = ", ".join(sorted(part.unread))
        notes.append(f"{name}: {part.source}: not used, because the chat template does not name them: {keys}")
    return notes + note_left_out(name, part.left_out, len(part) + len(part.left_out))


def _examples(
    name: str, parts: list[Documents], config: DataSection, tokenizer: PreTrainedTokenizerBase, notes: list[str]
) -> Examples:
    """Makes the examples of a split; there must be at least one."""
    length = config.max_length
    examples = join([fit(tokenize_texts(part, tokenizer), length, too_long(part.form, config), part) for part in parts])
    left_out = _describe_counts(examples.counts, length)
    if not len(examples):
        raise JloraError(_nothing_to_learn(name, parts, examples.counts, config, tokenizer))
    notes += [f"{name}: {line}" for line in left_out]
    learnt = f"{np.sum(examples.learn):,} of them learnt"
    tokens = counted(len(examples.ids), "token")
    notes.append(f"{name}: {counted(len(examples), 'example')} of {tokens}, {learnt}")
    return examples


def _nothing_to_learn(
    name: str, parts: list[Documents], counts: Counts, config: DataSection, tokenizer: PreTrainedTokenizerBase
) -> str:
    """Returns the error about a split without any token to learn."""
    rows, files = counted(counts.rows, "row"), ", ".join(dict.fromkeys(part.source for part in parts))
    nothing, length = f"data.{name} ({files}): nothing is left to learn in {rows}", config.max_length
    if not any(text.strip() for part in parts for text in part.texts):
        return f"{nothing}: all texts are empty. Check data.text, now {config.text!r}"
    if counts.dropped == counts.rows:
        return f"{nothing}: each is longer than data.max_length={length} tokens and was dropped. Set a larger one"
    tokenized = [tokenize_texts(part, tokenizer) for part in parts]
    if counts.cut == counts.rows and all((part.prompts >= length).all() for part in tokenized):
        longest = max(int(part.lengths.max(initial=0)) for part in tokenized)
        return (
            f"{nothing}: each prompt alone fills data.max_length={length} tokens, so its answer was cut off. Set a"
            f" larger data.max_length (the longest row has {longest:,} tokens), or shorten the prompts"
        )
    return f"{nothing}: {'; '.join(_describe_counts(counts, length))}"


def _describe_counts(counts: Counts, max_length: int) -> list[str]:
    """Describes in words how many rows were split, cut, dropped or left out."""
    longer = f"of {counts.rows:,} rows are longer than data.max_length={max_length} tokens and were"
    lines = {
        f"{counts.split:,} {longer} split": counts.split,
        f"{counts.cut:,} {longer} cut": counts.cut,
        f"{counts.dropped:,} {longer} dropped": counts.dropped,
        f"{counted(counts.unlearnt, 'example')} left out, as no token of them is learnt": counts.unlearnt,
        f"{counts.straddling:,} of {counts.rows:,} rows have a token of both prompt and completion, which is learnt; "
        "prompts that do not end in a space avoid that": counts.straddling,
    }
    return [line for line, count in lines.items() if count]
