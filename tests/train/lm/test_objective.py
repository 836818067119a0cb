"""One step of a causal language model, on a tiny Llama: the plain formula, however the batch is cut or packed."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jlora
from jlora.models.registry import build
from tests.support.adapters.lora_cases import random_adapter
from tests.support.models import decoder_cases as cases
from tests.support.models.encoder_cases import difference
from train.lm.data.batches import Batch
from train.lm.objective import causal_loss, loss_and_hits
from train.loop.evaluation import make_eval_step
from train.loop.step import make_train_step
from train.run.state import State

ROWS, LENGTH = 4, 10


@pytest.fixture(scope="module")
def llama():
    """(model, base, adapter on the head too)"""
    model = build(cases.tiny_decoder("llama"), remat=True)
    base = jax.jit(model.init)(jax.random.key(0), _batch().inputs)
    return model, base, random_adapter(model.apply, base, _batch().inputs, targets=["q_proj", "down_proj", "lm_head"])


def _batch():
    """Rows of 10, 7, 4 and 3 tokens, some of them not learnt."""
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 60, (ROWS, LENGTH)).astype(np.int32)
    mask = np.arange(LENGTH) < np.array([10, 7, 4, 3])[:, None]
    learnt = mask[:, 1:] & (rng.random((ROWS, LENGTH - 1)) < 0.8)
    weights = np.pad(learnt, [(0, 0), (0, 1)]).astype(np.float32)
    targets = np.pad(ids[:, 1:], [(0, 0), (0, 1)])
    return Batch({"input_ids": ids, "attention_mask": mask.astype(np.int32)}, targets, weights)


def _plain_loss(model, base, batch):
    losses = optax.softmax_cross_entropy_with_integer_labels(model.apply(base, batch.inputs), batch.targets)
    return jnp.sum(losses * batch.weights) / batch.weights.sum()


def _step(llama, batch, accumulation=1):
    model, base, adapter = llama
    tx = optax.sgd(1.0)
    trainable, frozen = jlora.split(jax.tree.map(lambda x: jnp.array(x, copy=True), adapter))
    step = make_train_step(causal_loss(model, model_dropout=False), tx, accumulation)
    return step(State(trainable, tx.init(trainable), jnp.int32(0)), frozen, base, batch, jax.random.key(1))


def test_a_step_follows_the_gradient_of_the_plain_mean_over_learnt_tokens(llama):
    model, base, adapter = llama
    trainable, frozen = jlora.split(adapter)

    @jax.jit
    def expected(trainable):
        return jax.value_and_grad(lambda t: _plain_loss(model, jlora.merge(base, jlora.combine(t, frozen)), _batch()))(
            trainable
        )

    loss, slope = expected(trainable)
    state, values = _step(llama, _batch())
    np.testing.assert_allclose(values["loss"], loss, rtol=1e-6)
    moved = jax.tree.map(jnp.subtract, trainable, state.trainable)
    for one, other in zip(jax.tree.leaves(moved), jax.tree.leaves(slope), strict=True):
        assert difference(one, other) < 1e-4


def test_accumulation_is_normalized_by_tokens(llama):
    """Parts with different numbers of learnt tokens: the loss and the step of the big batch."""
    (whole, whole_values), (parts, parts_values) = (_step(llama, _batch(), count) for count in (1, 4))
    np.testing.assert_allclose(parts_values["loss"], whole_values["loss"], rtol=1e-6)
    for one, other in zip(jax.tree.leaves(parts.trainable), jax.tree.leaves(whole.trainable), strict=True):
        assert difference(one, other) < 1e-5


def test_evaluation_sums_what_the_plain_formula_does(llama):
    model, base, adapter = llama
    batch = _batch()
    eval_step = make_eval_step(loss_and_hits(model))
    for given, merged in ((adapter, jlora.merge(base, adapter)), (None, base)):
        sums = eval_step(given, base, batch)
        logits = model.apply(merged, batch.inputs)
        right = ((jnp.argmax(logits, -1) == batch.targets) * batch.weights.astype(bool)).sum()
        np.testing.assert_allclose(sums.loss / batch.weights.sum(), _plain_loss(model, merged, batch), rtol=1e-5)
        assert float(sums.correct) == int(right)


def test_dropout_follows_the_key_and_reaches_the_head(llama):
    """With the head alone adapted, its input is dropped, in every chunk by another mask."""
    model, base, adapter = llama
    dropped = {path: replace(entry, dropout=0.5) for path, entry in adapter.items() if "lm_head" in path}
    loss = jax.jit(causal_loss(model, model_dropout=False))
    trainable, frozen = jlora.split(dropped)
    first, again, other = (loss(trainable, frozen, base, _batch(), jax.random.key(i)) for i in (1, 1, 2))
    assert first == again
    assert first != other
