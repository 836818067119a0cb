"""An adapter of any tree becomes a file in which PEFT finds everything, and comes back."""

from __future__ import annotations

import json
import re

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from safetensors.numpy import load_file

import jlora
from jlora.initialization.abstract_adapter import abstract_adapter
from jlora.peft.tensor_keys import slots
from jlora.peft.torch_paths import in_torch_paths
from tests.support.adapters.lora_cases import assert_adapted_is_merged, low_rank, normal, randomized
from tests.support.models.encoder_cases import difference

WIDTH = 6
X = normal(1, 4, WIDTH)
LAYERS = [f"layers.{i}.up" for i in range(2)]
"""The torch model: x -> tanh(layer(x)) twice, then head."""


def _oracle():
    """The torch model with random weights, and {name: array}."""
    torch = pytest.importorskip("torch")

    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.up = torch.nn.Linear(WIDTH, WIDTH)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList([Layer(), Layer()])
            self.head = torch.nn.Linear(WIDTH, WIDTH)

        def forward(self, x):
            for layer in self.layers:
                x = torch.tanh(layer.up(x))
            return self.head(x)

    torch.manual_seed(0)
    model = Model().eval()
    return model, {name: jnp.asarray(value.detach().numpy()) for name, value in model.named_parameters()}


def _scanned(state):
    """A tree of its own names, its layers stacked, as (in, out)."""
    stack = {"q": jnp.stack([state[f"{name}.weight"].T for name in LAYERS])}
    stack |= {"shift": jnp.stack([state[f"{name}.bias"] for name in LAYERS])}

    def fn(base, x):
        x, _ = lax.scan(lambda x, w: (jnp.tanh(x @ w["q"] + w["shift"][None]), None), x, base["blocks"])
        return x @ base["out"]["m"] + base["out"]["n"][None]

    base = {"blocks": stack, "out": {"m": state["head.weight"].T, "n": state["head.bias"]}}
    names = {"blocks/q": "layers.{}.up.weight", "blocks/shift": "layers.{}.up.bias"}
    return fn, base, names | {"out/m": "head.weight", "out/n": "head.bias"}


def _nnx(state):
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.first, self.second, self.top = (nnx.Linear(WIDTH, WIDTH, rngs=rngs) for _ in range(3))

        def __call__(self, x):
            return self.top(jnp.tanh(self.second(jnp.tanh(self.first(x)))))

    graph, base = nnx.split(Model(nnx.Rngs(0)))
    modules = dict(zip(("first", "second", "top"), (*LAYERS, "head"), strict=True))
    names, values = {}, {}
    for module, name in modules.items():
        for leaf, end in (("kernel", "weight"), ("bias", "bias")):
            names[f"{module}/{leaf}/value"] = f"{name}.{end}"
            values[f"{module}/{leaf}/value"] = state[f"{name}.{end}"].T

    def fn(base, x):
        with jax.numpy_rank_promotion("allow"):
            return nnx.merge(graph, base)(x)

    return fn, jlora.tree.leaf_paths.replace_leaves(base, values), names


def _haiku(state):
    @hk.without_apply_rng
    @hk.transform
    def network(x):
        with jax.numpy_rank_promotion("allow"):
            return hk.nets.MLP([WIDTH] * 3, activation=jnp.tanh)(x)

    modules = dict(zip((f"mlp/~/linear_{i}" for i in range(3)), (*LAYERS, "head"), strict=True))
    base = {path: {"w": state[f"{name}.weight"].T, "b": state[f"{name}.bias"]} for path, name in modules.items()}
    names = {f"{p}/{leaf}": f"{n}.{end}" for p, n in modules.items() for leaf, end in (("w", "weight"), ("b", "bias"))}
    return network.apply, base, names


TREES = {"a scanned tree": _scanned, "an NNX State": _nnx, "Haiku": _haiku}
CONFIGS = {
    "low rank": {"target_modules": ["up", "head"]},
    "DoRA, one layer": {"target_modules": ["layers.1.up"], "use_dora": True},
    "a kernel trained whole": {"target_modules": ["up"], "modules_to_save": ["head"]},
    "biases": {"target_modules": ["layers.0.up"], "bias": "all"},
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_both_ways_by_names(tmp_path, tree, config):
    """What is square says nothing of its order: a kernel that is not turned gives other numbers."""
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    model, state = _oracle()
    fn, base, names = tree(state)
    assert difference(fn(base, X), model(torch.tensor(np.asarray(X))).detach().numpy()) < 1e-5
    config = jlora.LoraConfig(r=2, lora_alpha=3, **config)
    adapter = jlora.init(jax.random.key(0), config, base, fn, X, names=names)
    norms = {path: getattr(entry, "squared_norm", None) for path, entry in adapter.items()}
    adapter = randomized(adapter)
    for path, entry in adapter.items():
        if norms[path] is not None:
            adapter[path] = jlora.lora.dora.with_magnitude(entry, jlora.tree.leaf_paths.leaves_by_path(base)[path])
    jlora.save_adapter(tmp_path, adapter, config, names=names)
    theirs = peft.PeftModel.from_pretrained(model, tmp_path)
    found = jlora.adapt(fn)(base, adapter, X)
    assert difference(found, theirs(torch.tensor(np.asarray(X))).detach().numpy()) < 1e-5
    again, read = jlora.load_adapter(tmp_path, base, fn, X, names=names)
    assert again.keys() == adapter.keys()
    assert difference(jlora.adapt(fn)(base, again, X), found) < 1e-6
    jlora.save_adapter(tmp_path / "again", again, read, names=names)
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / file).read_bytes()


def test_a_configuration_by_paths_is_written_by_torchs_names(tmp_path):
    pytest.importorskip("torch")
    fn, base, names = _scanned(_oracle()[1])
    config = jlora.LoraConfig(r=2, target_modules=["q"], modules_to_save=["out"])
    adapter = jlora.init(jax.random.key(0), config, base, fn, X)
    with pytest.raises(jlora.JloraError, match=r"^out/m: .*a leaf outside of a module"):
        jlora.save_adapter(tmp_path, adapter, config)
    jlora.save_adapter(tmp_path, adapter, config, names=names)
    stored = json.loads((tmp_path / "adapter_config.json").read_text())
    assert sorted(stored["target_modules"]) == sorted(LAYERS)
    keys = load_file(tmp_path / "adapter_model.safetensors")
    assert {re.sub(r"base_model\.model\.", "", key) for key in keys} == {
        *(f"{name}.lora_{factor}.weight" for name in LAYERS for factor in "AB"),
        "head.weight",
        "head.bias",
    }


@pytest.mark.parametrize(
    ("path", "entry", "names", "message"),
    [
        ("", low_rank("ra,rb->ab", (5, 3)), None, "name of a PyTorch module"),
        ("mlp/~/linear_0/w", low_rank("ra,rb->ab", (5, 3)), None, "'mlp.~.linear_0'"),
        ("cls_token", jlora.Full(normal(1, 1, 1, 4)), None, "a leaf outside of a module"),
        ("mlp/m", jlora.Full(normal(1, 4, 4)), {"mlp/m": "mlp.weight"}, "whose output axes are known"),
        ("mlp/h/bias", jlora.Full(normal(1, 4)), None, r"a stack of layers, as its name says, found the shape \(4,\)"),
        ("mlp/w", low_rank("ra,rb->ab", (5, 3)), {"mlp/v": "mlp.weight"}, "found none"),
        ("mlp/w", low_rank("ra,rb->ab", (5, 3)), {"mlp/w": "mlp"}, r"ending in \.weight or \.bias"),
    ],
)
def test_what_peft_would_not_find_is_not_written(path, entry, names, message):
    with pytest.raises(jlora.JloraError, match=message) as caught:
        in_torch_paths({path: entry}, names)
    assert path in str(caught.value)


def test_a_stack_of_one_layer_is_one():
    base = {"h": {"q": {"kernel": normal(1, 1, 6, 6), "bias": normal(2, 1, 6)}}}

    def fn(base, x):
        return x @ base["h"]["q"]["kernel"][0] + base["h"]["q"]["bias"][0][None]

    config = jlora.LoraConfig(r=2, target_modules=["q"], layers_to_transform=[0], layers_pattern="h", bias="all")
    adapter = abstract_adapter(config, base, fn, normal(3, 2, 6))
    assert adapter["h/q/kernel"].spec == "arb,arc->abc"
    assert {slot.key.removeprefix("base_model.model.") for slot in slots(adapter)} == {
        "h.0.q.lora_A.weight",
        "h.0.q.lora_B.weight",
        "h.0.q.base_layer.bias",
    }


def test_layers_on_another_axis_than_the_first_are_adapted_and_not_written(tmp_path):
    """MaxText's: (in, layers, out)."""
    base, x = {"layers": {"q": {"kernel": normal(1, 6, 3, 6)}}}, normal(2, 2, 6)

    def fn(base, x):
        return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, jnp.moveaxis(base["layers"]["q"]["kernel"], 1, 0))[0]

    config = jlora.LoraConfig(r=2, target_modules=["q"], init_lora_weights=False)
    adapter = jlora.init(jax.random.key(0), config, base, fn, x)
    assert_adapted_is_merged(fn, base, adapter, x)
    with pytest.raises(jlora.JloraError, match=r"^layers/q/kernel: .*found a stack \(3,\) inside a module"):
        jlora.save_adapter(tmp_path, adapter, config)


def test_a_kernel_of_several_output_axes_is_one_matrix_in_torch():
    base = {"heads": {"kernel": normal(1, 4, 2, 3)}, "q": {"kernel": normal(2, 4, 4)}}

    def fn(base, x):
        return jnp.einsum("bi,ihk->bhk", x @ base["q"]["kernel"], base["heads"]["kernel"])

    config = jlora.LoraConfig(r=2, target_modules=["q"], modules_to_save=["heads"])
    adapter = abstract_adapter(config, base, fn, normal(3, 2, 4))
    assert adapter["heads/kernel"].torch_axes == ((1, 2), (0,))


def test_an_adapter_of_a_weight_without_a_rule_comes_back(tmp_path):
    base, x = {"up": {"kernel": normal(1, 4, 4)}}, normal(3, 2, 4)

    def fn(base, x):
        return x @ jnp.tanh(base["up"]["kernel"])

    config = jlora.LoraConfig(r=2, target_modules=["up"], init_lora_weights=False)
    adapter = jlora.init(jax.random.key(0), config, base, fn, x, allow_materialize=True)
    jlora.save_adapter(tmp_path, adapter, config)
    again, _ = jlora.load_adapter(tmp_path, base, fn, x, allow_materialize=True)
    apply = jlora.adapt(fn, allow_materialize=True)
    assert difference(apply(base, again, x), apply(base, adapter, x)) < 1e-6
    with pytest.raises(jlora.NoRuleError, match=r"up: .*up/kernel in tanh.*load_adapter\(.*allow_materialize="):
        jlora.load_adapter(tmp_path, base, fn, x)


def test_a_leaf_with_torchs_own_name_is_written_as_it_is(tmp_path):
    """GPT-2's Conv1D has (in, out) in torch, too."""
    base, x = {"c_fc": {"weight": normal(1, 4, 4)}, "q": {"kernel": normal(2, 4, 4)}}, normal(3, 2, 4)

    def fn(base, x):
        return x @ base["c_fc"]["weight"] @ base["q"]["kernel"]

    config = jlora.LoraConfig(r=2, target_modules=["q"], modules_to_save=["c_fc"])
    jlora.save_adapter(tmp_path, jlora.init(jax.random.key(0), config, base, fn, x), config)
    written = load_file(tmp_path / "adapter_model.safetensors")["base_model.model.c_fc.weight"]
    np.testing.assert_array_equal(written, base["c_fc"]["weight"])
