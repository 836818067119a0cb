import jinja2
import pytest
from jinja2.utils import Namespace

from jlora.generation import template_sizes as sizes


def test_the_size_of_a_value_counts_what_is_shared_each_time():
    value = ["abc"]
    for _ in range(60):
        value = [value, value]
    assert sizes.measure(value) > 2**60
    assert sizes.measure(Namespace(a="x" * 99, b={"y": "z" * 99})) > 198
    assert sizes.measure({"a": 1}.items()) > sizes.measure({}.items())
    with pytest.raises(jinja2.TemplateError, match="it takes too long"):
        sizes.measure([0] * 10**6, most=1000)


def test_keys_that_are_not_text_may_have_one_hash():
    assert sizes.estimate_hashing(map(str, range(1000))) == 0
    assert sizes.estimate_hashing([str(i) for i in range(1000)]) == 0
    assert sizes.estimate_hashing(range(1000)) > 50_000
