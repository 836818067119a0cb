import jax
import numpy as np

from tests.train.sweep.test_vmapped_step import _adapters
from train.sweep.pad_adapters import common_form, cut, have_one_effect, pad, ranks_of


def test_cut_is_the_inverse_of_pad():
    adapters = _adapters()
    form = common_form(adapters)
    for adapter in adapters:
        padded = pad(adapter, form)
        assert jax.tree.structure(padded) == jax.tree.structure(form)
        found = cut(padded, ranks_of(adapter))
        assert jax.tree.structure(found) == jax.tree.structure(adapter)
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(adapter), strict=True):
            np.testing.assert_array_equal(one, other)


def test_adapters_whose_b_is_zero_have_one_effect():
    zero, drawn = _adapters()[:2], _adapters()[2]
    form = common_form([*zero, drawn])
    assert have_one_effect([pad(adapter, form) for adapter in zero])
    assert not have_one_effect([pad(adapter, form) for adapter in (*zero, drawn)])
