"""Parts of a page that a command writes, between lines that mark them, and tables in Markdown."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence


def fill_parts(page: str, parts: Mapping[str, str]) -> str:
    """Returns the page with the parts {name: text} written anew; what is around them stays.

    A part is between the lines `<!-- NAME -->` and `<!-- end of NAME -->`.

    Raises:
      ValueError: a part is missing.
    """
    for name, text in parts.items():
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
        if not pattern.search(page):
            raise ValueError(f"expected the lines {begin} and {end} in the page, found none")
        page = pattern.sub(lambda _, text=text, begin=begin, end=end: f"{begin}\n\n{text}\n\n{end}", page)
    return page


def table(head: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1) -> str:
    """Returns a table in Markdown; columns after the first `text_columns` are numbers, which end at the right."""
    rule = ["---" if place < text_columns else "---:" for place in range(len(head))]
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, rule, *rows])
