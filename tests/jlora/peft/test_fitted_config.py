"""The fitted configuration: `init` and PEFT take the adapter's ranks and scales from it."""

from __future__ import annotations

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
import pytest

import jlora
from jlora.algebra.reduce_rank import reduce_rank
from jlora.algebra.stack import stack, unstack
from jlora.algebra.weighted_sum import add_weighted_adapter, scale
from jlora.initialization.abstract_adapter import abstract_adapter
from jlora.lora.entries import scale_b
from jlora.lora.matrices import from_matrices, layer_ranks, to_matrices
from jlora.models.registry import abstract_base, build
from jlora.peft.fitted_config import fitted_config, fold_scale
from tests.support.adapters.lora_cases import low_rank, normal, randomized
from tests.support.models import encoder_cases as cases

CONFIGS = {
    "plain": {"target_modules": ["query", "value"]},
    "all linear, scaled by rank": {"target_modules": "all-linear", "use_rslora": True, "task_type": "SEQ_CLS"},
    "patterns": {
        "target_modules": ["query", "key", "dense"],
        "rank_pattern": {"layer.0.attention.self.query": 5, "intermediate.dense": 2},
        "alpha_pattern": {"layer.1.attention.*": 7, "0.intermediate.dense": 2},
    },
    "one layer": {"target_modules": ["query", "intermediate.dense"], "layers_to_transform": [1]},
    "left out": {"target_modules": r".*\.(query|dense)", "exclude_modules": r".*layer\.0\.output.*|.*pooler.*"},
    "embedding": {"target_modules": ["word_embeddings", "query"], "lora_alpha": 0.7},
}


@functools.cache
def _bert():
    config = cases.tiny_config("bert")
    model = build(config)
    return abstract_base(model), model.apply, cases.random_batch(config)


def _made(fields):
    """(config, random adapter) of these fields on a tiny BERT."""
    config = jlora.LoraConfig(**{"r": 3, "lora_alpha": 4, **fields})
    base, fn, batch = _bert()
    return config, randomized(abstract_adapter(config, base, fn, batch))


CHANGES = {
    "scaled": lambda adapter: scale(adapter, 0.3),
    "reduced": lambda adapter: reduce_rank(adapter, 1),
    "reduced by energy": lambda adapter: reduce_rank(adapter, energy=0.8),
    "side by side": lambda adapter: add_weighted_adapter([adapter, _queries(adapter)], [0.5, -1.0], "cat"),
    "one path's scale": lambda adapter: {**adapter, **scale(_queries(adapter), 2)},
    "fewer paths": lambda adapter: _queries(adapter),
    "fewer layers": lambda adapter: {**adapter} | {p: _without_first_layer(e) for p, e in _queries(adapter).items()},
    "stacked and taken apart": lambda adapter: unstack(stack([adapter, scale(adapter, -1)]))[1],
    "folded": lambda adapter: fold_scale(adapter),
}
"""What makes an adapter another one than its configuration says."""
CASES = [("patterns", change) for change in CHANGES]
CASES += [("all linear, scaled by rank", change) for change in ("scaled", "reduced", "fewer layers")]
CASES += [("left out", "scaled"), ("left out", "fewer layers"), ("embedding", "side by side"), ("one layer", "folded")]


def _queries(adapter):
    return {path: entry for path, entry in adapter.items() if "query" in path}


def _without_first_layer(entry):
    first, *others = to_matrices(entry)
    empty = type(first)(first.a[:0], first.b[:, :0], first.scale[:0])
    return from_matrices(entry, [empty, *others])


def _said(adapter):
    """{path: (ranks, scales)} of the low-rank entries."""
    entries = {path: entry for path, entry in adapter.items() if isinstance(entry, jlora.LowRank)}
    return {path: (layer_ranks(e), [x.tolist() for x in _scales(e)]) for path, e in entries.items()}


def _scales(entry):
    rows = np.asarray(entry.scale).reshape(-1, entry.scale.shape[-1])
    return [row[:rank] for rank, row in zip(layer_ranks(entry), rows, strict=True)]


@pytest.mark.parametrize("fields", CONFIGS.values(), ids=CONFIGS)
def test_a_configuration_that_is_true_stays_as_it_is(fields):
    config, adapter = _made(fields)
    assert fitted_config(config, adapter) is config


@pytest.mark.parametrize(("name", "change"), CASES)
def test_init_and_peft_take_ranks_and_scales_from_it(name, change):
    config, adapter = _made(CONFIGS[name])
    changed = CHANGES[change](adapter)
    fitted = fitted_config(config, changed)
    assert fitted is not config
    assert fitted_config(fitted, changed) is fitted
    base, fn, batch = _bert()
    assert _said(abstract_adapter(fitted, base, fn, batch)) == _said(changed)
    assert _by_module(changed) == _peft_modules(fitted)


def _peft_modules(config):
    """{module: (rank, scale)} of PEFT's model with this configuration."""
    peft = pytest.importorskip("peft")
    known = {key: value for key, value in dataclasses.asdict(config).items() if key in _PEFT_FIELDS}
    model = peft.get_peft_model(cases.torch_classifier(cases.tiny_config("bert")), peft.LoraConfig(**known))
    return {
        name.removeprefix("base_model.model."): (module.r["default"], np.float32(module.scaling["default"]))
        for name, module in model.named_modules()
        if hasattr(module, "lora_A")
    }


_PEFT_FIELDS = {
    "r", "lora_alpha", "target_modules", "exclude_modules", "rank_pattern", "alpha_pattern", "layers_to_transform",
    "use_rslora", "task_type",
}  # fmt: skip


def _by_module(adapter):
    """{module: (rank, scale)}, written down without the code under test."""
    found = {}
    for path, entry in adapter.items():
        if isinstance(entry, jlora.LowRank):
            name = path.removeprefix("params/").removesuffix("/kernel").removesuffix("/embedding").replace("/", ".")
            for layer, values in enumerate(_scales(entry)):
                if values.size:
                    found[name.replace("encoder.layer.", f"encoder.layer.{layer}.")] = (values.size, values[0])
    return found


def test_the_most_common_values_need_no_pattern():
    config, adapter = _made({"target_modules": ["query", "key", "value"]})
    path = next(path for path in adapter if "query" in path)
    fitted = fitted_config(config, scale({path: adapter[path]}, 2) | {p: adapter[p] for p in adapter if p != path})
    assert (fitted.r, fitted.lora_alpha, fitted.rank_pattern) == (3, 4, {})
    names = [rf"^bert\.encoder\.layer\.{layer}\.attention\.self\.query" for layer in (0, 1)]
    assert fitted.alpha_pattern == dict.fromkeys(names, 8)
    assert fitted.target_modules == config.target_modules
    assert not fitted_config(config, reduce_rank(adapter, 2)).rank_pattern


def test_modules_that_are_gone_are_no_longer_listed():
    config, adapter = _made(CONFIGS["one layer"])
    queries = {path: entry for path, entry in adapter.items() if "query" in path}
    fitted = fitted_config(config, queries)
    assert fitted.target_modules == ["bert.encoder.layer.1.attention.self.query"]
    assert fitted.layers_to_transform is None


@pytest.mark.parametrize("factor", [1 / 3, 0.1, 2**-0.5, 1e-7, -1.7, 0.0, 3e5])
def test_every_scale_has_its_alpha_to_the_last_bit(factor):
    config, adapter = _made(CONFIGS["plain"])
    changed = scale(adapter, factor)
    fitted = fitted_config(config, changed)
    assert np.float32(fitted.lora_alpha / fitted.r) == np.asarray(next(iter(changed.values())).scale)[0, 0]


def test_folding_keeps_the_function_bit_for_bit():
    mixed = dataclasses.replace(low_rank("arb,arc->abc", (3, 5, 4)), scale=normal(3, 3, 2), ranks=(2, 0, 1))
    mixed = dataclasses.replace(mixed, scale=mixed.scale.at[1].set(0).at[2, 1].set(0))
    whole = jlora.Full(normal(1, 4))
    folded = fold_scale({"w": mixed, "bias": whole})
    assert (scale_b(folded["w"]) == scale_b(mixed)).all()
    assert (folded["w"].scale == jnp.array([[1.0, 1], [0, 0], [1, 0]])).all()
    assert folded["w"].ranks == mixed.ranks
    assert folded["bias"] is whole


def test_scales_that_no_alpha_can_say_are_refused_with_the_way_out():
    config, adapter = _made(CONFIGS["plain"])
    path = next(iter(adapter))
    uneven = {path: dataclasses.replace(adapter[path], scale=adapter[path].scale.at[1, 0].set(9.0))}
    with pytest.raises(jlora.JloraError, match=r"^bert\.encoder\.layer\.1\..*one scale for all 3.*to 9.0; jlora.fold_"):
        fitted_config(config, uneven)
    folded = fitted_config(config, fold_scale(uneven))
    assert (folded.r, folded.lora_alpha, folded.alpha_pattern) == (3, 3, {})


def test_a_stack_inside_a_module_has_no_configuration():
    config, adapter = _made(CONFIGS["plain"])
    with pytest.raises(jlora.JloraError, match=r"query/kernel: .* found a stack \(2, 2\)"):
        fitted_config(config, stack([{p: e for p, e in adapter.items() if "query" in p}] * 2))
    with pytest.raises(jlora.JloraError, match=r"^experts: .* found a stack \(3,\)"):
        fitted_config(config, {"experts": low_rank("arb,arc->abc", (3, 5, 4))})


def test_an_adapter_without_low_rank_entries_needs_none():
    config, _ = _made(CONFIGS["plain"])
    assert fitted_config(config, {"bias": jlora.Full(jnp.zeros(3))}) is config
