"""Estimates how much work an operation of a chat template is, before it is done.

One unit is a character that is made, about 0.1 microseconds. An entry of a list counts as ten, a character that is only
read as a sixteenth. Each estimate is at least as large as the work where the operands are chosen to be slow.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import jinja2
from markupsafe import Markup

from jlora.files.limits import MOST_TEMPLATE_BITS
from jlora.generation.template_sizes import (
    ENTRY,
    HASHED,
    VIEWS,
    count_entries,
    estimate_hashing,
    list_parts,
    measure,
    measure_shallow,
)

_NUMBER = re.compile(r"\d+")  # str.format reads the digits of every script
_SPACE = [character for character in map(chr, range(0x3001)) if character.isspace()]
_LINE_ENDS = [character for character in _SPACE if len(f"{character}.".splitlines()) == 2]

_PADS = {"center", "ljust", "rjust", "zfill", "to_bytes", "batch", "slice", "truncate"}
_FORWARD = {
    "count", "endswith", "find", "index", "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rstrip",
    "split", "startswith", "strip", "trim",
}  # fmt: skip
_BACKWARD = {"rfind", "rindex", "rpartition", "rsplit", "strip", "lstrip", "rstrip", "trim"}
"""Python searches these without a shortcut: the time is the product of both lengths."""
_FAST_CODECS = {"ascii", "latin1", "latin_1", "utf8", "utf_8", "utf16", "utf_16", "utf32", "utf_32"}
_TEXT_FILTERS = {
    "capitalize": 1, "center": 1, "e": 6, "escape": 6, "forceescape": 6, "format": 1, "indent": 4, "join": 1,
    "lower": 1, "pprint": 1, "replace": 1, "safe": 1, "string": 1, "striptags": 1, "title": 6, "tojson": 4, "trim": 1,
    "truncate": 1, "upper": 1, "urlencode": 24, "urlize": 1, "wordcount": 3, "wordwrap": 1, "xmlattr": 4,
}  # fmt: skip
"""Filters that read a whole list or object, with their work for each character of it."""
_SQUARE_FILTERS = {"pprint", "striptags", "urlize", "wordwrap"}
"""Their time grows with the square of the text, where the text is chosen for it."""
SORTING_FILTERS = {"dictsort", "groupby", "max", "min", "sort", "sum", "unique"}
"""Filters that compare or add all entries."""


def estimate_comparison(operator: str, left: Any, right: Any, most: float = math.inf) -> int:
    """Estimates `left operator right`; the operator has Jinja's name: eq, lt, in, ..."""
    if operator in ("in", "notin"):
        if isinstance(right, str | bytes):
            return _estimate_search(len(right), count_entries(left))
        if isinstance(right, HASHED):
            return estimate_key(right, left, most)
        return _estimate_scan(right, left, most)
    if isinstance(left, str | bytes) and isinstance(right, str | bytes):
        return min(len(left), len(right)) >> 4
    if list_parts(left) is None or list_parts(right) is None:
        return 0
    return measure(min(left, right, key=count_entries), most)


def estimate_key(owner: Any, key: Any, most: float = math.inf) -> int:
    """Estimates `owner[key]`. Keys other than text may be chosen to have the same hash: all are compared then."""
    if isinstance(key, int) and isinstance(owner, list | tuple | str):
        return 0
    return (measure(key, most) >> 4) + (0 if isinstance(key, str) else count_entries(owner) >> 4)


def estimate_field(value: Any, spec: str, most: float = math.inf) -> int:
    """Estimates a field of `str.format`, whose specification may have a width."""
    return 10 * ENTRY + measure(value, most) + _sum_widths(spec)


def estimate_operator(operator: str, left: Any, right: Any, most: float = math.inf) -> int:
    """Estimates `left operator right` for an arithmetic operator.

    Raises:
      jinja2.TemplateError: a number would have more than MOST_TEMPLATE_BITS bits.
    """
    if isinstance(left, int) and isinstance(right, int):
        bits = max(left.bit_length(), right.bit_length())
        if operator == "**":
            bits = max(bits, left.bit_length() * max(right, 0))
        bits += min(left.bit_length(), right.bit_length()) if operator == "*" else 0
        require_few_bits(bits)
        return bits >> 4
    if operator == "*":
        number, value = (left, right) if isinstance(left, int) else (right, left)
        return max(measure_shallow(value) * number, 0) if isinstance(number, int) else 0
    if operator == "%" and isinstance(left, str | bytes):
        return _estimate_escapes(left, right) * _estimate_format(left, right, most)
    if operator == "+":
        return _estimate_escapes(left, right) * (measure_shallow(left) + measure_shallow(right))
    if isinstance(left, int | float) or isinstance(right, int | float):
        return 0
    return measure(left, most) + measure(right, most) + estimate_hashing(left) + estimate_hashing(right)


def estimate_method(name: str, owner: Any, args: Sequence[Any], most: float = math.inf) -> int:
    """Estimates the method of a value."""
    if isinstance(owner, str | bytes):
        return _estimate_text(name, owner, args, most)
    if isinstance(owner, list | tuple | range) and name in ("index", "count") and args:
        return _estimate_scan(owner, args[0], most)
    if isinstance(owner, dict):
        key = estimate_key(owner, args[0], most) if args else 0
        return key + (measure_shallow(owner) if name == "copy" else 0)
    size = sum(measure(arg, most) for arg in args)
    if isinstance(owner, (set, *VIEWS)):
        size += measure(owner, most) + estimate_hashing(owner) + sum(map(estimate_hashing, args))
    elif name == "fromkeys" and args:
        size += estimate_hashing(args[0])
    return size + _estimate_growth(name, owner, args, most)


def estimate_filter(name: str, value: Any, args: Sequence[Any], most: float = math.inf) -> int:
    """Estimates the filter."""
    size = count_entries(value)
    work = size >> 4 if isinstance(value, str | bytes) else size
    if name in _TEXT_FILTERS:
        return _estimate_text_filter(name, value, args, most)
    if name in SORTING_FILTERS:
        work = measure(value, most) * max(size.bit_length(), 1)
        if name == "sum" and args:
            work *= max(size, 1)
        return work + (estimate_hashing(value) if name == "unique" else 0)
    if name in ("list", "reverse", "batch", "slice"):
        work = size * ENTRY
    if name == "attr":
        work += 20 * ENTRY  # Jinja looks through the classes of the value
    if name == "round":
        require_few_bits(sum(abs(arg) for arg in args if isinstance(arg, int)))
    return work + _estimate_growth(name, value, args, most)


def require_few_bits(bits: int) -> None:
    """Raises jinja2.TemplateError if a number would have more than MOST_TEMPLATE_BITS bits."""
    if bits > MOST_TEMPLATE_BITS:
        raise jinja2.TemplateError(f"it computes a number of more than {MOST_TEMPLATE_BITS:,} bits")


def _estimate_search(size: int, part: int) -> int:
    """Python's search takes at most about a hundred steps for each character."""
    return (size >> 4) + (size * min(part, 128) >> 6) + (part >> 4)


def _estimate_scan(values: Any, part: Any, most: float) -> int:
    entries = count_entries(values)
    return entries + (entries * measure(part, most) >> 4)


def _estimate_escapes(*operands: Any) -> int:
    """Markup escapes what it is joined with: `"` becomes five characters."""
    return 6 if any(isinstance(operand, Markup) for operand in operands) else 1


def _estimate_text_filter(name: str, value: Any, args: Sequence[Any], most: float) -> int:
    size, escapes = measure(value, most), _estimate_escapes(value, *args)
    work = size * _TEXT_FILTERS[name] * escapes + (size**2 >> 3 if name in _SQUARE_FILTERS else 0)
    if name == "join":
        between = next((len(arg) for arg in args if isinstance(arg, str)), 0)
        return work + between * count_entries(value) * escapes
    if name in ("format", "replace") and not isinstance(value, str | bytes):
        value = str(value)
    if name == "format":
        return work + _estimate_format(value, args, most) * escapes
    return work + _estimate_text(name, value, args, most)


def _estimate_text(name: str, text: Any, args: Sequence[Any], most: float) -> int:
    """Estimates a method of a text, or the filter of the same name."""
    size, given = count_entries(text), sum(measure(arg, most) for arg in args)
    if name == "join" and args:
        return _estimate_escapes(text, *args[0]) * (given + size * count_entries(args[0]))
    work = (size >> 4) + (given >> 4)
    if name in _FORWARD:
        work += _estimate_search(size, given)
    if name in _BACKWARD:
        work += size * given >> 6
    if name in ("encode", "decode") and not _FAST_CODECS.issuperset(str(arg).lower().replace("-", "_") for arg in args):
        work += size**2
    if name == "striptags":  # Markup has it as a method, too
        work += size**2 >> 3
    return work + _estimate_escapes(text, *args) * _estimate_growth(name, text, args, most)


def _estimate_growth(name: str, value: Any, args: Sequence[Any], most: float) -> int:
    """Estimates how much larger the result of a method or filter is than its input."""
    numbers = sum(abs(arg) for arg in args if isinstance(arg, int))
    words = [arg for arg in args if isinstance(arg, str | bytes)]
    if name in _PADS:
        return numbers
    if name in ("split", "rsplit", "splitlines"):
        return _estimate_pieces(name, value, args)
    if name == "expandtabs":
        return _count(value, ["\t"]) * (numbers or 8)
    if name == "indent":
        return (_count(value, _LINE_ENDS) + 1) * (sum(map(len, words)) + numbers)
    if name == "wordwrap":
        return count_entries(value) * sum(map(len, words))
    if name == "tojson" and (numbers or words):
        return measure(value, most) * (numbers + sum(map(len, words)))
    if name == "replace" and len(words) > 1:
        return (_count(value, words[:1]) + 1) * len(words[1])
    if name == "translate":
        return count_entries(value) * sum(measure(arg, most) for arg in args)
    return 0


def _estimate_pieces(name: str, text: Any, args: Sequence[Any]) -> int:
    separators = [arg for arg in args if isinstance(arg, str | bytes)]
    pieces = 1 + _count(text, separators or (_LINE_ENDS if name == "splitlines" else _SPACE))
    limits = [arg for arg in args if isinstance(arg, int) and arg >= 0]
    if limits and name != "splitlines":
        pieces = min(pieces, limits[0] + 1)
    return len(text) + ENTRY * pieces


def _estimate_format(form: Any, values: Any, most: float) -> int:
    """Estimates `form % values`."""
    values = values if isinstance(values, tuple | list) else [values]
    numbers = sum(abs(value) for value in values if isinstance(value, int)) if _count(form, ["*"]) else 0
    sizes = sum(measure(value, most) for value in values)
    return (_count(form, ["%"]) + 1) * (numbers + sizes + ENTRY) + _sum_widths(form)


def _sum_widths(form: Any) -> int:
    """Returns the sum of the numbers in a format string; each may be the width of a field.

    Raises:
      jinja2.TemplateError: a number has more than five digits.
    """
    numbers = _NUMBER.findall(form if isinstance(form, str) else str(form))
    if any(len(number) > 5 for number in numbers):
        raise jinja2.TemplateError("it formats with a width of more than five digits")
    return sum(map(int, numbers))


def _count(value: Any, parts: Sequence[str | bytes]) -> int:
    """Counts how often one of the parts is in the text."""
    if isinstance(value, bytes):
        parts = [part.encode() if isinstance(part, str) else part for part in parts]
    if not isinstance(value, str | bytes) or not all(isinstance(part, type(value)) for part in parts):
        return count_entries(value)
    text: Any = value
    return sum(text.count(part) for part in parts)
