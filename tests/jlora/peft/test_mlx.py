"""Adapters of mlx-lm: its formula, computed by hand, is what they are here."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import jlora
from jlora.peft.config_file import read_base_name, read_config
from tests.support.adapters.lora_cases import normal
from tests.support.adapters.small_adapter import BASE, X, apply, load
from tests.support.models.encoder_cases import difference

SCALE = 20.0
KERNELS = BASE["encoder"]["layers"]["query"]["kernel"]


def _tensors(layers: tuple[int, ...] = (0, 1), *, dora: bool = False) -> dict[str, np.ndarray]:
    found = {}
    for layer in layers:
        name = f"encoder.layers.{layer}.query"
        found |= {f"{name}.lora_a": normal(layer, 4, 2), f"{name}.lora_b": 0.01 * normal(10 + layer, 2, 4)}
        if dora:
            found[f"{name}.m"] = 1 + 0.1 * normal(20 + layer, 4)
    return {key: np.asarray(value) for key, value in found.items()}


def _save(folder: Path, tensors: dict[str, np.ndarray], **fields: object) -> Path:
    parameters = {"rank": 2, "scale": SCALE, "dropout": 0.0}
    config = {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": parameters, "model": "org/model"}
    (folder / "adapter_config.json").write_text(json.dumps(config | fields))
    save_file(tensors, folder / "adapters.safetensors")
    return folder


def _dense(tensors: dict[str, np.ndarray]) -> jax.Array:
    """mlx-lm's layers, y = x W + scale (x a) b, and with m, y m / |W + scale a b|, the norm over the inputs."""
    kernels = []
    for layer, kernel in enumerate(KERNELS):
        name = f"encoder.layers.{layer}.query"
        if f"{name}.lora_a" in tensors:
            kernel = kernel + SCALE * tensors[f"{name}.lora_a"] @ tensors[f"{name}.lora_b"]
        if f"{name}.m" in tensors:
            kernel = kernel * (tensors[f"{name}.m"] / jnp.linalg.norm(kernel, axis=0))[None]
        kernels.append(kernel)
    return apply(BASE | {"encoder": {"layers": {"query": {"kernel": jnp.stack(kernels)}}}}, X)


@pytest.mark.parametrize("layers", [(0, 1), (1,)])
@pytest.mark.parametrize("dora", [False, True])
def test_the_function_is_mlxs(layers, dora, tmp_path):
    tensors = _tensors(layers, dora=dora)
    _save(tmp_path, tensors, fine_tune_type="dora" if dora else "lora")
    adapter, config = load(tmp_path)
    found = jax.jit(jlora.adapt(apply))(BASE, adapter, X)
    assert difference(found, _dense(tensors)) < 1e-5
    assert difference(found, apply(BASE, X)) > 1e-3
    assert (config.r, config.lora_alpha, config.use_dora) == (2, 40.0, dora)
    assert read_base_name(tmp_path) == "org/model"
    jlora.save_adapter(tmp_path / "peft", adapter, config)
    assert load(tmp_path / "peft")[1].lora_alpha == 40


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"fine_tune_type": "full"}, r"fine_tune_type: expected lora or dora, found 'full' .* Fuse it into"),
        (
            {"lora_parameters": {"rank": 2}},
            "lora_parameters: expected a rank and a scale, found {'rank': 2} .* Write the numbers",
        ),
        ({"lora_parameters": None}, "lora_parameters: expected a rank and a scale, found None"),
        (
            {"lora_parameters": {"rank": 2, "scale": 1.0, "alpha": 16}},
            r"lora_parameters\.alpha: expected none, found 16",
        ),
        ({"lora_parameters": {"rank": 0, "scale": 1.0}}, r"LoraConfig\.r: expected an integer of at least 1, found 0"),
    ],
)
def test_what_is_not_understood_is_named(fields, message, tmp_path):
    _save(tmp_path, _tensors(), **fields)
    with pytest.raises(jlora.JloraError, match=rf"adapter_config\.json: {message}"):
        read_config(tmp_path)


def test_tensors_of_another_model_are_refused(tmp_path):
    _save(tmp_path, {key.replace("query", "key"): value for key, value in _tensors().items()})
    with pytest.raises(
        jlora.JloraError, match=r"encoder\.layers\.0\.key\.lora_A\.weight: found, but the base has no such module"
    ):
        load(tmp_path)


@pytest.mark.parametrize("table", ["model.embed_tokens", "transformer.wte"])
def test_an_adapter_of_an_embedding_is_refused_with_the_reason(table, tmp_path):
    tensors = {f"{table}.lora_a": np.ones((7, 2), np.float32), f"{table}.lora_b": np.ones((2, 4), np.float32)}
    _save(tmp_path, _tensors() | tensors)
    expected = rf"{table}\.lora_a: expected adapters of linear layers, found one of an embedding .*output head"
    with pytest.raises(jlora.FileError, match=expected):
        load(tmp_path)
