"""PEFT's files in and out: same tensors, same logits, bit for bit back; what does not fit is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from safetensors.numpy import load_file, save_file

import jlora
from jlora.initialization.abstract_adapter import abstract_adapter
from jlora.models.registry import abstract_base, build
from jlora.peft.folder import to_peft
from tests.support.adapters.lora_cases import normal, random_encoder, randomized
from tests.support.adapters.small_adapter import load, save
from tests.support.models import encoder_cases as cases

WEIGHTS = "adapter_model.safetensors"
CONFIGS = {
    "query and value": {"target_modules": ["query", "value"], "task_type": "SEQ_CLS"},
    "all linear, scaled by rank": {"target_modules": "all-linear", "task_type": "SEQ_CLS", "use_rslora": True},
    "no head": {"target_modules": ["query", "output.dense"], "lora_alpha": 5},
    "patterns": {
        "target_modules": ["query", "key", "dense"],
        "rank_pattern": {"layer.0.attention.self.query": 5, "intermediate.dense": 2, "pooler.dense": 4},
        "alpha_pattern": {"layer.1.attention.*": 7, "0.intermediate.dense": 2},
        "use_rslora": True,
    },
    "one layer": {"target_modules": ["query", "intermediate.dense"], "layers_to_transform": [1]},
    "left out": {"target_modules": r".*\.(query|dense)", "exclude_modules": r".*layer\.0\.output.*|.*pooler.*"},
    "embeddings": {"target_modules": ["word_embeddings", "position_embeddings", "query"], "task_type": "SEQ_CLS"},
    "layer norms whole": {"target_modules": ["value"], "modules_to_save": ["LayerNorm", "pooler"]},
    "DoRA": {"target_modules": ["query", "word_embeddings"], "use_dora": True, "task_type": "SEQ_CLS"},
    "DoRA in one layer": {"target_modules": ["query", "dense"], "use_dora": True, "layers_to_transform": [1]},
    "all biases": {
        "target_modules": ["query", "dense"],
        "layers_to_transform": [0],
        "bias": "all",
        "task_type": "SEQ_CLS",
    },
    "biases and a layer norm of one layer": {
        "target_modules": ["query", "dense"],
        "layers_to_transform": [1],
        "bias": "lora_only",
        "modules_to_save": ["layer.1.output.LayerNorm"],
    },
    "token rows": {"target_modules": ["query"], "trainable_token_indices": [7, 1, 30]},
    "rows of positions": {"target_modules": ["query"], "trainable_token_indices": {"position_embeddings": [2]}},
}


def _peft_model(oracle, fields):
    """The PEFT model of fields, every trained tensor random."""
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    model = peft.get_peft_model(oracle, peft.LoraConfig(**{"r": 3, "lora_alpha": 4, **fields})).eval()
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def _logits(model, base, adapter, batch):
    return jax.jit(jlora.adapt(model.apply))(base, adapter, batch)


def _is_copy(key):
    """What PEFT writes twice: see `jlora.peft.redundant_tensors`."""
    return ".original_module." in key or ".modules_to_save." in key


@pytest.mark.parametrize("fields", CONFIGS.values(), ids=CONFIGS)
def test_the_trained_tensors_are_pefts(fields):
    peft = pytest.importorskip("peft")
    config = cases.tiny_config("bert")
    expected = peft.get_peft_model_state_dict(_peft_model(cases.torch_classifier(config), fields))
    expected = {key: tensor for key, tensor in expected.items() if not _is_copy(key)}
    model, batch = build(config), cases.random_batch(config)
    ours = jlora.LoraConfig(**{"r": 3, "lora_alpha": 4, **fields})
    adapter = randomized(abstract_adapter(ours, abstract_base(model), model.apply, batch))
    found = {key: tensor.shape for key, tensor in to_peft(adapter).items()}
    assert found == {key: tuple(tensor.shape) for key, tensor in expected.items()}
    count = sum(tensor.numel() for tensor in expected.values())
    assert jlora.count_parameters(abstract_base(model), adapter)[1] == count


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("bert", CONFIGS["patterns"] | {"task_type": "SEQ_CLS"}),
        ("bert", CONFIGS["embeddings"]),
        ("bert", CONFIGS["layer norms whole"]),
        ("bert", CONFIGS["DoRA in one layer"]),
        ("bert", CONFIGS["all biases"]),
        ("bert", CONFIGS["biases and a layer norm of one layer"]),
        ("bert", CONFIGS["token rows"]),
        ("roberta", CONFIGS["all linear, scaled by rank"]),
        ("distilbert", {"target_modules": ["q_lin", "ffn.lin1"], "task_type": "SEQ_CLS"}),
    ],
)
def test_there_and_back(family, fields, tmp_path, recwarn):
    """An adapter of PEFT's gives its logits here; saved again, PEFT opens it with the same logits and bits."""
    peft = pytest.importorskip("peft")
    torch = pytest.importorskip("torch")
    config = cases.tiny_config(family)
    batch = cases.random_batch(config)
    model, base = cases.load_saved(oracle := cases.torch_classifier(config), tmp_path / "base")
    plain = cases.torch_logits(oracle, batch)
    made = _peft_model(oracle, fields)
    made.save_pretrained(tmp_path / "peft")
    expected = cases.torch_logits(made, batch)
    assert cases.difference(plain, expected) > 1e-3

    adapter, lora = jlora.load_adapter(tmp_path / "peft", base, model.apply, batch)
    assert cases.difference(_logits(model, base, adapter, batch), expected) < 1e-5

    jlora.save_adapter(tmp_path / "ours", adapter, lora, base_model="a/base")
    back, original = load_file(tmp_path / "ours" / WEIGHTS), load_file(tmp_path / "peft" / WEIGHTS)
    assert back.keys() == {key for key in original if not _is_copy(key)}
    assert all(back[key].tobytes() == original[key].tobytes() for key in back)

    fresh = type(oracle).from_pretrained(tmp_path / "base", attn_implementation="eager").eval()
    recwarn.clear()
    opened = peft.PeftModel.from_pretrained(fresh, tmp_path / "ours").eval()
    assert [str(warning.message) for warning in recwarn] == []
    assert opened.peft_config["default"].base_model_name_or_path == "a/base"
    with torch.no_grad():
        assert cases.difference(cases.torch_logits(opened, batch), expected) < 1e-6


@pytest.mark.parametrize("name", ["DoRA in one layer", "biases and a layer norm of one layer", "token rows"])
def test_saved_then_loaded_is_the_same(name, tmp_path):
    config = cases.tiny_config("bert")
    model, base, batch = random_encoder("bert")
    lora = jlora.LoraConfig(r=2, **CONFIGS[name])
    adapter = _moved(jlora.init(jax.random.key(0), lora, base, model.apply, batch))
    jlora.save_adapter(tmp_path, adapter, lora)
    again, read = jlora.load_adapter(tmp_path, base, model.apply, cases.random_batch(config))
    assert jax.tree.structure(again) == jax.tree.structure(adapter)
    assert (read.r, read.bias, read.use_dora) == (lora.r, lora.bias, lora.use_dora)
    for found, expected in zip(jax.tree.leaves(again), jax.tree.leaves(adapter), strict=True):
        assert found.dtype == expected.dtype
        assert found.tobytes() == expected.tobytes()


def _moved(adapter):
    """The adapter after some training: what is padding, or a layer without an adapter, stays as it is."""
    moved = {}
    for path, entry in adapter.items():
        if isinstance(entry, jlora.LowRank):
            there = entry.scale != 0
            entry = dataclasses.replace(entry, a=_drawn_where(there, entry.a), b=_drawn_where(there, entry.b))
            if entry.magnitude is not None:
                magnitude = entry.magnitude + 0.1 * _drawn_where(there[..., 0], entry.magnitude)
                entry = dataclasses.replace(entry, magnitude=magnitude)
            moved[path] = entry
        else:
            moved[path] = dataclasses.replace(entry, value=entry.value + 0.1)
    return moved


def _drawn_where(mask, like):
    return jnp.where(jnp.expand_dims(mask, tuple(range(mask.ndim, like.ndim))), normal(like.size, *like.shape), 0)


def test_an_adapter_made_here_opens_in_peft(tmp_path):
    peft = pytest.importorskip("peft")
    config = cases.tiny_config("bert")
    batch = cases.random_batch(config)
    model, base = cases.load_saved(oracle := cases.torch_classifier(config), tmp_path / "base")
    patterns = {"layer.1.*": 0.5, "key": 0.2}  # the first that matches counts: the order must outlive the file
    lora = jlora.LoraConfig(
        r=2, lora_alpha=0.4, target_modules="all-linear", task_type="SEQ_CLS", alpha_pattern=patterns
    )
    adapter = randomized(abstract_adapter(lora, base, model.apply, batch))
    jlora.save_adapter(tmp_path / "ours", adapter, lora)
    opened = peft.PeftModel.from_pretrained(oracle, tmp_path / "ours").eval()
    assert cases.difference(_logits(model, base, adapter, batch), cases.torch_logits(opened, batch)) < 1e-5
    again, read = jlora.load_adapter(tmp_path / "ours", base, model.apply, batch)
    assert jax.tree.structure(again) == jax.tree.structure(adapter)
    assert all((x == y).all() for x, y in zip(jax.tree.leaves(again), jax.tree.leaves(adapter), strict=True))
    assert list(read.alpha_pattern.items()) == list(patterns.items())


@pytest.mark.parametrize("saved_too", [[], ["pooler"]])
def test_an_adapter_with_a_frozen_head_opens_in_peft(saved_too, tmp_path):
    peft = pytest.importorskip("peft")
    config = cases.tiny_config("bert")
    batch = cases.random_batch(config)
    model, base = cases.load_saved(oracle := cases.torch_classifier(config), tmp_path / "base")
    lora = jlora.LoraConfig(
        r=2, lora_alpha=0.4, target_modules=["query"], task_type="SEQ_CLS", modules_to_save=saved_too
    )
    adapter = randomized(abstract_adapter(lora, base, model.apply, batch))
    jlora.save_adapter(tmp_path / "ours", adapter, lora)
    opened = peft.PeftModel.from_pretrained(oracle, tmp_path / "ours").eval()
    assert cases.difference(_logits(model, base, adapter, batch), cases.torch_logits(opened, batch)) < 1e-5
    again, _ = jlora.load_adapter(tmp_path / "ours", base, model.apply, batch)
    assert jax.tree.structure(again) == jax.tree.structure(adapter)


@pytest.fixture
def saved(tmp_path) -> Path:
    return save(tmp_path)


def test_the_files_are_as_peft_writes_them(saved):
    assert sorted(path.name for path in saved.iterdir()) == ["adapter_config.json", WEIGHTS]
    data = (saved / WEIGHTS).read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert header.pop("__metadata__") == {"format": "pt"}
    assert {value["dtype"] for value in header.values()} == {"F32"}
    prefix = "base_model.model."
    assert {key: value["shape"] for key, value in header.items()} == {
        f"{prefix}encoder.layers.0.query.lora_A.weight": [2, 4],
        f"{prefix}encoder.layers.0.query.lora_B.weight": [4, 2],
        f"{prefix}encoder.layers.1.query.lora_A.weight": [2, 4],
        f"{prefix}encoder.layers.1.query.lora_B.weight": [4, 2],
        f"{prefix}head.bias": [3],
        f"{prefix}head.weight": [3, 4],
    }


def test_saving_again_replaces_the_two_files_alone(saved):
    (saved / "notes.txt").write_text("mine")
    before = load_file(saved / WEIGHTS)
    adapter, config = load(saved)
    jlora.save_adapter(saved, adapter, config)
    assert sorted(path.name for path in saved.iterdir()) == ["adapter_config.json", WEIGHTS, "notes.txt"]
    assert all((load_file(saved / WEIGHTS)[key] == before[key]).all() for key in before)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_files_are_read_as_float32(dtype, saved):
    tensors = {key: value.astype(jnp.dtype(dtype)) for key, value in load_file(saved / WEIGHTS).items()}
    save_file(tensors, saved / WEIGHTS)
    adapter, _ = load(saved)
    assert {leaf.dtype for leaf in jax.tree.leaves(adapter)} == {jnp.dtype("float32")}
    assert all((tensors[key] == value).all() for key, value in to_peft(adapter).items())
