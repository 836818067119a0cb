"""EVA: A spans what its weight is fed, ranks go where that explains most, and the config says so; PEFT beside it."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jlora
from jlora.initialization.abstract_adapter import abstract_adapter
from jlora.initialization.eva import init_eva
from jlora.lora.entries import LowRank
from jlora.lora.matrices import to_matrices
from tests.support.adapters.lora_cases import normal
from tests.support.models.encoder_cases import difference

KEY = jax.random.key(0)
SIZES = jnp.asarray(np.geomspace(3, 0.1, 12), jnp.float32)
BASE = {
    "first": {"kernel": normal(1, 12, 10)},
    "layers": {"dense": {"kernel": normal(2, 3, 10, 10) * 0.5}},
    "heads": {"kernel": normal(3, 10, 2, 3)},
    "out": {"kernel": normal(4, 2, 3, 5)},
    "table": {"embedding": normal(5, 7, 5)},
}
TARGETS = ["first", "dense", "heads", "out"]


def _model(base, batch, inputs=None):
    """Adds what each weight is fed to the list `inputs`."""
    inputs = [] if inputs is None else inputs
    x = jnp.tanh(batch @ base["first"]["kernel"])
    x, fed = lax.scan(lambda x, w: (jnp.tanh(x @ w), x), x, base["layers"]["dense"]["kernel"])
    heads = jnp.einsum("btd,dhk->bthk", x, base["heads"]["kernel"])
    inputs += [batch, *fed, x, heads.reshape(*heads.shape[:2], -1)]
    y = jnp.einsum("bthk,hko->bto", heads, base["out"]["kernel"])
    return y + base["table"]["embedding"][jnp.array([[0, 3, 6]])]


def _batch(seed, count=4):
    """Half of the sequences are the other half's negatives, so that all inputs of this odd model have mean 0."""
    half = normal(seed, count, 3, 12) * SIZES[None, None]
    return jnp.concatenate([half, -half])


def _shifted(seed):
    return _batch(seed) + 1


def _init(batches=None, targets=TARGETS, base=BASE, model=_model, rho=2.0, **fields):
    config = jlora.LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": targets, **fields}, init_lora_weights="eva")
    return init_eva(KEY, config, base, model, [_batch(1), _batch(2)] if batches is None else batches, rho=rho)


def _inputs(batches):
    """What each of the six layers is fed, (tokens, in)."""
    fed = []
    for batch in batches:
        fed.append([])
        _model(BASE, batch, fed[-1])
    return [np.concatenate([x.reshape(-1, x.shape[-1]) for x in layer]) for layer in zip(*fed, strict=True)]


def _layers(adapter):
    """The six layers in the order of `_inputs`."""
    order = [
        ("first/kernel", 0),
        *(("layers/dense/kernel", i) for i in range(3)),
        ("heads/kernel", 0),
        ("out/kernel", 0),
    ]
    return [to_matrices(adapter[path])[layer] for path, layer in order]


def test_a_is_the_first_right_singular_vectors_of_the_inputs():
    batches = [_shifted(1), _shifted(2)]
    adapter, _ = _init(batches, rho=1.0)
    for layer, inputs in zip(_layers(adapter), _inputs(batches), strict=True):
        _, s, vh = np.linalg.svd(inputs, full_matrices=False)
        apart = s[: len(layer.a)] > 1.02 * s[1 : len(layer.a) + 1]
        apart &= np.r_[True, apart[:-1]]
        cosines = np.abs(np.sum(layer.a * vh[: len(layer.a)], 1))
        np.testing.assert_allclose(cosines[apart], 1, atol=1e-4)
        np.testing.assert_allclose(layer.a @ layer.a.T, np.eye(len(layer.a)), atol=1e-5)
        # as much of the inputs is kept as r directions can
        kept = np.sum((inputs @ np.asarray(layer.a).T) ** 2)
        np.testing.assert_allclose(kept, np.sum(s[: len(layer.a)] ** 2), rtol=1e-5)
        assert not layer.b.any()


def test_the_adapted_function_is_the_base():
    adapter, _ = _init()
    batch = _batch(3)
    assert difference(jlora.adapt(_model)(BASE, adapter, batch), _model(BASE, batch)) < 1e-6


def _expected_ranks(inputs, rank, most):
    """Ranks by the largest shares of all layers' squared singular values."""
    shares = []
    for layer, x in enumerate(inputs):
        squares = np.linalg.svd(x, compute_uv=False) ** 2
        shares += [(share, layer) for share in (squares / squares.sum())[:most]]
    best = sorted(shares, reverse=True)[: rank * len(inputs)]
    return [sum(layer == i for _, layer in best) for i in range(len(inputs))]


@pytest.mark.parametrize(("rho", "most"), [(1.0, 4), (1.5, 6), (2.0, 8)])
def test_ranks_go_to_the_largest_shares(rho, most):
    batches = [_shifted(1), _shifted(2)]
    adapter, _ = _init(batches, rho=rho)
    found = [len(layer.scale) for layer in _layers(adapter)]
    inputs = _inputs(batches)
    assert found == _expected_ranks(inputs, 4, most)
    assert sum(found) == 24
    assert (len(set(found)) == 1) == (rho == 1.0)


@pytest.mark.parametrize("fields", [{}, {"rank_pattern": {"1.dense": 6, "out": 2}}, {"use_rslora": True}], ids=str)
def test_the_config_says_what_the_adapter_is(fields):
    """Its shapes, ranks and scales are those that the config gives; alpha / r is as before."""
    adapter, config = _init(**fields)
    assert config.init_lora_weights == "eva"
    expected = abstract_adapter(dataclasses.replace(config, init_lora_weights=True), BASE, _model, _batch(1))
    assert set(adapter) == set(expected)
    for path, entry in expected.items():
        assert (adapter[path].ranks, adapter[path].a.shape) == (entry.ranks, entry.a.shape)
        np.testing.assert_array_equal(adapter[path].scale, entry.scale)
    if not fields:
        assert {float(scale) for layer in _layers(adapter) for scale in layer.scale} == {1.5}
    names = {"first", *(f"layers.{i}.dense" for i in range(3)), "heads", "out"}
    assert set(config.target_modules) == names
    assert set(config.rank_pattern) <= names
    assert all(rank != 4 for rank in config.rank_pattern.values())


def test_layers_without_a_rank_are_not_adapted():
    """`a` sees one direction; what sees none has no share, and ends with rank 0 or not in the adapter at all."""
    base = {
        "a": {"kernel": normal(1, 8, 4)},
        "b": {"kernel": normal(2, 8, 4)},
        "layers": {"c": {"kernel": normal(3, 3, 8, 8)}},
    }
    batch = jnp.eye(8)

    def model(base, batch):
        nothing = 0 * batch
        x, _ = lax.scan(lambda x, w: ((x @ w) * 0, None), batch, base["layers"]["c"]["kernel"])
        return batch[:, :1] @ base["a"]["kernel"][:1] + nothing @ base["b"]["kernel"] + x[:, :4]

    adapter, config = _init([batch], ["b", "c"], base, model, rho=4.0, r=2)
    assert set(adapter) == {"layers/c/kernel"}
    assert adapter["layers/c/kernel"].ranks == (8, 0, 0)
    assert (config.target_modules, config.rank_pattern) == (["layers.0.c"], {"layers.0.c": 8})
    assert config.alpha_pattern == {"layers.0.c": 24.0}
    assert difference(jlora.adapt(model)(base, adapter, batch), model(base, batch)) < 1e-6


def test_names_that_end_in_each_other():
    """A dropped module is not meant again by the end of its name, nor a rank by another's pattern."""
    base = {"b": {"kernel": normal(1, 8, 4)}, "x": {"b": {"kernel": normal(2, 8, 4)}}}

    def model(base, batch, first=1.0, second=0.0):
        return (first * batch) @ base["b"]["kernel"] + (second * batch) @ base["x"]["b"]["kernel"]

    adapter, config = _init([jnp.eye(8)], ["b"], base, model, r=2)
    assert set(adapter) == {"b/kernel"}
    assert (config.target_modules, config.rank_pattern) == ("b", {"b": 4})

    def uneven(base, batch):
        narrow = batch * jnp.asarray([1.0, 0.5, 0, 0, 0, 0, 0, 0])[None]
        return batch @ base["b"]["kernel"] + narrow @ base["x"]["b"]["kernel"]

    adapter, config = _init([jnp.eye(8)], ["b"], base, uneven, r=3)
    assert {path: entry.ranks for path, entry in adapter.items()} == {"b/kernel": (4,), "x/b/kernel": (2,)}
    assert config.rank_pattern == {"x.b": 2, "b": 4}


def test_tables_start_as_ever_and_keep_their_rank():
    adapter, config = _init(targets=[*TARGETS, "table"])
    table = adapter["table/embedding"]
    assert (table.kind, table.ranks) == ("lookup", (4,))
    assert not table.a.any()
    assert table.b.any()
    assert "table" in config.target_modules
    assert sum(len(layer.scale) for layer in _layers(adapter)) == 24


def test_what_is_trained_whole_is_there():
    adapter, config = _init(targets=["first", "dense"], modules_to_save=["out"])
    assert (adapter["out/kernel"].value == BASE["out"]["kernel"]).all()
    assert config.modules_to_save == ["out"]


def test_with_dora():
    adapter, _ = _init(use_dora=True)
    entry = adapter["heads/kernel"]
    assert isinstance(entry, LowRank)
    np.testing.assert_allclose(entry.magnitude, jnp.linalg.norm(BASE["heads"]["kernel"], axis=0), rtol=1e-6)


def test_batches_may_be_a_generator_of_other_shapes():
    several, _ = _init(_batch(1, count) for count in (2, 3))
    halves = _batch(1, 2), _batch(1, 3)
    together, _ = _init([jnp.concatenate(halves)])
    for layer, expected in zip(_layers(several), _layers(together), strict=True):
        assert layer.a.shape == expected.a.shape
        projector, other = (np.asarray(x.a).T @ np.asarray(x.a) for x in (layer, expected))
        np.testing.assert_allclose(projector, other, atol=1e-3)


def test_ranks_and_subspaces_are_pefts():
    """On inputs of mean 0, which PEFT takes away, PEFT's ranks, alphas and target modules, and the span of its A."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    sizes = [12, 10, 10, 6, 5]
    weights = [0.6 * normal(i, *shape) for i, shape in enumerate(itertools.pairwise(sizes))]
    batch = _batch(1, 20).reshape(-1, 12)

    def model(base, batch):
        for name in sorted(base):
            batch = jnp.tanh(batch @ base[name])
        return batch

    layers = [torch.nn.Linear(*weight.shape, bias=False) for weight in weights]
    for layer, weight in zip(layers, weights, strict=True):
        layer.weight.data = torch.tensor(np.array(weight.T))
    network = torch.nn.Sequential(*[part for layer in layers for part in (layer, torch.nn.Tanh())])
    names = [str(2 * i) for i in range(len(layers))]
    fields = {"r": 3, "lora_alpha": 6, "target_modules": names, "init_lora_weights": "eva"}
    theirs = peft.get_peft_model(network, peft.LoraConfig(**fields, eva_config=peft.EvaConfig(rho=2.0)))
    data = [{"input": torch.tensor(np.array(batch))}] * 2
    peft.initialize_lora_eva_weights(
        theirs, data, prepare_model_inputs_fn=None, prepare_layer_inputs_fn=None, show_progress_bar=False
    )
    base = dict(zip(names, weights, strict=True))
    adapter, config = init_eva(KEY, jlora.LoraConfig(**fields), base, model, [batch])

    expected = theirs.peft_config["default"]
    assert set(config.target_modules) == set(expected.target_modules)
    assert config.rank_pattern == expected.rank_pattern
    assert config.alpha_pattern == expected.alpha_pattern
    assert config.rank_pattern, "no rank has moved: nothing is tested"
    for name in config.target_modules:
        found = to_matrices(adapter[name])[0]
        module = theirs.base_model.model[int(name)]
        a = module.lora_A.default.weight.detach().numpy()
        assert module.scaling["default"] == found.scale[0]
        np.testing.assert_allclose(found.a.T @ found.a, a.T @ a, atol=1e-3)
        np.testing.assert_allclose(np.abs(np.sum(found.a * a, 1)), 1, atol=1e-4)


def test_what_cannot_be():
    with pytest.raises(jlora.JloraError, match=r'^LoraConfig\.init_lora_weights: expected "eva", found True'):
        init_eva(KEY, jlora.LoraConfig(target_modules=["out"]), BASE, _model, [_batch(1)])
    with pytest.raises(jlora.JloraError, match=r"^rho: expected at least 1, found 0\.5"):
        _init(rho=0.5)
    with pytest.raises(jlora.JloraError, match=r"^batches: expected at least one batch, found none"):
        _init([])
