"""What a raw label is, as it stands in a file: a number, text, a list, nothing."""

from __future__ import annotations

import math
import re
from typing import Any, Literal

LabelKind = Literal["whole number", "decimal number", "text", "list", "nothing", "something else"]
_WHOLE = re.compile(r"[+-]?[0-9]+")
_DECIMAL = re.compile(r"[+-]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][+-]?[0-9]+)?")


def label_kind(value: Any) -> LabelKind:
    """The kind of a label; text that spells a number, as all numbers in CSV and TSV do, is that number."""
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return "nothing"
    if isinstance(value, list):
        return "list"
    if isinstance(value, int) or (isinstance(value, str) and _WHOLE.fullmatch(value)):
        return "whole number"
    if isinstance(value, float) or (isinstance(value, str) and _DECIMAL.fullmatch(value)):
        return "decimal number"
    return "text" if isinstance(value, str) else "something else"


def whole_number(value: Any) -> int | None:
    """The label as an id: 1, "1", True, 1.0 and "1.0" are 1; None where it is no whole number."""
    kind = label_kind(value)
    if kind == "whole number":
        return int(value)
    return int(float(value)) if kind == "decimal number" and float(value).is_integer() else None
