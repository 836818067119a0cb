"""No word that a native engineer stumbles over: in comments and docstrings of the product, in README.md and docs/."""

from __future__ import annotations

import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PRODUCT = ("jlora", "train", "serve")
"""The packages whose comments and docstrings are checked, those of them that exist."""
STUMBLING = re.compile(
    r"\b(beside|behind|mend(?:s|ed|ing)?|lies|stands|stand for|so many|(?:is|are) said|go(?:es)? by|of which)\b",
    re.IGNORECASE,
)
"""Correct English, but rare in technical prose, so readers stop at each of them.

Write `next to`, `in addition to` or `compared with`; `after`; `fix`; `is in`; `represents`; `this many`; `is logged`;
`is computed in`; `and most of them`. Better, write the sentence again.
"""


def comments_and_docstrings(file):
    """Yields (line, text) of each line of each comment and each string in triple quotes."""
    with tokenize.open(file) as source:
        for token in tokenize.generate_tokens(source.readline):
            quoted = token.type == tokenize.STRING and token.string.lstrip("rR").startswith('"""')
            if token.type == tokenize.COMMENT or quoted:
                yield from enumerate(token.string.splitlines(), token.start[0])


def stumbling_words(root):
    """Returns "file:line: word" for each stumbling word below `root`, in the order of the files."""
    prose = {
        file: comments_and_docstrings(file) for package in PRODUCT for file in sorted((root / package).rglob("*.py"))
    }
    for page in [root / "README.md", *sorted((root / "docs").glob("*.md"))]:
        prose[page] = enumerate(page.read_text(encoding="utf-8").splitlines(), 1)
    return [
        f"{file.relative_to(root).as_posix()}:{number}: {match[0]}"
        for file, lines in prose.items()
        for number, line in lines
        for match in STUMBLING.finditer(line)
    ]


def test_no_word_is_one_that_readers_stumble_over():
    found = stumbling_words(ROOT)
    assert not found, "rewrite the sentence at\n" + "\n".join(found)


@pytest.fixture
def small_project(tmp_path):
    (tmp_path / "jlora" / "deep").mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("The file lies here.\n")
    (tmp_path / "docs" / "page.md").write_text("# Page\n\nMended, and this is said; attention goes by blocks.\n")
    (tmp_path / "jlora" / "deep" / "one.py").write_text(
        'behind = "beside"  # the key that stands beside it\n\n\ndef f():\n    """Says:\n\n    so many\n    """\n'
    )
    return tmp_path


def test_each_word_is_found_with_its_file_and_line(small_project):
    assert stumbling_words(small_project) == [
        "jlora/deep/one.py:1: stands",
        "jlora/deep/one.py:1: beside",
        "jlora/deep/one.py:7: so many",
        "README.md:1: lies",
        "docs/page.md:3: Mended",
        "docs/page.md:3: is said",
        "docs/page.md:3: goes by",
    ]


def test_code_and_other_words_are_left_alone(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "train").mkdir()
    (tmp_path / "README.md").write_text(
        "It relies on what the user said; besides, the standard understands amendments.\n"
    )
    (tmp_path / "train" / "one.py").write_text('lies = ["so many", "behind"]\n')
    assert stumbling_words(tmp_path) == []
