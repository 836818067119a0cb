"""Laws of one step, on a function small enough to compile at once."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jlora
from jlora.ops.dropout_key import hash_key
from jlora.tree.leaf_paths import leaves_by_path
from train.classify.data.batches import Batch
from train.classify.evaluate import logits_forward
from train.classify.loss import classification_loss, row_losses
from train.loop.evaluation import make_eval_step
from train.loop.step import make_train_step
from train.run.state import State

_DRAW = np.random.default_rng(0)
BASE = {
    "params": {
        "words": {"embedding": jnp.asarray(_DRAW.normal(size=(11, 6)), jnp.float32)},
        "dense": {"kernel": jnp.asarray(_DRAW.normal(size=(6, 5)), jnp.float32), "bias": jnp.zeros(5)},
        "classifier": {"kernel": jnp.asarray(_DRAW.normal(size=(5, 3)), jnp.float32), "bias": jnp.zeros(3)},
    }
}


def apply(base, batch, rngs=None):
    """Mean of the words' vectors, a hidden layer, three logits; dropout of a kind where there are rngs."""
    p = base["params"]
    mask = batch["attention_mask"].astype(jnp.float32)[:, :, None]
    x = (p["words"]["embedding"][batch["input_ids"]] * mask).sum(1) / mask.sum(1)
    x = jnp.tanh(x @ p["dense"]["kernel"] + p["dense"]["bias"][None])
    if rngs is not None:
        x = x * jax.random.bernoulli(rngs["dropout"], 0.5, x.shape).astype(x.dtype)
    return x @ p["classifier"]["kernel"] + p["classifier"]["bias"][None]


def _rows(count=8, problem_type="single_label_classification"):
    draw = np.random.default_rng(1)
    inputs = {"input_ids": draw.integers(0, 11, (count, 4), np.int32), "attention_mask": np.ones((count, 4), np.int32)}
    if problem_type == "multi_label_classification":
        labels = draw.integers(0, 2, (count, 3)).astype(np.float32)
    else:
        labels = draw.integers(0, 3, count).astype(np.int32)
    return Batch(inputs, labels, np.ones(count, np.float32), np.arange(count, dtype=np.int32))


def _adapter(method):
    if method == "full":
        return {path: jlora.Full(jnp.array(leaf, copy=True)) for path, leaf in leaves_by_path(BASE).items()}
    config = jlora.LoraConfig(r=2, target_modules=["dense"], init_lora_weights=False, task_type="SEQ_CLS")
    return jlora.init(jax.random.key(0), config, BASE, apply, _rows(2).inputs)


def _step(method, rows, accumulation=1, problem_type="single_label_classification", dropout=False, start=0):
    """(state, values) after one step of plain descent: the gradient itself, not Adam's sign of it."""
    tx = optax.sgd(1.0)
    trainable, frozen = jlora.split(_adapter(method))
    step = make_train_step(classification_loss(apply, problem_type, model_dropout=dropout), tx, accumulation)
    return step(State(trainable, tx.init(trainable), jnp.int32(start)), frozen, BASE, rows, jax.random.key(7))


def _assert_close(found, expected, relative=1e-6):
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.linalg.norm(one - other) <= relative * max(1.0, float(np.linalg.norm(other)))


@pytest.mark.parametrize("problem_type", ["single_label_classification", "multi_label_classification"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_accumulation_equals_the_big_batch(method, problem_type):
    rows = _rows(problem_type=problem_type)
    whole = _step(method, rows, problem_type=problem_type)
    for parts in (2, 8):
        _assert_close(_step(method, rows, parts, problem_type), whole)


def test_accumulation_equals_the_big_batch_where_some_parts_are_filler():
    rows = _rows(8)
    weights = np.array([1, 1, 1, 1, 1, 0, 0, 0], np.float32)
    whole = _step("lora", rows._replace(weights=weights))
    _assert_close(_step("lora", rows._replace(weights=weights), 4), whole)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_filler_rows_change_nothing(method):
    rows = _rows(8)
    real = jax.tree.map(lambda x: x[:5], rows)
    padded = rows._replace(weights=np.array([1, 1, 1, 1, 1, 0, 0, 0], np.float32))
    _assert_close(_step(method, padded), _step(method, real))


def test_a_batch_of_filler_alone_is_no_step():
    state, values = _step("lora", _rows()._replace(weights=np.zeros(8, np.float32)))
    assert float(values["loss"]) == float(values["grad_norm"]) == 0.0
    _assert_close(state.trainable, jlora.split(_adapter("lora"))[0], 0)


def test_a_step_follows_the_gradient_of_the_mean_loss():
    rows, (trainable, frozen) = _rows(), jlora.split(_adapter("lora"))

    def mean_loss(trainable):
        logits = apply(jlora.merge(BASE, jlora.combine(trainable, frozen)), rows.inputs)
        return row_losses("single_label_classification", logits, rows.labels).mean()

    loss, gradient = jax.value_and_grad(mean_loss)(trainable)
    state, values = _step("lora", rows)
    _assert_close(values["loss"], loss)
    _assert_close(values["grad_norm"], jnp.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(gradient))))
    _assert_close(state.trainable, jax.tree.map(jnp.subtract, trainable, gradient))
    assert int(state.step) == 1


def test_dropout_follows_key_and_step_and_can_be_off():
    rows = _rows()
    first, again, later = (_step("lora", rows, dropout=True, start=start)[1]["loss"] for start in (0, 0, 1))
    assert first == again
    assert first != later
    off = [_step("lora", rows, dropout=False, start=start)[1]["loss"] for start in (0, 1)]
    assert off[0] == off[1]


def test_parts_of_a_batch_have_masks_of_their_own():
    """Two equal halves: one mask for both would give the loss of one half alone."""
    half = _rows(4)
    twice = jax.tree.map(lambda x: np.concatenate([x, x]), half)
    both = _step("lora", twice, 2, dropout=True)[1]["loss"]
    key = hash_key(jax.random.fold_in(jax.random.key(7), 0))
    alone = []
    for part in range(2):
        rng = jax.random.split(jax.random.fold_in(key, part))[1]
        logits = apply(jlora.merge(BASE, _adapter("lora")), half.inputs, rngs={"dropout": rng})
        alone.append(row_losses("single_label_classification", logits, half.labels).mean())
    assert alone[0] != alone[1]
    assert float(both) == pytest.approx(float(alone[0] + alone[1]) / 2, rel=1e-5)


def test_evaluation_has_no_dropout_and_takes_no_adapter():
    rows = _rows()
    inputs, eval_step = rows.inputs, make_eval_step(logits_forward(apply))
    assert np.allclose(eval_step(None, BASE, rows), apply(BASE, inputs), rtol=1e-5)
    adapter = _adapter("lora")
    assert np.allclose(eval_step(adapter, BASE, rows), apply(jlora.merge(BASE, adapter), inputs), rtol=1e-5)


def test_one_shape_compiles_once():
    tx = optax.sgd(1.0)
    trainable, frozen = jlora.split(_adapter("lora"))
    step = make_train_step(classification_loss(apply, "single_label_classification", model_dropout=True), tx, 2)
    state = State(trainable, tx.init(trainable), jnp.int32(0))
    for count in (8, 8, 4, 8):
        state, _ = step(state, frozen, BASE, _rows(count), jax.random.key(0))
    assert step._cache_size() == 2
