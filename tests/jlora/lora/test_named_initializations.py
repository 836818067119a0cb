"""The table of initializations with a name."""

import pytest

import jlora
from jlora.lora.named_initializations import INITIALIZATIONS, find_initialization, is_residual

VALUES = {"pissa_niter_N": "pissa_niter_16"}


@pytest.mark.parametrize("one", INITIALIZATIONS, ids=lambda one: one.name)
def test_each_has_a_public_function_and_is_a_value_of_the_config(one):
    value = VALUES.get(one.name, one.name)
    assert one.function in jlora.__all__
    assert find_initialization(value) is one
    assert jlora.LoraConfig(init_lora_weights=value).init_lora_weights == value


@pytest.mark.parametrize("value", [True, False, None, "", "pissa_niter_", "pissa_niter_N", "pissa ", "Pissa", "xeva"])
def test_other_values_are_none_of_them(value):
    assert find_initialization(value) is None


def test_residual_ones_start_with_a_part_of_the_weights():
    values = [VALUES.get(one.name, one.name) for one in INITIALIZATIONS]
    assert [value for value in values if is_residual(value)] == ["pissa", "pissa_niter_16", "olora"]
