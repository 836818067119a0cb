"""The exception for errors that a user can fix (a wrong key, file, row, shape or name), with the nearest names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from jlora.printable import printable, shorten_words

_LONGEST = 8000
"""Characters."""
_LONGEST_NAME = 1000


class JloraError(ValueError):
    """An error that the user can fix. The message says where, what was expected, what was found and what to do.

    The commands print it without a traceback and exit with code 2. A message may quote text from a file, of any length
    and with any characters: the middle of a word of more than 400 characters, and of a message of more than 8000, is
    cut, and the rest is escaped by `printable`.
    """

    def __init__(self, message: str) -> None:
        message = shorten_words(message)
        cut = len(message) - _LONGEST
        half = _LONGEST // 2
        short = message if cut <= 0 else f"{message[:half]} [{cut:,} characters] {message[-half:]}"
        super().__init__(printable(short))


class NoRuleError(JloraError):
    """A function uses an adapted weight in an operation that has no low-rank rule.

    Raised by `init`, `load_adapter` and adapted functions. Call them with `allow_materialize=True`, or leave the weight
    out of `target_modules`.
    """


class TargetNotFoundError(JloraError):
    """An entry of a LoraConfig, such as one of `target_modules`, matches nothing that the function uses.

    Raised by `init` and `quantize`. The message lists the names that there are; "all-linear" fits every model.
    """


class AdapterMismatchError(JloraError):
    """An adapter has other paths, keys or shapes than the base, or another tree, that it is used with.

    Raised by `load_adapter`, `merge` and adapted functions. Use the base that the adapter was made for.
    """


class FileError(JloraError):
    """A file or folder of a model, an adapter or a run is missing, damaged, or refused.

    A refused file is unsafe (a pickle, a link out of its folder, endless metadata) or has contents that jlora does not
    read. Raised by `load_base` and `load_adapter`. Get the file again, or tell whoever made it.
    """


class HubError(FileError):
    """The Hugging Face hub, or a proxy that answers for it, did not return the requested files.

    Raised by `load_base`. Try again later, or give a local folder.
    """


class UnsupportedModelError(JloraError):
    """A model has a `model_type`, or a value in its configuration, that jlora has no code for.

    Raised by `load_base`, `default_targets` and `save_gguf_lora`. Take another model, or write the function in JAX:
    `init` and `adapt` need no model of jlora's.
    """


class ContextLengthError(JloraError):
    """A text has more tokens than the model has positions.

    Raised by `generate`, `stream` and the models. Shorten the text, or ask for fewer new tokens.
    """


class RunFolderError(JloraError):
    """The folder of a training run is in use, cannot be written, or holds a finished run, another run or other files.

    Raised by the functions that train from Python. Wait, resume or overwrite the run, or name another folder.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns "; nearest: a, b" with up to three names in `known` that are like `name`, the most alike first.

    Returns "" if none is alike (difflib's ratio of 0.5), or if one of the names has more than 1000 characters.
    """
    names = [name, *dict.fromkeys(known)]
    if max(map(len, names)) > _LONGEST_NAME:  # the comparison takes quadratic time
        return ""
    close = difflib.get_close_matches(name, names[1:], n=3, cutoff=0.5)
    return f"; nearest: {', '.join(close)}" if close else ""
