from __future__ import annotations

import pytest

from serve.http.errors import HttpError
from serve.http.limits import require_adapter_name


@pytest.mark.parametrize("name", ["a", "A-1_b.c", "_x", "9", "x" * 128])
def test_plain_names_are_taken(name):
    assert require_adapter_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "-x", ".", "..", ".a", "a/b", "a\\b", "a b", "a\n", "a\0", "é", "x" * 129, "a%2Fb", "a:b"]
)
def test_others_are_refused_and_quoted_in_part(name):
    with pytest.raises(HttpError, match=r"^name: expected 1 to 128 letters") as error:
        require_adapter_name(name)
    assert error.value.status == 400
    assert len(str(error.value)) < 200
