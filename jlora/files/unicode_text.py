"""Text in whole Unicode characters."""

from __future__ import annotations

import re
from typing import Any

from jlora.errors import JloraError

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def require_text(value: Any, where: str) -> str:
    """Returns the value; raises JloraError that begins with `where` if it is not text or has surrogates (U+D800...)."""
    if not isinstance(value, str):
        raise JloraError(f"{where}: expected text, found {_describe(value)}")
    if half := _LONE_SURROGATE.search(value):
        raise JloraError(
            f"{where}: expected text in whole Unicode characters, found half of one, {ascii(half.group())[1:-1]}, as"
            f" text has that was cut inside an emoji. Delete it: {ascii(value)[:60]}"
        )
    return value


def _describe(value: Any) -> str:
    """Returns what was found instead of text, and what to do."""
    if value is None:
        return "nothing (null or an empty cell). Fill it in"
    if value != value:
        return "NaN (an empty cell). Fill it in"
    shown = ascii(value)[:60]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{shown} (a number). Put it in quotes"
    return f"{shown} ({type(value).__name__})"
