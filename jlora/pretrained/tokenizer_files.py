"""Checks and copies the files of a tokenizer, so that transformers reads nothing else of an untrusted folder.

transformers passes every key of tokenizer_config.json and special_tokens_map.json to a constructor, and some of them
name files to open. The copy has only the keys below.
"""

from __future__ import annotations

import json
import logging
import re
import reprlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from jlora.errors import FileError
from jlora.files.bounded_json import parse_json
from jlora.files.limits import LARGEST_JSON, LARGEST_TOKENIZER
from jlora.files.path_checks import require_own
from jlora.files.type_in_words import type_in_words
from jlora.models.registry import family

logger = logging.getLogger("jlora")

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "config.json",
    "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model",
    "chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja", "tokenizer.*.json", "*.model",
    "*.tiktoken",
)  # fmt: skip
_TOKENIZER_CLASS = re.compile(r"(?!Auto)\w*(Tokenizer|TokenizerFast|Backend)")
_VERSIONED = r"^tokenizer\.[\d.]+\.json$"
_STRICT = ConfigDict(strict=True, allow_inf_nan=False)
_TOKEN = str | dict[str, str | bool]
_KINDS: dict[str, Any] = {
    "tokenizer_class": str,
    "model_max_length": int | float,
    "max_len": int,
    "max_length": int,
    "stride": int,
    "truncation_strategy": str,
    "pad_to_multiple_of": int,
    "pad_token_type_id": int,
    "unk_id": int,
    "padding_side": Literal["left", "right"],
    "truncation_side": Literal["left", "right"],
    "errors": Literal["strict", "replace", "ignore"],
    "wordpieces_prefix": str,
    "never_split": list[str],
    "model_input_names": list[str],
    "fast_tokenizer_files": list[Annotated[str, Field(pattern=_VERSIONED)]],
    "additional_special_tokens": list[_TOKEN] | dict[str, _TOKEN],
    "extra_special_tokens": list[_TOKEN] | dict[str, _TOKEN],
    "model_specific_special_tokens": dict[str, _TOKEN],
    "added_tokens_decoder": dict[str, dict[str, str | bool]],
    "chat_template": str | list[dict[str, str]] | dict[str, str],
    "chat_control_tokens": list[str],
    "response_template": dict[str, Any],
}
"""{key of tokenizer_config.json: the type of its value}; each may be null."""


def copy_tokenizer_files(folder: Path, out: Path) -> None:
    """Copies a tokenizer's files (TOKENIZER_FILES) from `folder` to the folder `out`, with only the known keys of JSON.

    tokenizer.json and texts are copied unchanged. Of config.json only the keys are kept that choose the tokenizer's
    class; of tokenizer_config.json and special_tokens_map.json those that set texts, tokens, lengths and sides, and
    switches; unknown keys are left out.

    Raises:
      FileError: files that are too large, a link out of the folder, invalid JSON or text, a duplicate key, a class that
        is not a tokenizer of transformers, a key that names a file or has a value of the wrong type.
      UnsupportedModelError: the `model_type` of config.json is not supported.
    """
    for name, content in _files(folder):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_bytes(_check_file(folder / name, content))


def _files(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yields (name in the folder, content) of each file; raises FileError above the limit."""
    left = LARGEST_TOKENIZER
    for file in sorted({file for pattern in TOKENIZER_FILES for file in folder.glob(pattern) if file.is_file()}):
        require_own(file, folder)
        most = min(left, LARGEST_JSON) if file.name in _PLAIN else left
        with file.open("rb") as stream:
            content = stream.read(most + 1)
        if len(content) > most:
            raise FileError(f"{file}: expected at most {most} bytes; found {file.stat().st_size}")
        left -= len(content)
        yield str(file.relative_to(folder)), content


def _check_file(file: Path, content: bytes) -> bytes:
    if file.suffix in (".jinja", ".txt"):
        try:
            content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise FileError(f"{file}: expected text in UTF-8; found {error}") from None
    if file.suffix != ".json":
        return content
    stored = parse_json(content, file)
    plain = _PLAIN.get(file.name)
    return content if plain is None else json.dumps(plain(file, stored)).encode()


def _plain_model_config(file: Path, stored: Mapping[str, Any]) -> dict[str, Any]:
    """Keeps the keys that choose the tokenizer's class."""
    family(stored.get("model_type"))
    _require_tokenizer_class(file, stored)
    return {key: stored[key] for key in ("model_type", "tokenizer_class", "transformers_version") if key in stored}


def _plain_config(file: Path, stored: Mapping[str, Any]) -> dict[str, Any]:
    _require_tokenizer_class(file, stored)
    for key in ("init_inputs", "vocab", "merges", "gguf_file", "auto_map"):
        if stored.get(key) not in (None, []):
            raise FileError(
                f"{file}: {key}: expected no value, because transformers would open the file or run the code that it"
                f" names; found {reprlib.repr(stored[key])}. Delete the key to load the tokenizer without it"
            )
    return _keep_known(file, stored, _KINDS)


def _plain_special_tokens(file: Path, stored: Mapping[str, Any]) -> dict[str, Any]:
    return _keep_known(
        file, stored, {key: _KINDS[key] for key in ("additional_special_tokens", "extra_special_tokens")}
    )


def _plain_added_tokens(file: Path, stored: Mapping[str, Any]) -> dict[str, Any]:
    if not all(type(index) is int and index >= 0 for index in stored.values()):
        raise FileError(f"{file}: expected a number of at least 0 for each token; found {reprlib.repr(dict(stored))}")
    return dict(stored)


_PLAIN: dict[str, Callable[[Path, Mapping[str, Any]], dict[str, Any]]] = {
    "config.json": _plain_model_config,
    "tokenizer_config.json": _plain_config,
    "special_tokens_map.json": _plain_special_tokens,
    "added_tokens.json": _plain_added_tokens,
}
"""{file: function that returns the keys to copy}; other JSON is copied unchanged."""


def _require_tokenizer_class(file: Path, stored: Mapping[str, Any]) -> None:
    """Requires a tokenizer's class: transformers calls `from_pretrained` of any class, and some run a folder's code."""
    name = stored.get("tokenizer_class")
    if name is not None and not _is_tokenizer_class(name):
        raise FileError(f"{file}: tokenizer_class: expected a tokenizer of transformers; found {reprlib.repr(name)}")


def _is_tokenizer_class(name: Any) -> bool:
    if not isinstance(name, str) or not _TOKENIZER_CLASS.fullmatch(name):
        return False
    import transformers

    known = getattr(transformers, name, transformers.PreTrainedTokenizerBase)
    return isinstance(known, type) and issubclass(known, transformers.PreTrainedTokenizerBase)


def _keep_known(file: Path, stored: Mapping[str, Any], kinds: Mapping[str, Any]) -> dict[str, Any]:
    """Keeps the keys of `kinds`, all `*_token` keys, and those with true, false or null, which open no file."""
    known, left_out = {}, []
    for key, value in stored.items():
        kind = kinds.get(key, _TOKEN if key.endswith("_token") and not isinstance(value, bool) else None)
        if kind is not None:
            try:
                known[key] = TypeAdapter(kind | None, config=_STRICT).validate_python(value)
            except ValidationError:
                expected = type_in_words(kind | None)
                raise FileError(f"{file}: {key}: expected {expected}; found {reprlib.repr(value)}") from None
        elif isinstance(value, bool | None) and not key.endswith("file"):
            known[key] = value
        else:
            left_out.append(key)
    if left_out:
        logger.debug("%s: not used: %s", file, ", ".join(left_out))
    return known
