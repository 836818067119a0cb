"""Tokenizes texts with the fast tokenizer on all cores, and caches the result."""

from __future__ import annotations

import copy
import hashlib
import os
import tempfile
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Tokenizer

from jlora.errors import JloraError
from jlora.files.drop_oldest import drop_oldest
from jlora.files.replace_file import replace_file
from train.classify.data.splits import Split
from train.data.token_rows import TokenRows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ROWS_AT_ONCE = 1024
_MOST_BYTES = 4 * 2**30
_MOST_FILES = 1000


@dataclass(frozen=True)
class Tokens(TokenRows):
    """The tokens of n texts, special tokens included, concatenated.

    Attributes:
      ids: int32 (total,). Row i is `ids[offsets[i]:offsets[i + 1]]`.
      offsets: int64 (n + 1,).
      token_type_ids: int32 (total,), or None if the tokenizer's model does not use them.
      cut: how many rows were longer than the maximal length.
    """

    ids: np.ndarray
    offsets: np.ndarray
    token_type_ids: np.ndarray | None
    cut: int


def default_cache_dir() -> Path:
    """Returns `$XDG_CACHE_HOME/jlora/tokens`, or `~/.cache/jlora/tokens`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jlora" / "tokens"


def tokenize(
    split: Split, tokenizer: PreTrainedTokenizerBase, max_length: int, cache_dir: Path | None = None
) -> Tokens:
    """Tokenizes a split, with at most `max_length` tokens per row; in pairs the longer text is cut first.

    Args:
      split: its `text` and `text_pair` are read.
      cache_dir: if given, a result for the same texts, tokenizer and length is read from there, else written there.
        Results that were used longest ago are deleted if there is more than 4 GiB.

    Raises:
      JloraError: the tokenizer is a slow one, or `max_length` is not more than the special tokens of a row, or more
        than the tokenizer's `model_max_length`.
    """
    fast = _without_padding(tokenizer, max_length, pairs=split.text_pair is not None)
    typed = "token_type_ids" in tokenizer.model_input_names
    if cache_dir is None:
        return _encode(split, fast, typed)
    file = cache_dir / f"{_fingerprint(split, fast, typed)}.npz"
    tokens = _read(file, typed)
    if tokens is None:
        tokens = _encode(split, fast, typed)
        _write(tokens, file)
    return tokens


def require_fitting_length(max_length: int, tokenizer: PreTrainedTokenizerBase, *, pairs: bool) -> None:
    """Raises JloraError if rows, or pairs, cannot be cut to `max_length`, with `data.max_length` in its message."""
    special = tokenizer.num_special_tokens_to_add(pair=pairs)
    if not special < max_length <= tokenizer.model_max_length:
        raise JloraError(
            f"data.max_length={max_length}: expected more than the {special} special tokens of a row "
            f"and at most the tokenizer's {tokenizer.model_max_length}"
        )


def _without_padding(tokenizer: PreTrainedTokenizerBase, max_length: int, pairs: bool) -> Tokenizer:
    """Copies the Rust tokenizer, with this truncation and no padding in place of those in tokenizer.json."""
    if not tokenizer.is_fast:
        raise JloraError(f"{tokenizer.name_or_path}: expected a fast tokenizer, found a slow one")
    require_fitting_length(max_length, tokenizer, pairs=pairs)
    fast: Tokenizer = copy.deepcopy(tokenizer.backend_tokenizer)
    fast.no_padding()
    fast.enable_truncation(max_length, strategy="longest_first", direction=tokenizer.truncation_side)
    return fast


def _encode(split: Split, fast: Tokenizer, typed: bool) -> Tokens:
    rows = split.text if split.text_pair is None else list(zip(split.text, split.text_pair, strict=True))
    ids: list[np.ndarray] = [np.zeros(0, np.int32)]
    types: list[np.ndarray] = [np.zeros(0, np.int32)]
    lengths, cut = [0], 0
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        for encoding in fast.encode_batch(rows[start : start + _ROWS_AT_ONCE]):
            ids.append(np.array(encoding.ids, np.int32))
            types.append(np.array(encoding.type_ids, np.int32))
            lengths.append(len(encoding.ids))
            cut += bool(encoding.overflowing)
    return Tokens(np.concatenate(ids), np.cumsum(lengths), np.concatenate(types) if typed else None, cut)


def _fingerprint(split: Split, fast: Tokenizer, typed: bool) -> str:
    digest = hashlib.sha256(f"{fast.to_str()}\n{typed}\n{split.text_pair is None}".encode())
    for text in [*split.text, *(split.text_pair or [])]:
        encoded = text.encode()
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()


def _read(file: Path, typed: bool) -> Tokens | None:
    try:
        with np.load(file, allow_pickle=False) as saved:
            types = saved["types"] if typed else None
            return Tokens(saved["ids"], saved["offsets"], types, int(saved["cut"]))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        warnings.warn(f"{file}: the cached tokens cannot be read and are made again ({error})", stacklevel=3)
        return None


def _write(tokens: Tokens, file: Path) -> None:
    """Writes a temporary file in the same folder and renames it, so that readers never see an incomplete file."""
    types = np.zeros(0, np.int32) if tokens.token_type_ids is None else tokens.token_type_ids
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".partial", delete=False) as partial:
            np.savez(partial, ids=tokens.ids, offsets=tokens.offsets, types=types, cut=tokens.cut)
        replace_file(Path(partial.name), file)
        drop_oldest(file.parent, _MOST_BYTES, _MOST_FILES)
    except OSError as error:
        warnings.warn(f"{file.parent}: the tokens are not cached ({error})", stacklevel=3)
