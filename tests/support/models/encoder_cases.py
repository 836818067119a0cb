"""Tiny encoders with the same random weights in PyTorch and here, and the numbers to compare."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transformers import BertConfig, DistilBertConfig, PreTrainedConfig, RobertaConfig

from jlora.pretrained.load import load_base
from jlora.tree.leaf_paths import leaves_by_path
from jlora.tree.module_names import hf_keys, is_stacked, is_transposed

ENCODERS = ["bert", "distilbert", "roberta"]
_SIZES = {"vocab_size": 60, "max_position_embeddings": 24, "initializer_range": 0.1}
_BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
_DISTIL = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}


def tiny_config(family: str, **switches: Any) -> PreTrainedConfig:
    """A config of two layers, 32 wide, 4 heads, with `switches` set."""
    if family == "bert":
        return BertConfig(**_SIZES | _BERT | switches)
    if family == "roberta":
        return RobertaConfig(**_SIZES | _BERT | {"type_vocab_size": 1, "layer_norm_eps": 1e-5} | switches)
    return DistilBertConfig(**_SIZES | _DISTIL | switches)


def torch_classifier(config: PreTrainedConfig, head: str = "SequenceClassification") -> Any:
    """transformers' PyTorch model of `config`, every parameter random, biases and layer norms too."""
    torch = pytest.importorskip("torch", reason="the oracle is transformers' PyTorch model")
    import transformers

    auto = "AutoModel" if head == "" else f"AutoModelFor{head}"
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = getattr(transformers, auto).from_config(config)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def random_batch(config: PreTrainedConfig, *, token_types: bool = False) -> dict[str, jax.Array]:
    """Four rows of at most 12 tokens, int32 (4, 12), two of them padded."""
    rng = np.random.default_rng(0)
    mask = np.arange(12)[None, :] < np.array([12, 7, 12, 3])[:, None]
    ids = np.where(mask, rng.integers(5, config.vocab_size, mask.shape), config.pad_token_id)
    batch = {"input_ids": ids, "attention_mask": mask}
    if token_types:
        batch["token_type_ids"] = np.where(mask, rng.integers(0, 2, mask.shape), 0)
    return {name: jnp.asarray(value, jnp.int32) for name, value in batch.items()}


def torch_batch(batch: dict[str, jax.Array]) -> dict[str, Any]:
    """The batch as PyTorch's int64 tensors."""
    import torch

    return {name: torch.tensor(np.asarray(value, np.int64)) for name, value in batch.items()}


def torch_logits(model: Any, batch: dict[str, jax.Array]) -> np.ndarray:
    """Logits of the PyTorch model as it is, training or evaluating."""
    return model(**torch_batch(batch)).logits.detach().numpy()


def difference(found: Any, expected: Any) -> float:
    """|found - expected| / |expected|, L2, in float64."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def load_saved(oracle: Any, folder: Path, **options: Any) -> tuple[Any, Any]:
    """(model, base) read from the files that the PyTorch model writes into `folder`."""
    oracle.save_pretrained(folder)
    return load_base(str(folder), **options)


def assert_same_logits(oracle: Any, folder: Path, batch: dict[str, jax.Array]) -> None:
    """The law of the encoders: from the same files, the same logits as PyTorch."""
    model, base = load_saved(oracle, folder)
    assert difference(jax.jit(model.apply)(base, batch), torch_logits(oracle, batch)) < 1e-5


def assert_same_gradients(oracle: Any, folder: Path, batch: dict[str, jax.Array]) -> None:
    """The gradient of each leaf, with remat and without, is that of the checkpoint's tensors in PyTorch."""
    import torch

    model, base = load_saved(oracle, folder)
    weights = np.random.default_rng(1).normal(size=(4, model.config.num_labels)).astype(np.float32)
    (oracle(**torch_batch(batch)).logits * torch.tensor(weights)).sum().backward()
    expected = {name: parameter.grad.numpy() for name, parameter in oracle.named_parameters()}
    for remat in (False, True):
        module = type(model)(model.config, remat=remat)
        gradient = jax.jit(jax.grad(lambda base, module=module: (module.apply(base, batch) * weights).sum()))(base)
        for path, leaf in leaves_by_path(gradient).items():
            layers = leaf if is_stacked(path) else leaf[None]
            keys = hf_keys(path, len(leaf) if is_stacked(path) else None)
            for key, value in zip(keys, layers, strict=True):
                found = np.asarray(value).T if is_transposed(path) else np.asarray(value)
                assert np.abs(found - expected[key]).max() < 1e-4 * max(1.0, np.abs(expected[key]).max()), key


def assert_same_dropout(oracle: Any, folder: Path, batch: dict[str, jax.Array], monkeypatch: Any) -> None:
    """With dropout replaced by x (1 + rate) on both sides, training logits agree: every rate in its place."""
    import torch

    model, base = load_saved(oracle, folder)
    monkeypatch.setattr(torch.nn.functional, "dropout", lambda x, p, training, *_: x * (1 + p) if training else x)
    for module in ("blocks.layers", "attention.attention"):
        monkeypatch.setattr(f"jlora.models.{module}.dropout", lambda key, x, rate: x * np.float32(1 + rate))
    found = model.clone(attention="full").apply(base, batch, rngs={"dropout": jax.random.key(0)})
    expected = torch_logits(oracle.train(), batch)
    assert difference(found, expected) < 1e-5
    assert difference(torch_logits(oracle.eval(), batch), expected) > 1e-2


def assert_seeded_dropout(config: PreTrainedConfig) -> None:
    """Dropout follows its key: the same key the same logits, another key or none others."""
    from jlora.pretrained.load import build

    model, batch = build(config), random_batch(config)
    base = jax.jit(model.init)(jax.random.key(0), batch)
    train = jax.jit(lambda key: model.apply(base, batch, rngs={"dropout": key}))
    first = train(jax.random.key(1))
    assert (first == train(jax.random.key(1))).all()
    assert (first != train(jax.random.key(2))).all()
    assert (first != model.apply(base, batch)).all()
