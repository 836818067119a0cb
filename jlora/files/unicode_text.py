"""Text in whole Unicode characters."""

from __future__ import annotations

import re
from typing import Any

from jlora.errors import JloraError

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def require_text(value: Any, where: str) -> str:
    """Returns the value; raises JloraError that begins with `where` if it is not text or has unpaired surrogates."""
    if not isinstance(value, str) or _LONE_SURROGATE.search(value):
        found = "nothing" if value is None else f"{ascii(value)[:60]} ({type(value).__name__})"
        raise JloraError(f"{where}: expected text in whole Unicode characters, found {found}")
    return value
