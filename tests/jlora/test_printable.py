"""What a stranger's file says reaches a terminal, a log and a card as text alone."""

import dataclasses
import os
import re
import subprocess
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jlora.errors import JloraError
from jlora.printable import counted, printable, shorten_words
from tests.train.artifacts.test_model_card import FACTS
from train.artifacts.model_card import model_card
from train.cli.exit_codes import show

OBEYED = ["\x1b[2J", "\x9b2J", "\r", "\x07", "\x08", "\x7f", "\u202e", "\u2066", "\u2028", "\ud800", "\x00"]


@given(st.text())
def test_nothing_is_left_that_a_terminal_obeys(text):
    shown = printable(text)
    assert printable(shown) == shown
    assert not {c for c in shown if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")} - {"\n", "\t"}
    shown.encode("utf-8")


@pytest.mark.parametrize("text", ["größe 数据　x", "👨‍👩‍👧", "می‌خواهم", "a\n\tb", "▁Ġ", ""])
def test_letters_of_all_scripts_stay(text):
    assert printable(text) == text


@pytest.mark.parametrize("sign", OBEYED)
def test_each_border_escapes(sign, capsys):
    code = sign[0].encode("unicode_escape").decode()
    assert str(JloraError(f"a{sign}b")) == f"a{code}{sign[1:]}b"
    show(f"a{sign}b")
    assert capsys.readouterr().out == f"a{code}{sign[1:]}b\n"
    facts = dataclasses.replace(FACTS, base_model=f"me/{sign}", dataset=sign, labels=[f"a{sign}b"], lora={"x": sign})
    for kind in ("merged", "adapter"):
        card = model_card(facts, kind)
        assert printable(card) == card


@pytest.mark.parametrize("ci", ["true", ""])
def test_logs_of_all_packages_escape_and_appear_once(ci):
    script = (
        "import logging; from train.cli.progress import configure_logging\n"
        "configure_logging(); import huggingface_hub, transformers\n"
        "for name in ('train.x', 'transformers.y', 'huggingface_hub.z', 'httpx'):\n"
        r"  logging.getLogger(name).warning('%s', '\x1b[2J\ud800')"
    )
    environment = {**os.environ, "CI": ci}
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    shown = [re.sub(r"^(\[transformers\]|\d\d:\d\d:\d\d) ", "", line) for line in result.stderr.splitlines()]
    assert shown == ["\\x1b[2J\\ud800"] * 4


def test_a_very_long_word_is_cut_in_the_middle():
    text = f"data.labels: {'a' * 100_000} is unknown"
    short = shorten_words(text)
    assert short == f"data.labels: {'a' * 200}…{'a' * 100} is unknown"
    assert shorten_words(short) == short
    assert str(JloraError(text)) == short
    assert shorten_words("b" * 400) == "b" * 400


@pytest.mark.parametrize(
    ("number", "noun", "expected"),
    [
        (1, "row", "1 row"),
        (0, "row", "0 rows"),
        (2000, "token", "2,000 tokens"),
        (1, "class", "1 class"),
        (2, "class", "2 classes"),
    ],
)
def test_one_has_no_plural(number, noun, expected):
    assert counted(number, noun) == expected
