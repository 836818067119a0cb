"""What does not fit says which key of the configuration would change that, and no argument of a function."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

import jlora
from jlora.errors import AdapterMismatchError
from serve.engine.bank_capacity import require_configured
from tests.support.bank_cases import WIDTH, make_adapters, make_case, make_empty_bank

CASE = make_case("plain")
FITTING = make_adapters(CASE)[1]
BANK = jax.eval_shape(lambda: make_empty_bank(CASE))


def _adapter(rank, targets):
    config = jlora.LoraConfig(r=rank, target_modules=targets, init_lora_weights=False)
    return jlora.init(jax.random.key(0), config, CASE.base, CASE.fn, CASE.rows)


def test_one_that_fits_is_taken():
    require_configured(BANK, FITTING)  # raises nothing
    assert jlora.put(make_empty_bank(CASE), 0, FITTING).filled[0]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            _adapter(7, ["mid"]),
            r"^mid/kernel: expected a rank of at most 6, the configuration's `max_rank`, found 7\. Set",
        ),
        (_adapter(1, ["head"]), "^head/kernel: expected a module that the configuration's `target_modules` name"),
        ({"head/kernel": jlora.Full(jnp.zeros((WIDTH, 4)))}, "^head/kernel: expected LoRA, .* jlora export"),
        ({"mid/kernel": jlora.Full(jnp.zeros((WIDTH, WIDTH)))}, "^mid/kernel: expected LoRA, .* jlora export"),
    ],
)
def test_what_does_not_fit_names_the_key(entries, message):
    with pytest.raises(AdapterMismatchError, match=message) as error:
        require_configured(BANK, FITTING | entries)
    assert "make_bank" not in str(error.value)


def test_another_shape_is_refused():
    with pytest.raises(AdapterMismatchError, match=r"^mid/kernel: shapes"):
        require_configured(BANK, {"mid/kernel": jax.tree.map(lambda x: x[..., :5], FITTING["mid/kernel"])})
