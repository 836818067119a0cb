"""Recognizes what a raw label from a file is: a number, text, a list, or nothing."""

from __future__ import annotations

import ast
import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

LabelKind = Literal["whole number", "decimal number", "text", "list", "nothing", "something else"]
SEPARATOR = ";"
_WHOLE = re.compile(r"[+-]?[0-9]+")
_DECIMAL = re.compile(r"[+-]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][+-]?[0-9]+)?")
_DECIMAL_COMMA = re.compile(r"[+-]?[0-9]+,[0-9]+")
_LIST = re.compile(r"\[.*\]", re.DOTALL)
_NUMBERS = re.compile(r"\[[0-9.\s]*\]")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_LONGEST_LIST = 100_000
"""Characters."""


def label_kind(value: Any) -> LabelKind:
    """Returns the kind of a label; text that spells a number (all numbers in CSV and TSV are text) is a number.

    None, "" and NaN are "nothing". True and False are whole numbers, infinity is a decimal number. Blanks around a
    number make it text, and so does a decimal comma. Other types, and text with an unpaired surrogate, are "something
    else".

        "1" -> "whole number", "1.0" and "1e3" -> "decimal number", "nan" -> "text", {} -> "something else"
    """
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return "nothing"
    if isinstance(value, list):
        return "list"
    if isinstance(value, int) or (isinstance(value, str) and _WHOLE.fullmatch(value)):
        return "whole number"
    if isinstance(value, float) or (isinstance(value, str) and _DECIMAL.fullmatch(value)):
        return "decimal number"
    # Text with an unpaired surrogate cannot be written to a file.
    return "text" if isinstance(value, str) and not _LONE_SURROGATE.search(value) else "something else"


def to_class_id(value: Any) -> int | None:
    """Returns the label as an id: 1, "1", True, 1.0 and "1.0" are 1, "-1" is -1; None if it is not a whole number.

    A whole number of 20 characters or more is none either.
    """
    kind = label_kind(value)
    if kind == "whole number":
        return int(value) if len(str(value)) < 20 else None
    return int(float(value)) if kind == "decimal number" and float(value).is_integer() else None


def number(value: Any) -> float:
    """Returns the label as a score, also with a decimal comma ("3,5").

    NaN if it is not a number; infinity for a whole number that is too large for a float.
    """
    if has_decimal_comma(value):
        return float(value.replace(",", "."))
    try:
        return float(value) if label_kind(value) in ("whole number", "decimal number") else math.nan
    except OverflowError:
        return math.inf


def has_decimal_comma(value: Any) -> bool:
    """Returns whether the label is text such as "3,5": a sign if any, digits, one comma, digits."""
    return isinstance(value, str) and _DECIMAL_COMMA.fullmatch(value) is not None


def are_class_ids(values: Sequence[Any]) -> bool:
    """Returns whether the labels are two or more whole numbers from 0 without a gap, also if written 0.0, 1.0.

    Each may occur more than once. False if any label is not a whole number, or there are none.
    """
    ids = {to_class_id(value) for value in values}
    return len(ids) > 1 and ids == set(range(len(ids)))


def is_yes(value: Any) -> bool | None:
    """Reads a cell of a column for one class: True for 1, 1.0, "1", "true"; None if it is neither 0 nor 1.

    0, "0", "false" and so on are False; "true" and "false" in any case of letters.
    """
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    return {0: False, 1: True}.get(to_class_id(value))  # type: ignore[arg-type]


def as_key(value: Any) -> str:
    """Converts a label or a key of `data.label_names` to the text by which they are compared.

    1, 1.0, "1" and "1.0" are "1", and true, "true" and "True" are "true". Anything else is its `str`.
    """
    if str(value).lower() in ("true", "false"):
        return str(value).lower()
    whole = to_class_id(value)
    return str(value if whole is None else whole)


def multi_hot_length(values: Sequence[Any]) -> int | None:
    """Returns the number of classes if the labels are lists of 0 and 1, one entry for each class; None otherwise.

    The lists must have one length, two or more: [[0, 1, 1], [0, 0, 1]] gives 3. If most labels, but not all, are such
    lists, the result is their length if one of them cannot be a list of class ids, because it would repeat an id ([0,
    0, 1]); the other labels are then mistakes, and without such a list the result is None. None if there are no labels.
    """
    lists = [value for value in values if isinstance(value, list) and all(is_yes(part) is not None for part in value)]
    [(length, count)] = Counter(map(len, lists)).most_common(1) or [(0, 0)]
    would_repeat = any(len(value) == length and len(set(map(is_yes, value))) < length for value in lists)
    are = count == len(values) or (2 * count > len(values) and would_repeat)
    return length if length > 1 and are else None


def parse_lists(values: Sequence[Any]) -> list[Any]:
    """Parses labels that are the text of a list: '[1, 0]', "['a', 'b']", '[1 0]'.

    It does so only if most labels that are neither empty nor -1 are such text; otherwise all stay unchanged. The result
    has one entry for each label, in order; labels that are not such text stay as they are.
    """
    given = [value for value in values if label_kind(value) != "nothing" and to_class_id(value) != -1]
    texts = {text for text in given if isinstance(text, str) and _LIST.fullmatch(text.strip())}
    parsed = {text: found for text in texts if isinstance(found := _parse_list(text.strip()), list)}
    if 2 * sum(isinstance(value, str) and value in parsed for value in given) <= len(given):
        return list(values)
    return [parsed.get(value, value) if isinstance(value, str) else value for value in values]


def _parse_list(text: str) -> Any:
    if _NUMBERS.fullmatch(text):
        return text.strip("[]").split()
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text) if len(text) < _LONGEST_LIST else None
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def spelling(name: str) -> str:
    """Returns a form of the name without differences in case, spaces or Unicode form.

    "  Very  GOOD " -> "very good"
    """
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())
