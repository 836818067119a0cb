import pytest

from jlora.errors import JloraError
from jlora.files.unicode_text import require_text


def test_text_is_returned_as_it_is():
    assert require_text("a\U0001f600", "x") == "a\U0001f600"


@pytest.mark.parametrize(("value", "found"), [(None, "nothing"), (3, r"3 \(int\)"), ("\ud800", r"\(str\)")])
def test_anything_else_is_refused(value, found):
    with pytest.raises(JloraError, match=f"file, row 3: expected text in whole Unicode characters, found .*{found}"):
        require_text(value, "file, row 3")
