"""Adapters that are trained together are those that are trained alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jlora
from tests.support.bank_cases import make_case

RANKS, RATES, ALPHAS = (1, 2, 3, 4, 6, 8, 12, 16), (1e-3, 3e-3, 1e-2, 3e-2) * 2, (1, 8, 16, 4) * 2
ROWS = 2


@pytest.fixture(autouse=True)
def _promotion():
    with jax.numpy_dtype_promotion("standard"):  # optax.scale_by_adam raises a float to an integer's power
        yield


def _make_optimizer(hyperparameters):
    def decay(count):
        return 1 - count.astype(jnp.float32) / 60

    rate = optax.scale(-1.0 * hyperparameters["learning_rate"])
    return optax.chain(optax.scale_by_adam(), optax.scale_by_schedule(decay), rate)


def _case():
    """A case with eight adapters of other ranks, alphas and targets, and their rows."""
    case = make_case("plain")
    targets = [r".*(layers|mid).*", "mid", r".*layers.*", r".*(layers|mid).*"] * 2
    configs = [
        jlora.LoraConfig(r=rank, lora_alpha=alpha, target_modules=target if "*" in target else [target])
        for rank, alpha, target in zip(RANKS, ALPHAS, targets, strict=True)
    ]
    adapters = [jlora.init(jax.random.key(i), c, case.base, case.fn, case.rows) for i, c in enumerate(configs)]
    bank = jlora.make_bank(case.base, case.fn, case.rows, slots=9, max_rank=16, targets=case.configs[-1].target_modules)
    for slot, adapter in enumerate(adapters):
        bank = jlora.put(bank, slot, adapter)
    rows = jax.random.normal(jax.random.key(9), (8 * ROWS, 3, 32))
    return case, adapters, bank, rows


def _loss(fn):
    return lambda base, x: ((fn(base, x) - 1.0) ** 2).mean()


def _train_alone(case, adapter, rate, rows, steps):
    trainable, frozen = jlora.split(adapter)
    tx = _make_optimizer({"learning_rate": rate})
    state = tx.init(trainable)

    @jax.jit
    def step(trainable, state):
        def total(t):
            return jlora.adapt(_loss(case.fn))(case.base, jlora.combine(t, frozen), rows)

        updates, state = tx.update(jax.grad(total)(trainable), state, trainable)
        return optax.apply_updates(trainable, updates), state

    for _ in range(steps):
        trainable, state = step(trainable, state)
    return jlora.combine(trainable, frozen)


def _train_together(case, bank, slots, rates, rows, steps):
    hyperparameters = {"learning_rate": jnp.asarray(rates)}
    states = jlora.init_optimizers(_make_optimizer, bank, {"learning_rate": 0.0})

    @jax.jit
    def step(bank, states):
        losses, gradients = jlora.forward_backward(_loss(case.fn), case.base, bank, slots, rows)
        return losses, *jlora.optim_step(_make_optimizer, bank, states, slots, gradients, hyperparameters)

    for _ in range(steps):
        losses, bank, states = step(bank, states)
    return losses, bank, states


def test_together_equals_alone():
    case, adapters, bank, rows = _case()
    slots = jnp.arange(8)[::-1]  # the order of the slots in a step does not matter
    _, bank, states = _train_together(case, bank, slots, RATES[::-1], rows, 50)
    assert states.step.tolist() == [50] * 8 + [0, 0]
    for slot, adapter in enumerate(adapters):
        own = rows[(7 - slot) * ROWS :][:ROWS]
        alone = _train_alone(case, adapter, RATES[slot], own, 50)
        found = jlora.take(bank, slot)
        assert found.keys() == alone.keys()
        for path, entry in alone.items():
            for name in ("a", "b"):
                x, y = getattr(found[path], name), getattr(entry, name)
                assert float(jnp.abs(x - y).max() / jnp.abs(y).max()) < 1e-5, (slot, path, name)


def test_one_that_diverges_hurts_no_other():
    case, _, bank, rows = _case()
    slots = jnp.arange(8)
    _, good, _ = _train_together(case, bank, slots, RATES, rows, 3)
    losses, bad, _ = _train_together(case, bank, slots, (jnp.nan, *RATES[1:]), rows, 3)
    assert np.isnan(losses[0])
    assert np.isfinite(losses[1:]).all()
    for path in good.entries:
        np.testing.assert_array_equal(good.entries[path].b[1:8], bad.entries[path].b[1:8])


def test_slots_that_are_not_trained_do_not_change_by_a_bit():
    case, _, bank, rows = _case()
    _, trained, states = _train_together(case, bank, jnp.array([4, 0]), (0.1, 0.2), rows, 2)
    assert states.step.tolist() == [2, 0, 0, 0, 2, 0, 0, 0, 0, 0]
    for path in bank.entries:
        for old, new in zip(jax.tree.leaves(bank.entries[path]), jax.tree.leaves(trained.entries[path]), strict=True):
            np.testing.assert_array_equal(np.delete(old, [0, 4], 0), np.delete(new, [0, 4], 0))
        assert not np.array_equal(bank.entries[path].b[4], trained.entries[path].b[4])


def test_the_base_is_not_trained():
    case, _, bank, rows = _case()
    _, trained, states = _train_together(case, bank, jnp.array([-1, 3]), (0.1, 0.1), rows, 1)
    assert states.step.tolist() == [0, 0, 0, 1, 0, 0, 0, 0, 0, 0]
    for path in bank.entries:
        np.testing.assert_array_equal(bank.entries[path].b[-1], trained.entries[path].b[-1])


def test_padding_is_not_trained():
    case, _, bank, rows = _case()
    _, trained, _ = _train_together(case, bank, jnp.arange(8), RATES, rows, 3)
    for entry in trained.entries.values():
        for slot, rank in enumerate(RANKS):
            axis = entry.scale.ndim - 2
            assert not np.take(entry.a[slot], range(rank, 6), axis).any()
            assert not np.take(entry.b[slot], range(rank, 6), axis).any()
