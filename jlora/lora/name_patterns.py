"""Matches regular expressions against module names as PEFT does, with a time limit for untrusted expressions.

The package `regex` has the syntax of `re` and, unlike it, a timeout: some expressions practically never finish.
"""

from __future__ import annotations

import functools
import re
import reprlib
import time
from collections.abc import Callable, Iterable, Sequence

import regex

from jlora.errors import FileError, JloraError
from jlora.files.limits import PATTERN_SECONDS


def find_mistake(text: str) -> str:
    """Returns why the text is no regular expression with the same meaning in `re` and `regex`; "" if it is one.

    `q{2}` is one, `(` is not ("missing ), unterminated subpattern at position 0"), nor is `q{e}`, which `regex` reads
    as a fuzzy match.
    """
    try:
        re.compile(text)
        _compile(text)
    except (re.error, regex.error) as error:
        return str(error)
    # `{e}` is text to `re` and a fuzzy match to `regex`; no name has a brace
    found = re.search(r"\{[^\d,]", text)
    return f"a brace without a number at position {found.start()}" if found else ""


def is_whole(pattern: str, name: str) -> bool:
    """Returns whether the regular expression, a valid one, matches the whole name, as PEFT matches target_modules."""
    return _within_limit(pattern, _compile(pattern).fullmatch, name) is not None


def is_end(pattern: str, name: str) -> bool:
    """Returns whether the expression matches the name, or its end after a dot (`rank_pattern`).

    `q` matches "q" and "layers.0.q", but neither "xq" nor "q.x".
    """
    return _within_limit(pattern, _compile(_END.format(pattern)).match, name) is not None


def layer_number(lists: Sequence[str], name: str) -> int | None:
    """Returns the number of the layer that a module is in; None if there is none.

    Args:
      lists: regular expressions for the name of the list of layers (`layers_pattern`), tried in order: `["h"]` finds 3
        in "model.h.3.q" and "h.3.q". Without expressions it is the first number with at least two parts before it: 3 in
        "model.layers.3.q", None in "layers.3.q", as in PEFT.
      name: the module's dotted name. The number must not be its last part: "model.layers.3" has None.
    """
    patterns = [_NUMBER.format(pattern) for pattern in lists] or [_FIRST_NUMBER]
    found = (_within_limit(pattern, _compile(pattern).match, name) for pattern in patterns)
    number = next((match["number"] for match in found if match), None)
    return None if number is None else int(number)  # None if another branch of the expression matched


_END = r"(.*\.)?({})$"
_NUMBER = r"(?:^|.*?\.){}\.(?P<number>\d+)\."
_FIRST_NUMBER = r".*?\.[^.]*\.(?P<number>\d+)\."


@functools.lru_cache(maxsize=2**15)  # the most patterns that an adapter may have
def _compile(pattern: str) -> regex.Pattern:
    return regex.compile(pattern, regex.VERSION0)  # the dialect of `re`


def require_quick(
    whole: Iterable[str], ends: Iterable[str], lists: Iterable[str], names: Sequence[str], where: str
) -> None:
    """Matches expressions against names under a time limit, so that later matches are known to finish.

    Args:
      whole, ends, lists: expressions for `is_whole`, `is_end` and `layer_number`.
      where: the file that they are in, for the message.

    Raises:
      FileError: together they take longer than 5 CPU seconds; the message names the expression.
    """
    matchers = [(text, _compile(text).fullmatch) for text in whole]
    matchers += [(text, _compile(_END.format(text)).match) for text in ends]
    matchers += [(text, _compile(_NUMBER.format(text)).match) for text in lists]
    begin = time.thread_time()
    for text, match in matchers:
        for name in names:
            _within_limit(text, match, name, f"{where}: ", PATTERN_SECONDS - (time.thread_time() - begin))


def _within_limit(
    text: str, match: Callable[..., regex.Match | None], name: str, where: str = "", seconds: float = PATTERN_SECONDS
) -> regex.Match | None:
    """Returns the result of `match`, a method of the expression `text`; JloraError if it takes longer.

    The error is a FileError if `where` names a file.
    """
    try:
        return match(name, timeout=max(seconds, 0.001))
    except TimeoutError:
        raise (FileError if where else JloraError)(
            f"{where}expected regular expressions that match within {PATTERN_SECONDS:g} seconds; found"
            f" {reprlib.repr(text)}, which takes longer on {name!r}. Rewrite it without nested repetitions"
        ) from None
