"""Qwix's LoRA on our linen models: the same loss, A and B made and used by Qwix."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
import qwix

import jlora
from benchmarks.common.work import Work
from jlora.lora.adapted_model import Adapted
from jlora.tree.leaf_paths import leaves_by_path
from train.lm.loss import next_token_sums

_MADE = ("_lora_a", "_lora_b")
_METHODS = ("hidden", "logits")


def with_qwix(work: Work, adapted: Adapted) -> tuple[Any, dict[str, Any], dict[str, Any], Any]:
    """(loss, trainable, frozen, base): as `train.loop.step` takes them; both dicts by path, B zero as Qwix starts."""
    rule = qwix.LoraRule(module_path=f".*/({'|'.join(work.modules)})", rank=work.rank, alpha=16.0)
    methods = ("__call__",) if work.is_encoder else _METHODS
    model = qwix.apply_lora_to_model(adapted.model, qwix.LoraProvider([rule]), methods=methods)
    batch = {name: jax.ShapeDtypeStruct((1, 8), jnp.int32) for name in ("input_ids", "attention_mask")}
    shapes = jax.eval_shape(lambda batch: model.init(jax.random.key(0), batch, method=methods[0]), batch)
    made = {path: _start(path, spec) for path, spec in leaves_by_path(shapes).items() if path.endswith(_MADE)}
    if not made:
        raise RuntimeError(f"expected Qwix to find {rule.module_path}, found no such module")
    trainable, frozen = jlora.split({path: jlora.Full(leaf) for path, leaf in (made | _heads(adapted)).items()})
    loss = _encoder_loss(model) if work.is_encoder else _lm_loss(model)
    return loss, trainable, frozen, adapted.base


def _start(path: str, spec: Any) -> jax.Array:
    if path.endswith("_lora_b"):
        return jnp.zeros(spec.shape, jnp.float32)
    return jax.nn.initializers.he_uniform()(jax.random.key(0), spec.shape, jnp.float32)


def _heads(adapted: Adapted) -> dict[str, Any]:
    """The classifier, which is trained whole."""
    return {path: leaf for path, leaf in leaves_by_path(adapted.base).items() if "/classifier/" in path}


def _variables(base: Any, adapter: dict[str, jlora.Full]) -> Any:
    """The base with Qwix's A and B beside its kernels, and with the head that is trained."""
    leaves = leaves_by_path(base) | {path: entry.value for path, entry in adapter.items()}
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *folders, name = path.split("/")
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        place[name] = leaf
    return tree


def _encoder_loss(model: Any) -> Any:
    def loss(trainable: Any, frozen: Any, base: Any, batch: Any, key: jax.Array) -> jax.Array:
        logits = model.apply(_variables(base, jlora.combine(trainable, frozen)), batch.inputs)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
        return jnp.sum(losses * batch.weights)

    return loss


def _lm_loss(model: Any) -> Any:
    def logits(_: Any, base: Any, states: jax.Array, chunk: jax.Array) -> jax.Array:
        return model.apply(base, states, method="logits")

    def loss(trainable: Any, frozen: Any, base: Any, batch: Any, key: jax.Array) -> jax.Array:
        states = model.apply(_variables(base, jlora.combine(trainable, frozen)), batch.inputs, method="hidden")
        return next_token_sums(logits, {}, base, states, batch.targets, batch.weights).loss

    return loss
