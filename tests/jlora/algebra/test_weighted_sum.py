"""Scaled and weighted adapters: PEFT's numbers for every kind, laws of merge, and what is refused."""

from __future__ import annotations

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jlora
from jlora.algebra.merge import update
from jlora.algebra.weighted_sum import COMBINATION_TYPES, add_weighted_adapter, scale
from jlora.lora.entries import Rows
from jlora.lora.matrices import Matrices, from_matrices, to_matrices
from tests.support.adapters.lora_cases import low_rank, normal
from tests.support.models.encoder_cases import difference

KERNEL = low_rank("ra,rb->ab", (9, 7))
LAYERS = low_rank("arb,arc->abc", (3, 9, 7))
TABLE = low_rank("ra,rb->ab", (11, 6), kind="lookup")
CONVOLUTION = low_rank("rcab,rd->abcd", (3, 3, 4, 5), kind="conv")


def _random(like, ranks, scales, seed):
    """An entry like `like` whose layers have these ranks and scales."""
    width, outputs = (like.a[0, 0] if like.scale.ndim > 1 else like.a[0]).size, to_matrices(like)[0].b.shape[0]
    layers = [
        Matrices(normal(seed + i, rank, width), normal(seed + 50 + i, outputs, rank), jnp.full((rank,), float(factor)))
        for i, (rank, factor) in enumerate(zip(ranks, scales, strict=True))
    ]
    return from_matrices(like, layers)


def _torch_model(torch, entry):
    """A model with one module for each layer of the entry."""
    layer = to_matrices(entry)[0]
    if entry.kind == "lookup":
        made = torch.nn.Embedding(layer.a.shape[1], layer.b.shape[0])
    elif entry.kind == "conv":
        made = torch.nn.Conv2d(entry.a.shape[1], entry.b.shape[1], entry.a.shape[2:])
    else:
        made = torch.nn.Linear(layer.a.shape[1], layer.b.shape[0])
    return torch.nn.Sequential(*[copy.deepcopy(made) for _ in entry.ranks])


def _factors(module, name):
    """(A, B) of PEFT's module, as parameters; None where it has no such adapter."""
    if name in module.lora_A:
        return module.lora_A[name].weight, module.lora_B[name].weight
    if name in module.lora_embedding_A:
        return module.lora_embedding_A[name], module.lora_embedding_B[name]
    return None


def _peft_layers(entries, weights, kind, **options):
    """What PEFT makes of the same tensors: the layers' matrices, None where no adapter has the layer."""
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    model = None
    for index, entry in enumerate(entries):
        layers = {str(i): layer for i, layer in enumerate(to_matrices(entry)) if layer.scale.size}
        config = peft.LoraConfig(
            r=max(rank for entry in entries for rank in entry.ranks),  # PEFT compares this, not the layers' ranks
            target_modules=list(layers),
            rank_pattern={name: layer.scale.size for name, layer in layers.items()},
            alpha_pattern={name: float(layer.scale[0]) * layer.scale.size for name, layer in layers.items()},
        )
        if model is None:
            model = peft.get_peft_model(_torch_model(torch, entry), config, adapter_name="0")
        else:
            model.add_adapter(str(index), config)
        for name, layer in layers.items():
            for parameter, value in zip(_factors(model.base_model.model[int(name)], str(index)), layer, strict=False):
                parameter.data = torch.tensor(np.asarray(value)).reshape(parameter.shape)
    names = [str(index) for index in range(len(entries))]
    model.add_weighted_adapter(names, weights, "sum", kind, svd_full_matrices=False, **options)
    return [_matrices(module) for module in model.base_model.model]


def _matrices(module):
    factors = _factors(module, "sum") if hasattr(module, "lora_A") else None
    if factors is None:
        return None
    a, b = (factor.detach().numpy() for factor in factors)
    return a.reshape(a.shape[0], -1), b.reshape(b.shape[0], -1) * module.scaling["sum"]


def _assert_pefts(entries, weights, kind, **options):
    ours = {key: value for key, value in options.items() if key != "key"}
    found = add_weighted_adapter([{"w": entry} for entry in entries], weights, kind, **options)["w"]
    expected = _peft_layers(entries, weights, kind, **ours)
    assert found.shape == entries[0].shape
    for layer, factors in zip(to_matrices(found), expected, strict=True):
        assert (layer.scale == 1).all()
        if factors is None:
            assert layer.scale.size == 0
            continue
        a, b = factors
        assert difference(layer.update, b @ a) < 1e-5
        rank = layer.scale.size
        assert not np.abs(b[:, rank:] @ a[rank:]).max(initial=0) > 1e-5, "PEFT keeps more than we do"
        if "svd" not in kind:
            assert difference(layer.a, a[:rank]) < 1e-5
            assert difference(layer.b, b[:, :rank]) < 1e-5
    return found


PRUNING = [kind for kind in COMBINATION_TYPES if kind.startswith(("ties", "magnitude"))]
DARE = [kind for kind in COMBINATION_TYPES if kind.startswith("dare")]
ENTRIES = {
    "kernel": [_random(KERNEL, (3,), (factor,), seed) for seed, factor in [(1, 2), (2, 0.5), (3, 1)]],
    "layers": [
        _random(LAYERS, (2, 2, 3), (1, 0.5, 2), 4),
        _random(LAYERS, (2, 0, 3), (2, 1, 0.3), 14),
        _random(LAYERS, (2, 2, 0), (1, 1, 1), 24),
    ],
    "table": [_random(TABLE, (3,), (factor,), seed) for seed, factor in [(5, 2), (6, 0.5), (7, 1)]],
    "convolution": [_random(CONVOLUTION, (3,), (factor,), seed) for seed, factor in [(5, 2), (6, 0.5), (7, 1)]],
}
CASES = [(kind, name) for kind in COMBINATION_TYPES if kind not in DARE for name in ("kernel", "layers")]
CASES += [(kind, name) for kind in ("linear", "cat", "svd", "ties_svd") for name in ("table", "convolution")]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_it_is_pefts(kind, name):
    options = {"density": 0.6} if kind in PRUNING else {}
    _assert_pefts(ENTRIES[name], [0.7, -1.3, 0.4], kind, **options)


@pytest.mark.parametrize("kind", ["ties", "ties_svd"])
def test_signs_are_elected_by_frequency_too(kind):
    _assert_pefts(ENTRIES["kernel"], [1.0, 0.5, -2.0], kind, density=0.7, majority_sign_method="frequency")


@pytest.mark.parametrize(
    ("kind", "name"),
    [*((kind, name) for kind in DARE for name in ("kernel", "layers")), ("dare_ties", "table"), (DARE[-1], "table")],
)
def test_dare_is_pefts_for_the_same_masks(kind, name, monkeypatch):
    """PEFT's draws are replaced by those that were drawn here, in the same order."""
    torch = pytest.importorskip("torch")
    drawn, bernoulli = [], jax.random.bernoulli

    def recorded(*args, **kwargs):
        drawn.append(np.asarray(bernoulli(*args, **kwargs)))
        return drawn[-1]

    def replayed(fill):
        mask = drawn.pop(0)
        return torch.tensor(mask.T if mask.shape != fill.shape else mask, dtype=fill.dtype)  # an embedding's update

    monkeypatch.setattr(jax.random, "bernoulli", recorded)
    monkeypatch.setattr(torch, "bernoulli", replayed)
    _assert_pefts(ENTRIES[name], [0.7, -1.3, 0.4], kind, density=0.6, key=jax.random.key(3))
    assert not drawn


@pytest.mark.parametrize("kind", [*PRUNING, *DARE])
def test_a_density_of_one_prunes_nothing(kind):
    with pytest.warns(UserWarning, match="no pruning will be performed"):
        _assert_pefts(ENTRIES["kernel"], [0.7, 1.3, 0.4], kind, density=1.0)


@pytest.mark.parametrize("svd_rank", [1, 2, 5, 40])
def test_the_rank_of_an_svd_can_be_chosen(svd_rank):
    found = _assert_pefts(ENTRIES["kernel"], [0.7, -1.3, 0.4], "svd", svd_rank=svd_rank)
    assert found.ranks == (min(svd_rank, 7),)
    _assert_pefts(ENTRIES["kernel"], [0.7, -1.3, 0.4], "magnitude_prune_svd", svd_rank=svd_rank, density=0.5)


@pytest.mark.parametrize("kind", ["svd", "ties_svd"])
def test_large_values_are_clamped(kind, monkeypatch):
    """The quantile depends on signs, which LAPACK is free to choose: PEFT gets ours."""
    torch = pytest.importorskip("torch")
    plain = torch.linalg.svd

    def signed(matrix, **options):
        u, s, vh = plain(matrix, **options)
        signs = torch.sign(torch.gather(vh, 1, vh.abs().argmax(1, keepdim=True)))
        return u * signs.T, s, vh * signs

    monkeypatch.setattr(torch.linalg, "svd", signed)
    options = {"density": 0.6} if kind == "ties_svd" else {}
    found = _assert_pefts(ENTRIES["kernel"], [0.7, -1.3, 0.4], kind, svd_clamp=0.9, **options)
    unclamped = add_weighted_adapter([{"w": e} for e in ENTRIES["kernel"]], [0.7, -1.3, 0.4], kind, **options)["w"]
    assert difference(update(found), update(unclamped)) > 0.1


def test_one_adapter_is_linear_as_in_peft():
    entry = ENTRIES["kernel"][0]
    _assert_pefts([entry], [-0.5], "linear")
    one = add_weighted_adapter([{"w": entry}], [-0.5], "ties_svd")["w"]
    assert difference(update(one), -0.5 * update(entry)) < 1e-5


BASE = {"kernel": normal(1, 9, 7), "layers": normal(2, 3, 9, 7), "bias": normal(3, 7)}


def _adapter(index):
    return {"kernel": ENTRIES["kernel"][index], "layers": ENTRIES["layers"][index]}


def _fn(base, x):
    for layer in base["layers"]:
        x = jnp.tanh(x @ base["kernel"]) @ layer.T
    return x


def test_scaling_scales_what_merge_adds():
    adapter = _adapter(0) | {"bias": jlora.Full(normal(4, 7))}
    half, merged = jlora.merge(BASE, scale(adapter, 0.5)), jlora.merge(BASE, adapter)
    for path in ("kernel", "layers"):
        assert difference(half[path] - BASE[path], 0.5 * (merged[path] - BASE[path])) < 1e-5
    assert (half["bias"] == merged["bias"]).all()
    assert scale(adapter, -2)["kernel"].ranks == (3,)
    traced = jax.jit(scale)(adapter, 0.5)
    assert (traced["layers"].scale == scale(adapter, 0.5)["layers"].scale).all()


@pytest.mark.parametrize("kind", ["cat", "svd"])
def test_adapted_is_merged_is_the_weighted_sum(kind):
    """cat, and an SVD of a rank that is large enough, are the weighted sum of the updates."""
    weights = [0.7, -1.3, 0.4]
    both = add_weighted_adapter([_adapter(i) for i in range(3)], weights, kind, svd_rank=9)
    merged, expected = jlora.merge(BASE, both), dict(BASE)
    for index, weight in enumerate(weights):
        expected = jlora.merge(expected, scale(_adapter(index), weight))
    for path in BASE:
        assert difference(merged[path], expected[path]) < 1e-5
    x = 0.1 * normal(5, 4, 9)
    small = scale(both, 0.05)
    assert difference(jlora.adapt(_fn)(BASE, small, x), _fn(jlora.merge(BASE, small), x)) < 1e-3


def test_components_of_their_own_scale_are_mixed_one_by_one():
    entry = dataclasses.replace(KERNEL, scale=jnp.array([2.0, -0.5]))
    for kind in ("linear", "cat", "svd"):
        both = add_weighted_adapter([{"w": entry}, {"w": entry}], [0.25, -0.75], kind, svd_rank=4)["w"]
        folded = -0.5 * update(entry)
        if kind == "linear":  # (sum of signed roots of the weights) times (sum of roots)
            folded = (0.5**2 - 0.75) * update(entry)
        assert difference(update(both), folded) < 1e-5


def test_the_same_key_draws_the_same_and_leaves_draw_apart():
    adapters = [{"v": entry, "w": entry} for entry in ENTRIES["kernel"]]
    found = [
        add_weighted_adapter(adapters, [1, 1, 1], "dare_linear", density=0.5, key=jax.random.key(seed))
        for seed in (0, 0, 1)
    ]
    assert (found[0]["w"].a == found[1]["w"].a).all()
    assert (found[0]["w"].a != found[2]["w"].a).any()
    assert (found[0]["w"].a != found[0]["v"].a).any()
    assert ((found[0]["w"].a == 0) != (found[0]["w"].b.T[:1, :1] == 0)).any()


def test_half_precision_is_mixed_in_float32():
    halves = [jax.tree.map(lambda x: x.astype(jnp.bfloat16), entry) for entry in ENTRIES["kernel"][:2]]
    found = add_weighted_adapter([{"w": entry} for entry in halves], [1, 1], "cat")["w"]
    assert found.a.dtype == jnp.bfloat16
    assert difference(update(found), sum(update(entry) for entry in halves)) < 0.1


def test_what_one_adapter_alone_trains_is_taken_over():
    whole = {"bias": jlora.Full(normal(3, 7)), "rows": Rows(normal(4, 2, 6), (1, 3)), "w": ENTRIES["kernel"][0]}
    both = add_weighted_adapter([whole, {"v": ENTRIES["kernel"][1]}], [0.5, 2.0], "svd")
    assert both["bias"] is whole["bias"]
    assert both["rows"] is whole["rows"]
    assert difference(update(both["w"]), 0.5 * update(whole["w"])) < 1e-5
    assert difference(update(both["v"]), 2 * update(ENTRIES["kernel"][1])) < 1e-5


ONE, TWO = ({"w": entry} for entry in ENTRIES["kernel"][:2])
FULL = {"w": jlora.Full(normal(1, 9, 7))}


@pytest.mark.parametrize(
    ("adapters", "weights", "options", "message"),
    [
        ([], [], {}, "^adapters: expected one at least"),
        ([ONE, TWO], [1.0], {}, "^weights: expected 2, one for each adapter, found 1"),
        ([ONE, TWO], [1.0, float("nan")], {}, r"^weights\[1\]: expected a finite number, found nan"),
        ([ONE, TWO], [1, 1], {"combination_type": "tie"}, "^combination_type: .* found 'tie'; nearest: ties"),
        ([ONE, TWO], [1, 1], {"combination_type": "ties"}, r"^density: .* \(0, 1\] for ties, found None"),
        ([ONE, TWO], [1, 1], {"combination_type": "ties", "density": 0.0}, "^density: .* found 0.0"),
        ([ONE, TWO], [1, 1], {"combination_type": "ties_svd", "density": 1.5}, "^density: .* found 1.5"),
        ([ONE, TWO], [1, 1], {"combination_type": "dare_ties", "density": 0.5}, "^key: .* dare_ties"),
        ([ONE, TWO], [1, 1], {"svd_rank": 0}, "^svd_rank: expected an integer of at least 1.* found 0"),
        ([ONE, TWO], [1, 1], {"svd_clamp": 2}, "^svd_clamp: .* found 2"),
        ([ONE, TWO], [1, 1], {"majority_sign_method": "most"}, "^majority_sign_method: .* found 'most'"),
        ([ONE, {"w": _random(KERNEL, (2,), (1,), 1)}], [1, 1], {}, r"^w: .* one rank for linear.*\[3, 2\].*cat"),
        ([ONE, {"w": LAYERS}], [1, 1], {}, r"^w: expected adapters of one base.*\(9, 7\).*\(3, 9, 7\)"),
        ([ONE, {"w": dataclasses.replace(KERNEL, kind="lookup")}], [1, 1], {}, "^w: expected adapters of one base"),
        ([FULL, FULL], [1, 1], {}, r"^w: .*whole.* found adapters \[0, 1\].* take the path out of"),
        ([ONE, FULL], [1, 1], {}, "^w: expected at most one adapter"),
        ([ONE, {"w": dataclasses.replace(KERNEL, magnitude=normal(1, 7))}], [1, 1], {}, "^w: .* DoRA in adapter 1"),
    ],
)
def test_what_cannot_be_combined_is_refused(adapters, weights, options, message):
    with pytest.raises(jlora.JloraError, match=message):
        add_weighted_adapter(adapters, weights, **options)


def test_unequal_ranks_of_a_stack_name_the_layer():
    other = _random(LAYERS, (2, 2, 1), (1, 1, 1), 8)
    with pytest.raises(jlora.JloraError, match=r"^w, layer 2: .* found ranks \[3, 1\]"):
        add_weighted_adapter([{"w": ENTRIES["layers"][0]}, {"w": other}], [1, 1])


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_factor_that_is_no_number_is_refused(factor):
    with pytest.raises(jlora.JloraError, match=r"^scale: factor: expected a finite number"):
        scale(ONE, factor)
