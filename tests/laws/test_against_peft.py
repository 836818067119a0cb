"""PEFT's modules beside ours: the same files, the same forward, the same gradients, and back without a bit lost."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from safetensors.numpy import load_file

import jlora
from jlora.peft.folder import to_peft
from tests.support.models.encoder_cases import difference

WEIGHTS = "adapter_model.safetensors"


def _dense(base: Any, x: jax.Array) -> jax.Array:
    return x @ base["layer"]["kernel"] + base["layer"]["bias"][None, None]


def _conv1d(base: Any, x: jax.Array) -> jax.Array:
    return x @ base["layer"]["weight"] + base["layer"]["bias"][None, None]


def _lookup(base: Any, ids: jax.Array) -> jax.Array:
    return base["layer"]["embedding"][ids]


def _conv(base: Any, x: jax.Array) -> jax.Array:
    """torch's Conv1d, 2d and 3d with stride 2 and padding 1, the kernel as (*window, in, out)."""
    dims = x.ndim - 2
    window = "HWD"[:dims]
    numbers = ("NC" + window, window + "IO", "NC" + window)
    y = lax.conv_general_dilated(x, base["layer"]["kernel"], (2,) * dims, [(1, 1)] * dims, dimension_numbers=numbers)
    return y + base["layer"]["bias"].reshape(1, -1, *(1,) * dims)


def _case(kind: str) -> tuple[Any, Any, Any, np.ndarray]:
    """(torch model of one layer, base, fn, input) of one kind of weight."""
    import torch
    from transformers.pytorch_utils import Conv1D

    normal = np.random.default_rng(0).standard_normal
    torch.manual_seed(0)
    if kind == "embedding":
        layer: Any = torch.nn.Embedding(11, 6)
        leaves, fn, x = {"embedding": layer.weight}, _lookup, np.arange(15, dtype=np.int32).reshape(3, 5) % 11
    elif kind == "gpt2":
        layer = Conv1D(7, 6)
        leaves, fn, x = {"weight": layer.weight, "bias": layer.bias}, _conv1d, normal((3, 5, 6), np.float32)
    elif kind == "linear":
        layer = torch.nn.Linear(6, 7)
        leaves, fn, x = {"kernel": layer.weight.T, "bias": layer.bias}, _dense, normal((3, 5, 6), np.float32)
    else:
        dims = int(kind[-1])
        layer = getattr(torch.nn, f"Conv{dims}d")(4, 7, (3, 2, 2)[:dims], stride=2, padding=1)
        kernel = layer.weight.permute(*range(2, dims + 2), 1, 0)
        leaves, fn, x = {"kernel": kernel, "bias": layer.bias}, _conv, normal((3, 4, 8, 7, 6)[: dims + 2], np.float32)
    base = {"layer": {name: jnp.asarray(value.detach().numpy()) for name, value in leaves.items()}}
    return torch.nn.Sequential(OrderedDict(layer=layer)), base, fn, x


def _adapted(model: Any, kind: str, fields: dict[str, Any]) -> Any:
    """The model wrapped by PEFT, every trained tensor random."""
    import peft
    import torch

    given = {"r": 2, "lora_alpha": 4, "target_modules": ["layer"], "fan_in_fan_out": kind == "gpt2", **fields}
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**given))
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn_like(parameter)
    return wrapped


CASES = [
    ("linear", {}),
    ("linear", {"use_rslora": True, "lora_alpha": 3}),
    ("linear", {"use_dora": True}),
    ("linear", {"use_dora": True, "use_rslora": True}),
    ("gpt2", {}),
    ("gpt2", {"use_dora": True}),
    ("embedding", {}),
    ("embedding", {"use_dora": True}),
    ("conv 1", {}),
    ("conv 2", {}),
    ("conv 3", {}),
    ("conv 1", {"use_dora": True}),
    ("conv 2", {"use_dora": True}),
    ("conv 3", {"use_dora": True}),
]


@pytest.mark.parametrize(("kind", "fields"), CASES)
def test_forward_and_gradients_are_pefts(kind, fields, tmp_path):
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    model, base, fn, x = _case(kind)
    theirs = _adapted(model, kind, fields)
    theirs.save_pretrained(tmp_path)
    output = theirs(torch.tensor(x))
    weights = np.random.default_rng(1).standard_normal(output.shape, np.float32)
    (output * torch.tensor(weights)).sum().backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters() if p.requires_grad}
    expected = peft.get_peft_model_state_dict(theirs, state_dict=gradients)

    adapter, _ = jlora.load_adapter(tmp_path, base, fn, x)

    def loss(adapter: Any) -> tuple[jax.Array, jax.Array]:
        y = jlora.adapt(fn)(base, adapter, x)
        return jnp.sum(y * weights), y

    gradient, y = jax.grad(loss, has_aux=True)(adapter)
    assert difference(y, output.detach()) < 1e-5
    assert difference(fn(base, x), y) > 1e-2, "the adapter changes nothing: nothing is tested"
    found = to_peft(gradient)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert difference(found[key], value) < 1e-5, key


@pytest.mark.parametrize(("kind", "fields"), CASES)
def test_peft_opens_what_was_read_and_saved_again(kind, fields, tmp_path, recwarn):
    """The tensors' bytes outlive the way there and back; PEFT opens the folder in silence and computes the same."""
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    model, base, fn, x = _case(kind)
    theirs = _adapted(model, kind, fields).eval()
    theirs.save_pretrained(tmp_path / "peft")
    adapter, config = jlora.load_adapter(tmp_path / "peft", base, fn, x)
    jlora.save_adapter(tmp_path / "ours", adapter, config)
    back, original = load_file(tmp_path / "ours" / WEIGHTS), load_file(tmp_path / "peft" / WEIGHTS)
    assert back.keys() == original.keys()
    assert all(back[key].tobytes() == original[key].tobytes() for key in original)
    recwarn.clear()
    opened = peft.PeftModel.from_pretrained(_case(kind)[0], tmp_path / "ours")
    assert [str(warning.message) for warning in recwarn] == []
    with torch.no_grad():
        assert torch.equal(opened(torch.tensor(x)), theirs(torch.tensor(x)))


@pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer with groups:UserWarning")
def test_grouped_convolutions_have_no_adapter_in_common(tmp_path):
    """PEFT's A sees the channels of all groups there: no update of the grouped kernel says that, so it is refused."""
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    layer = torch.nn.Conv2d(4, 6, 3, groups=2)
    base = {"layer": {"kernel": jnp.asarray(layer.weight.detach().permute(2, 3, 1, 0).numpy())}}
    model = torch.nn.Sequential(OrderedDict(layer=layer))
    peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["layer"])).save_pretrained(tmp_path)

    def grouped(base: Any, x: jax.Array) -> jax.Array:
        numbers = ("NCHW", "HWIO", "NCHW")
        kernel = base["layer"]["kernel"]
        return lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=numbers, feature_group_count=2)

    with pytest.raises(
        jlora.JloraError, match=r"lora_A\.weight: expected the shape \(2, 2, 3, 3\).*found \(2, 4, 3, 3"
    ):
        jlora.load_adapter(tmp_path, base, grouped, jnp.ones((1, 4, 5, 5)))
