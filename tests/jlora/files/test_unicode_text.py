import pytest

from jlora.errors import JloraError
from jlora.files.unicode_text import require_text


def test_text_is_returned_as_it_is():
    assert require_text("a\U0001f600", "x") == "a\U0001f600"


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (None, r"nothing \(null or an empty cell\)\. Fill it in"),
        (float("nan"), r"NaN \(an empty cell\)\. Fill it in"),
        (3, r"3 \(a number\)\. Put it in quotes"),
        (True, r"True \(bool\)"),
        (["a"], r"\['a'\] \(list\)"),
    ],
)
def test_what_is_no_text_is_named(value, found):
    with pytest.raises(JloraError, match=rf"^file, row 3: expected text, found {found}$"):
        require_text(value, "file, row 3")


def test_half_a_character_is_refused():
    with pytest.raises(
        JloraError, match=r"^x: expected text in whole Unicode characters, found half of one, \\ud83d, "
    ):
        require_text("half \ud83d", "x")
