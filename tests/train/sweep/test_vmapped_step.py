"""Eight runs in one program are the eight runs alone."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jlora
from train.config.sections import TrainSection
from train.loop.optimizer import optimizer, schedule
from train.loop.step import make_train_step
from train.run.state import State
from train.sweep.pad_adapters import common_form, cut, pad, ranks_of, stack_trees
from train.sweep.vmapped_step import make_members_step

STEPS = 50
TRAIN = TrainSection(weight_decay=0.1, max_grad_norm=0.5, schedule="cosine")
BOTH, FIRST, SECOND = ["first", "second"], ["first"], ["second"]
RUNS = [  # rank, alpha, rate, targets, start
    (1, 1, 1e-3, BOTH, True), (2, 16, 1e-2, FIRST, True), (3, 3, 3e-2, SECOND, False), (4, 8, 1e-3, BOTH, "orthogonal"),
    (8, 16, 1e-2, BOTH, "gaussian"), (8, 8, 5e-3, FIRST, True), (12, 24, 2e-3, SECOND, True), (16, 4, 3e-2, BOTH, True),
]  # fmt: skip


class Pairs(NamedTuple):
    """Rows x (n, 24) and y (n, 16)."""

    x: jax.Array
    y: jax.Array
    weights: jax.Array


def _apply(base, x):
    return jnp.tanh(x @ base["first"]["kernel"]) @ base["second"]["kernel"]


def _total_loss(trainable, frozen, base, batch, key):
    found = jlora.adapt(_apply)(base, jlora.combine(trainable, frozen), batch.x, dropout_key=key)
    return jnp.sum(jnp.square(found - batch.y).mean(1) * batch.weights)


def _base() -> Any:
    draw = np.random.default_rng(0)
    shapes = {"first": (24, 20), "second": (20, 16)}
    return {name: {"kernel": jnp.array(draw.normal(size=shape) / 5, "f")} for name, shape in shapes.items()}


def _batch(step: int) -> Pairs:
    draw = np.random.default_rng(step)
    return Pairs(*(jnp.array(draw.normal(size=(8, width)), "f") for width in (24, 16)), jnp.ones(8))


def _adapters() -> list[Any]:
    made = []
    for number, (rank, alpha, _, targets, start) in enumerate(RUNS):
        config = jlora.LoraConfig(
            r=rank, lora_alpha=alpha, target_modules=targets, init_lora_weights=start, lora_dropout=0.2
        )
        made.append(jlora.init(jax.random.key(number), config, _base(), _apply, _batch(0).x))
    return made


RATIOS = [1, 1, 4, 1, 16, 1, 2, 1]
"""LoRA+'s, of each run."""


def _alone(adapter: Any, rate: float, ratio: float) -> Any:
    train = TRAIN.model_copy(update={"loraplus_lr_ratio": None if ratio == 1 else ratio})
    tx = optimizer(train, schedule(train, rate, STEPS))
    step = make_train_step(_total_loss, tx, 1)
    trainable, frozen = jlora.split(jax.tree.map(jnp.copy, adapter))  # the step donates them
    state = State(trainable, tx.init(trainable), jnp.int32(0))
    for number in range(STEPS):
        state, _ = step(state, frozen, _base(), _batch(number), jax.random.key(7))
    return jlora.combine(state.trainable, frozen)


def _together(adapters: list[Any], rates: list[float]) -> list[Any]:
    form = common_form(adapters)
    trainable, frozen = (
        stack_trees(trees) for trees in zip(*(jlora.split(pad(one, form)) for one in adapters), strict=True)
    )
    init = optimizer(TRAIN, schedule(TRAIN, 1.0, STEPS), 1.0).init
    state = State(trainable, jax.vmap(init)(trainable), jnp.int32(0))
    step, ratios = make_members_step(_total_loss, TRAIN), jnp.array(RATIOS, jnp.float32)
    for number in range(STEPS):
        at_step = jnp.array([schedule(TRAIN, rate, STEPS)(jnp.int32(number)) for rate in rates])
        state, values = step(at_step, ratios, state, frozen, _base(), _batch(number), jax.random.key(7))
        assert values["loss"].shape == (len(adapters),)
    stacked = jlora.combine(state.trainable, frozen)
    return [cut(jax.tree.map(lambda x, at=index: x[at], stacked), ranks_of(one)) for index, one in enumerate(adapters)]


pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(scope="module")
def standard_promotion():
    """optax.adamw raises a float to an integer's power."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def adapters():
    return _adapters()


@pytest.fixture(scope="module")
def together(adapters, standard_promotion):
    return _together(adapters, [rate for _, _, rate, _, _ in RUNS])


def test_weights_are_those_of_each_run_alone(adapters, together):
    for run, ratio, start, found in zip(RUNS, RATIOS, adapters, together, strict=True):
        alone = _alone(start, run[2], ratio)
        assert jax.tree.structure(found) == jax.tree.structure(alone)
        for path in alone:
            for name in ("a", "b"):
                expected = getattr(alone[path], name)
                difference = jnp.linalg.norm(getattr(found[path], name) - expected) / jnp.linalg.norm(expected)
                assert difference < 1e-5, (run, path, name)


def test_a_run_that_diverges_changes_no_other_by_a_bit(adapters, together):
    rates = [rate for _, _, rate, _, _ in RUNS]
    found = _together(adapters, [*rates[:3], float("inf"), *rates[4:]])
    assert not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found[3]))
    del found[3]
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(together[:3] + together[4:]), strict=True):
        np.testing.assert_array_equal(one, other)


def test_each_run_may_have_a_batch_of_its_own(adapters):
    one = adapters[0]
    batches = [_batch(number) for number in (3, 4)]
    step, alone = (
        make_members_step(_total_loss, TRAIN, own_rows=True),
        make_train_step(_total_loss, optimizer(TRAIN, lambda _: 1e-2), 1),
    )
    trainable, frozen = jlora.split(one)
    start = optimizer(TRAIN, lambda _: 0.0).init(trainable)
    stacked = stack_trees([(trainable, optimizer(TRAIN, lambda _: 0.0, 1.0).init(trainable))] * 2)
    state, values = step(
        jnp.array([1e-2, 1e-2]), jnp.ones(2), State(*stacked, jnp.int32(0)), stack_trees([frozen] * 2), _base(),
        stack_trees(batches), jax.random.key(7),
    )  # fmt: skip
    for place, batch in enumerate(batches):
        mine = State(*jax.tree.map(jnp.copy, (trainable, start)), jnp.int32(0))
        after, found = alone(mine, frozen, _base(), batch, jax.random.key(7))
        np.testing.assert_allclose(values["loss"][place], found["loss"], rtol=1e-6)
        for together, single in zip(jax.tree.leaves(state.trainable), jax.tree.leaves(after.trainable), strict=True):
            np.testing.assert_allclose(together[place], single, rtol=1e-5, atol=1e-7)
    assert values["loss"][0] != values["loss"][1]


def test_a_single_member_has_no_axis_of_length_one(adapters):
    trainable, frozen = jlora.split(adapters[0])
    start = optimizer(TRAIN, lambda _: 0.0, 1.0).init(trainable)
    stacked = State(*stack_trees([(trainable, start)]), jnp.int32(0))
    arguments = (jnp.ones(1), jnp.ones(1), stacked, stack_trees([frozen]), _base(), _batch(0), jax.random.key(7))
    step = make_members_step(_total_loss, TRAIN)
    products = [line for line in step.lower(*arguments).as_text().splitlines() if "dot_general" in line]
    assert products
    assert not any("batching_dims" in line for line in products)
    state, values = step(*arguments)
    assert values["loss"].shape == (1,)
    assert jax.tree.leaves(state.trainable)[0].shape[0] == 1
