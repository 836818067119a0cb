import jax
import jax.numpy as jnp
import numpy as np
import optax

import jlora
from train.checkpoint import Best, open_checkpoints, restore, save, to_host
from train.step import State


def _state(step, seed=0):
    draw = np.random.default_rng(seed)
    adapter = {
        "params/x/kernel": jlora.LowRank(
            jnp.asarray(draw.normal(size=(2, 4)), jnp.float32),
            jnp.asarray(draw.normal(size=(2, 3)), jnp.float32),
            jnp.ones(2),
            "ra,rb->ab",
            (2,),
        ),
        "params/classifier/bias": jlora.Full(jnp.asarray(draw.normal(size=3), jnp.float32)),
    }
    trainable, _ = jlora.split(adapter)
    return State(trainable, optax.adam(1e-3).init(trainable), jnp.int32(step))


def _assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert np.asarray(a).dtype == np.asarray(b).dtype
        assert np.array_equal(a, b)


def test_what_is_saved_comes_back_bit_for_bit(tmp_path):
    state, best = _state(7), Best(to_host(_state(3, seed=1).trainable), 0.875, 3, 2)
    with open_checkpoints(tmp_path, 2) as manager:
        save(manager, state, best)
    with open_checkpoints(tmp_path, 2) as manager:
        found, found_best = restore(manager, _state(0, seed=2))
    _assert_same(found, state)
    _assert_same(found_best.trainable, best.trainable)
    assert (found_best.value, found_best.step, found_best.stale) == (0.875, 3, 2)


def test_without_a_checkpoint_there_is_the_start(tmp_path):
    with open_checkpoints(tmp_path / "checkpoints", 2) as manager:
        found, best = restore(manager, state := _state(0))
    _assert_same(found, state)
    _assert_same(best.trainable, to_host(state.trainable))
    assert (best.value, best.step, best.stale) == (None, 0, 0)


def test_a_best_that_was_not_evaluated_yet_is_kept_as_such(tmp_path):
    with open_checkpoints(tmp_path, 1) as manager:
        save(manager, state := _state(1), Best(to_host(state.trainable)))
        manager.wait_until_finished()
        assert restore(manager, _state(0))[1].value is None


def test_the_newest_stay_and_the_newest_is_read(tmp_path):
    with open_checkpoints(tmp_path, 2) as manager:
        for step in (2, 4, 6):
            save(manager, _state(step, seed=step), Best(to_host(_state(step).trainable)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["4", "6"]
    with open_checkpoints(tmp_path, 2) as manager:
        _assert_same(restore(manager, _state(0))[0], _state(6, seed=6))


def test_steps_that_follow_do_not_change_a_checkpoint_being_written(tmp_path):
    state = _state(1)
    expected = to_host(state)
    move = jax.jit(lambda state: jax.tree.map(lambda x: x + jnp.ones((), x.dtype), state), donate_argnums=0)
    with open_checkpoints(tmp_path, 1) as manager:
        save(manager, state, Best(to_host(state.trainable)))
        for _ in range(5):
            state = move(state)
    with open_checkpoints(tmp_path, 1) as manager:
        _assert_same(to_host(restore(manager, _state(0))[0]), expected)


def test_to_host_is_a_copy():
    array = np.ones(3)
    copy = to_host({"x": array})["x"]
    array[0] = 5
    assert copy[0] == 1
