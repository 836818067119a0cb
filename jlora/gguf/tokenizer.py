"""Builds the tokenizer that a GGUF file describes, with Hugging Face's `tokenizers`."""

from __future__ import annotations

import reprlib
from typing import Any, NamedTuple

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from jlora.errors import FileError
from jlora.files.limits import LONGEST_TOKEN, MOST_MERGES
from jlora.gguf.reader import Gguf

_CONTROL, _USER_DEFINED = 3, 4
"""Token types that are never split."""
_SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def make_tokenizer(content: Gguf) -> PreTrainedTokenizerFast:
    """Builds the tokenizer of a file, with its chat templates.

    It reads these keys of `content.fields`, all after `tokenizer.ggml.`: `model` ("gpt2" is byte-level BPE, "llama"
    SentencePiece's); `pre` ("gpt-2", "llama-bpe", "qwen2", "smollm", for gpt2 only); the lists `tokens`, `token_type`
    (of types 3, control, and 4, added by a user, a token is never split), and `merges` (gpt2) or `scores` (llama); and
    the optional `bos_token_id`, `eos_token_id`, `unknown_token_id`, `padding_token_id`, `add_bos_token`,
    `add_eos_token` and `add_space_prefix`. The template is `tokenizer.chat_template`.

    Raises:
      FileError: another model or pre-tokenizer, llama in a file of another architecture, a list that is missing or not
        as long as `tokens`, a token of more than 256 characters, or an id that is not a token's.
    """
    fields = {key.removeprefix("tokenizer.ggml."): value for key, value in content.fields.items()}
    kind, before = fields.get("model"), fields.get("pre")
    _require_lists(content, fields, "merges" if kind == "gpt2" else "scores")
    _require_ids(content, fields)
    by_pieces = kind == "llama" and content.fields.get("general.architecture") == "llama"
    if not by_pieces and not (kind == "gpt2" and isinstance(before, str) and before in _PRE_TOKENIZERS):
        raise FileError(
            f"{content.file}: tokenizer.ggml: expected the model gpt2 with one of {', '.join(_PRE_TOKENIZERS)}"
            " before it, or the model llama in a file of the architecture llama;"
            f" found {reprlib.repr(kind)} with {reprlib.repr(before)}"
        )
    try:
        return _tokenizer(content, fields, None if by_pieces else _PRE_TOKENIZERS[before])
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # inconsistent lists; a panic of `tokenizers` is not an Exception
        raise FileError(f"{content.file}: tokenizer.ggml: expected a whole tokenizer; found: {error}") from error


def _require_lists(content: Gguf, fields: dict[str, Any], third: str) -> None:
    """Checks the lists of tokens and of their types, and the merges or the scores."""
    kinds = {"tokens": str, "token_type": int, third: str if third == "merges" else int | float}
    for key, kind in kinds.items():
        where, found = f"{content.file}: tokenizer.ggml.{key}", fields.get(key)
        if key not in fields:
            raise FileError(f"{where}: expected a list; found no such key")
        if not isinstance(found, list) or not all(isinstance(entry, kind) for entry in found):
            raise FileError(f"{where}: expected a list of one kind; found {reprlib.repr(found)}")
        if key != "merges" and len(found) != len(fields["tokens"]):
            raise FileError(f"{where}: expected {len(fields['tokens'])} entries, as tokens has; found {len(found)}")
    longest = max(map(len, fields["tokens"]), default=0)
    if longest > LONGEST_TOKEN:
        raise FileError(
            f"{content.file}: tokenizer.ggml.tokens: expected at most {LONGEST_TOKEN} characters; found a token of"
            f" {longest}"
        )


def _require_ids(content: Gguf, fields: dict[str, Any]) -> None:
    count = len(fields["tokens"])
    for key, found in fields.items():
        if key.endswith("_token_id") and not (type(found) is int and 0 <= found < count):
            found = reprlib.repr(found)
            raise FileError(f"{content.file}: tokenizer.ggml.{key}: expected a token's id below {count}; found {found}")


def _tokenizer(content: Gguf, fields: dict[str, Any], before: _Before | None) -> PreTrainedTokenizerFast:
    """Builds byte-level BPE, or SentencePiece's BPE if `before` is None."""
    tokenizer = _sentencepiece(fields) if before is None else _byte_level(fields, before)
    _add_whole_tokens(tokenizer, fields)
    _add_ends(tokenizer, fields, before is None or before.starts)
    special = {name: _token(fields, key) for name, key in _SPECIAL.items()}
    length = content.fields.get(f"{content.fields.get('general.architecture')}.context_length")
    if length is not None and type(length) is not int:
        raise ValueError(f"context_length {length!r}")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=_chat_templates(content.fields),
        model_max_length=length,
        **{name: token for name, token in special.items() if token is not None},
    )


class _Before(NamedTuple):
    """How a text is prepared before byte-level BPE.

    Attributes:
      split: splits the text into pieces.
      composed: whether characters are composed (NFC).
      whole: whether a piece that is itself a token is never split (`ignore_merges`).
      starts: whether bos is put before a text if the file does not say so.
    """

    split: pre_tokenizers.PreTokenizer
    composed: bool = False
    whole: bool = False
    starts: bool = False


def _split(digits: str) -> pre_tokenizers.PreTokenizer:
    """Splits with GPT-4's pattern: contractions, words, `digits`, punctuation, white space."""
    pattern = (
        rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


_GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
_PRE_TOKENIZERS: dict[Any, _Before] = {
    "gpt-2": _Before(_GPT2),
    "llama-bpe": _Before(_split(r"\p{N}{1,3}"), whole=True, starts=True),
    "qwen2": _Before(_split(r"\p{N}"), composed=True),
    "smollm": _Before(pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _GPT2])),
}
"""{value of `tokenizer.ggml.pre`: how the text is prepared}."""


def _byte_level(fields: dict[str, Any], before: _Before) -> Tokenizer:
    merges = [tuple(merge.split(" ", 1)) for merge in fields["merges"]]
    tokenizer = Tokenizer(models.BPE(_vocabulary(fields), merges, ignore_merges=before.whole))
    if before.composed:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = before.split
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(fields: dict[str, Any]) -> Tokenizer:
    """Builds SentencePiece's BPE: a space before the text, spaces as "▁", unknown characters as bytes.

    Two adjacent pieces are joined if they make a token, those with the best score first.
    """
    vocabulary, scores = _vocabulary(fields), fields["scores"]
    merges = []
    for token in sorted(vocabulary, key=lambda token: -scores[vocabulary[token]]):
        cuts = ((token[:i], token[i:]) for i in range(1, len(token)))
        merges += [cut for cut in cuts if cut[0] in vocabulary and cut[1] in vocabulary]
        if len(merges) > MOST_MERGES:
            raise ValueError(f"expected at most {MOST_MERGES} ways to join two tokens to one, found more")
    unknown = _token(fields, "unknown")
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    prefix = fields.get("add_space_prefix", True)
    spaces = [normalizers.Replace(" ", "▁")]
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), *spaces] if prefix else spaces)
    decoding = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*decoding, decoders.Strip(" ", 1, 0)] if prefix else decoding)
    return tokenizer


def _vocabulary(fields: dict[str, Any]) -> dict[str, int]:
    return {token: i for i, token in enumerate(fields["tokens"])}


def _add_whole_tokens(tokenizer: Tokenizer, fields: dict[str, Any]) -> None:
    """Adds control tokens and the tokens that a user added: they are found in a text before it is split."""
    for special, add in {_CONTROL: tokenizer.add_special_tokens, _USER_DEFINED: tokenizer.add_tokens}.items():
        tokens = [token for token, kind in zip(fields["tokens"], fields["token_type"], strict=True) if kind == special]
        add([AddedToken(token, normalized=False, special=special == _CONTROL) for token in tokens])


def _add_ends(tokenizer: Tokenizer, fields: dict[str, Any], starts: bool) -> None:
    """Adds bos before and eos after each text, if the file says so."""
    wanted = {"bos": fields.get("add_bos_token", starts), "eos": fields.get("add_eos_token", False)}
    ends = {key: token for key in wanted if wanted[key] and (token := _token(fields, key)) is not None}
    if ends:
        pieces = [ends.get("bos"), "$A", ends.get("eos")]
        ids = [(token, fields[f"{key}_token_id"]) for key, token in ends.items()]
        tokenizer.post_processor = TemplateProcessing(
            single=[piece for piece in pieces if piece is not None], special_tokens=ids
        )


def _token(fields: dict[str, Any], key: str) -> str | None:
    index = fields.get(f"{key}_token_id")
    return None if index is None else fields["tokens"][index]


def _chat_templates(fields: dict[str, Any]) -> str | dict[str, str] | None:
    """Returns the chat template, or {"default": template, name: template} if there are several."""
    default, names = fields.get("tokenizer.chat_template"), fields.get("tokenizer.chat_templates")
    templates = {} if default is None else {"default": default}
    templates |= {name: fields[f"tokenizer.chat_template.{name}"] for name in names or ()}
    for name, template in templates.items():
        if not isinstance(template, str):
            raise ValueError(f"the chat template {name!r} is not text but {reprlib.repr(template)}")
    return templates if names else default
