"""The einsum of a low-rank update."""

import pytest

from jlora.lora.spec import Spec, parse_spec

SPECS = {
    "ra,rb->ab": Spec("", "a", "b", "ab"),
    "arb,arc->abc": Spec("a", "b", "c", "abc"),
    "ra,rbc->abc": Spec("", "a", "bc", "abc"),
    "rcab,rd->abcd": Spec("", "cab", "d", "abcd"),
    "abrc,abrd->abcd": Spec("ab", "c", "d", "abcd"),
}


@pytest.mark.parametrize("text", SPECS)
def test_a_spec_is_read_and_written(text):
    assert parse_spec(text) == SPECS[text]
    assert str(SPECS[text]) == text


def test_the_axes_of_both_factors_begin_with_the_stack():
    spec = parse_spec("arb,arcd->abcd")
    assert (spec.a, spec.b) == ("arb", "arcd")


def test_a_spec_is_read_once():
    assert parse_spec("ra,rb->ab") is parse_spec("ra,rb->ab")
