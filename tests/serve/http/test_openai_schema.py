"""Bodies whose errors would be many."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from serve.http.openai_schema import ChatBody

TEXT = {"type": "text", "text": "x"}


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [0] * 1000},
        {"messages": [{"role": "user", "content": [0] * 1000}] * 1000},
        {"messages": [{"role": "user", "content": [TEXT, *[{}] * 1000]}]},
        {"messages": [{"role": "user", "content": "x"}], "stop": [0] * 1000},
    ],
)
def test_a_list_of_wrong_items_has_few_errors(body):
    with pytest.raises(ValidationError) as error:
        ChatBody.model_validate({"model": "alice"} | body)
    assert error.value.error_count() <= 3  # one for each type that a union may have
