"""Measures values of a chat template, in the units of `template_work`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jinja2
from jinja2.utils import Namespace

ENTRY = 10
_EMPTY: dict[str, Any] = {}
VIEWS = (type(_EMPTY.keys()), type(_EMPTY.values()), type(_EMPTY.items()))
_SIZED = (str, bytes, list, tuple, dict, range, set, *VIEWS)
_LISTS = (list, tuple, set, *VIEWS)
HASHED = (dict, set, type(_EMPTY.keys()), type(_EMPTY.items()))


def measure(value: Any, most: float = math.inf, known: dict[int, int] | None = None) -> int:
    """Returns the characters of the written value, about; a shared part counts each time that it appears.

    Raises:
      jinja2.TemplateError: there are more than `most`; this is found without visiting more entries than `most`.
    """
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, int):
        return 8 + (value.bit_length() >> 4)
    if isinstance(value, float):
        return 100  # writing a large or a long one takes 10 microseconds
    parts = list_parts(value)
    if parts is None:
        return 8
    known = {} if known is None else known
    if id(value) not in known:
        size = 2 + (estimate_hashing(value) if isinstance(value, dict) else 0)
        for part in parts:
            size += measure(part, most, known) + 2
            if size > most:
                raise_too_much()
        known[id(value)] = size
    return known[id(value)]


def raise_too_much() -> None:
    """Raises jinja2.TemplateError: the template takes too much work, or makes too much text."""
    raise jinja2.TemplateError(
        "it takes too long, or makes too much text. Shorten the chat, or give the tokenizer another chat template"
    )


def count_entries(value: Any) -> int:
    """Returns the length of a text, list, object or view of one, and 0 for anything else."""
    return len(value) if isinstance(value, _SIZED) else 0


def measure_shallow(value: Any) -> int:
    """Returns the units of making the text or list, without its entries' own size."""
    return count_entries(value) * (1 if isinstance(value, str | bytes) else ENTRY)


def estimate_hashing(keys: Any) -> int:
    """Estimates making a dictionary or set of these keys. Those that are not text may have the same hash."""
    if not isinstance(keys, _SIZED):
        return 0
    return sum(not isinstance(key, str) for key in keys) ** 2 >> 4


def list_parts(value: Any) -> Any:
    """Returns what the value consists of, or None if it has no parts."""
    if value is None or isinstance(value, int | float):
        return None
    if isinstance(value, _LISTS):
        return value
    if isinstance(value, Namespace):
        value = object.__getattribute__(value, "_Namespace__attrs")
    return [*value, *value.values()] if isinstance(value, Mapping) else None
