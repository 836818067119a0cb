"""The tokenizer of a model folder, a GGUF file or a hub model."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from jlora.errors import FileError
from jlora.gguf.model import gguf_tokenizer, is_gguf
from jlora.pretrained.tokenizer_files import copy_tokenizer_files

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_VOCABULARIES = ("tokenizer*.json", "vocab.*", "*.model", "*.tiktoken")
"""At least one of these files is in every folder with a tokenizer."""


def read_tokenizer(folder: Path, name: str) -> PreTrainedTokenizerBase:
    """Reads the tokenizer in a folder or GGUF file, of the model that messages call `name`; runs no repository's code.

    Raises:
      FileError: the folder or hub model has no tokenizer, or one without a vocabulary; `copy_tokenizer_files` refuses
        its files; or a GGUF file's tokenizer is not supported.
      HubError: the hub cannot be reached, or has no such model.
    """
    from transformers import AutoTokenizer

    if is_gguf(folder):
        return gguf_tokenizer(folder)
    if not any(found for pattern in _VOCABULARIES for found in folder.glob(pattern)):
        raise FileError(_no_tokenizer(folder, name))
    with tempfile.TemporaryDirectory(prefix="jlora-tokenizer-") as plain:
        copy_tokenizer_files(folder, Path(plain))
        try:
            tokenizer = AutoTokenizer.from_pretrained(plain, trust_remote_code=False, local_files_only=True)
            tokenizer("a b\n")  # many errors in a file appear only when it is used
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # such files can cause any exception; a Rust panic is not an Exception
            found = str(error).replace(plain, str(folder))
            raise FileError(f"{name}: expected a tokenizer with the model (tokenizer.json); found {found}") from None
    tokenizer.name_or_path = str(folder)
    # Without any file, transformers silently makes a tokenizer that has only the special tokens.
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise FileError(f"{name}: expected a tokenizer with the model (tokenizer.json); found no words of one")
    return tokenizer


def _no_tokenizer(folder: Path, name: str) -> str:
    expected = f"{name}: expected a tokenizer with the model (tokenizer.json), found none"
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        advice = f"give its base as the model (and lora.from={name})"
        return f"{expected}. It has adapter_config.json: this is an adapter; {advice}"
    return (
        f"{expected}. Copy the tokenizer's files from the model that it was made from:"
        f" AutoTokenizer.from_pretrained(BASE).save_pretrained({str(folder)!r})"
    )


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Returns the id that pads rows: `pad_token_id` of the tokenizer, or else its `eos_token_id`, or else 0.

    It may be any token's id, because masks come from lengths.
    """
    found = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((index for index in found if index is not None), 0)
