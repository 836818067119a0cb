"""PEFT's files in and out: same tensors, same logits, bit for bit back; what does not fit is refused."""

from __future__ import annotations

import json
from pathlib import Path

import encoder_cases as cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lora_cases import low_rank, normal, randomized
from safetensors.numpy import load_file, save_file

import jlora
from jlora.init import abstract_adapter
from jlora.models import abstract_base, build
from jlora.peft import from_peft, to_peft

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


@pytest.mark.parametrize("fields", CONFIGS.values(), ids=CONFIGS)
def test_the_trained_tensors_are_pefts(fields):
    peft = pytest.importorskip("peft")
    config = cases.tiny_config("bert")
    expected = peft.get_peft_model_state_dict(_peft_model(cases.torch_classifier(config), fields))
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
        ("roberta", CONFIGS["all linear, scaled by rank"]),
        ("distilbert", {"target_modules": ["q_lin", "ffn.lin1"], "task_type": "SEQ_CLS"}),
    ],
)
def test_there_and_back(family, fields, tmp_path):
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
    assert cases.difference(plain, expected) > 1e-2

    adapter, lora = jlora.load_adapter(tmp_path / "peft", base, model.apply, batch)
    assert cases.difference(_logits(model, base, adapter, batch), expected) < 1e-5

    jlora.save_adapter(tmp_path / "ours", adapter, lora, base_model="a/base")
    back, original = load_file(tmp_path / "ours" / WEIGHTS), load_file(tmp_path / "peft" / WEIGHTS)
    assert back.keys() == original.keys()
    assert all(back[key].tobytes() == original[key].tobytes() for key in original)

    fresh = type(oracle).from_pretrained(tmp_path / "base", attn_implementation="eager").eval()
    opened = peft.PeftModel.from_pretrained(fresh, tmp_path / "ours").eval()
    assert opened.peft_config["default"].base_model_name_or_path == "a/base"
    with torch.no_grad():
        assert cases.difference(cases.torch_logits(opened, batch), expected) < 1e-6


def test_an_adapter_made_here_opens_in_peft(tmp_path):
    peft = pytest.importorskip("peft")
    config = cases.tiny_config("bert")
    batch = cases.random_batch(config)
    model, base = cases.load_saved(oracle := cases.torch_classifier(config), tmp_path / "base")
    patterns = {"layer.1.*": 5, "key": 2}  # the first that matches counts: the order must outlive the file
    lora = jlora.LoraConfig(r=2, target_modules="all-linear", task_type="SEQ_CLS", alpha_pattern=patterns)
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
    lora = jlora.LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS", modules_to_save=saved_too)
    adapter = randomized(abstract_adapter(lora, base, model.apply, batch))
    jlora.save_adapter(tmp_path / "ours", adapter, lora)
    opened = peft.PeftModel.from_pretrained(oracle, tmp_path / "ours").eval()
    assert cases.difference(_logits(model, base, adapter, batch), cases.torch_logits(opened, batch)) < 1e-5
    again, _ = jlora.load_adapter(tmp_path / "ours", base, model.apply, batch)
    assert jax.tree.structure(again) == jax.tree.structure(adapter)


BASE = {
    "encoder": {"layers": {"query": {"kernel": normal(1, 2, 4, 4)}}},
    "head": {"kernel": normal(2, 4, 3), "bias": normal(3, 3)},
}
X = normal(4, 2, 4)
SMALL = jlora.LoraConfig(r=2, target_modules=["query"], modules_to_save=["head"])


def _model(base, x):
    x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, base["encoder"]["layers"]["query"]["kernel"])
    return x @ base["head"]["kernel"] + base["head"]["bias"][None]


@pytest.fixture
def saved(tmp_path) -> Path:
    jlora.save_adapter(tmp_path, randomized(abstract_adapter(SMALL, BASE, _model, X)), SMALL)
    return tmp_path


def _load(folder, base=BASE):
    return jlora.load_adapter(folder, base, _model, X)


def _error(folder, base=BASE):
    with pytest.raises(jlora.JloraError) as caught:
        _load(folder, base)
    return str(caught.value)


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
    adapter, config = _load(saved)
    jlora.save_adapter(saved, adapter, config)
    assert sorted(path.name for path in saved.iterdir()) == ["adapter_config.json", WEIGHTS, "notes.txt"]
    assert all((load_file(saved / WEIGHTS)[key] == before[key]).all() for key in before)


@pytest.mark.parametrize("key", ["encoder.layers.1.query.lora_B.weight", "head.bias"])
def test_a_missing_key(key, saved):
    tensors = load_file(saved / WEIGHTS)
    del tensors[f"base_model.model.{key}"]
    save_file(tensors, saved / WEIGHTS)
    assert f"{WEIGHTS}: base_model.model.{key}: expected a tensor of shape" in (message := _error(saved))
    assert "found no such key" in message


def test_an_unexpected_key(saved):
    tensors = load_file(saved / WEIGHTS) | {"base_model.model.encoder.layers.2.query.lora_A.weight": np.ones((2, 4))}
    save_file(tensors, saved / WEIGHTS)
    message = _error(saved)
    assert f"{WEIGHTS}: base_model.model.encoder.layers.2.query.lora_A.weight: found, but" in message
    assert "nearest: base_model.model.encoder.layers." in message


@pytest.mark.parametrize("key", ["encoder.layers.0.query.lora_A.weight", "head.weight"])
def test_a_key_of_another_shape(key, saved):
    tensors = load_file(saved / WEIGHTS)
    tensors[f"base_model.model.{key}"] = np.ones((7, 4), np.float32)
    save_file(tensors, saved / WEIGHTS)
    assert f"{WEIGHTS}: base_model.model.{key}: expected the shape (" in (message := _error(saved))
    assert "found (7, 4)" in message


def test_another_rank_than_the_configurations(saved):
    path = saved / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"r": 3}))
    assert (
        "lora_A.weight: expected the shape (3, 4) that the base and adapter_config.json give, found (2, 4)"
        in _error(saved)
    )


def test_an_adapter_for_another_base(saved):
    other = BASE | {"head": {"kernel": normal(2, 4, 5), "bias": normal(3, 5)}}
    assert "Is this the base that the adapter was made for?" in _error(saved, other)


def test_a_truncated_file(saved):
    data = (saved / WEIGHTS).read_bytes()
    for size in (0, 5, len(data) // 2, len(data) - 1):
        (saved / WEIGHTS).write_bytes(data[:size])
        assert f"{saved / WEIGHTS}: expected safetensors, found a broken or truncated file" in _error(saved)


def test_a_pickle_is_never_opened(saved):
    (saved / WEIGHTS).unlink()
    (saved / "adapter_model.bin").write_bytes(b"\x80\x04not to be read")
    assert "expected the adapter's weights as safetensors, found adapter_model.bin, a pickle" in _error(saved)
    (saved / "adapter_model.bin").unlink()
    assert _error(saved).endswith("found none")


@pytest.mark.parametrize(("field", "value"), [("use_dora", True), ("bias", "lora_only"), ("lora_bias", True)])
def test_features_that_are_not_supported(field, value, saved):
    path = saved / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    assert f"adapter_config.json: {field}: expected it off or absent (not supported), found {value!r}" in _error(saved)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_files_are_read_as_float32(dtype, saved):
    tensors = {key: value.astype(jnp.dtype(dtype)) for key, value in load_file(saved / WEIGHTS).items()}
    save_file(tensors, saved / WEIGHTS)
    adapter, _ = _load(saved)
    assert {leaf.dtype for leaf in jax.tree.leaves(adapter)} == {jnp.dtype("float32")}
    assert all((tensors[key] == value).all() for key, value in to_peft(adapter).items())


def test_kernels_of_several_dims_are_flat_in_the_file():
    for spec, shape, sizes in (("ra,rbc->abc", (4, 2, 3), (4, 6)), ("rab,rc->abc", (2, 3, 5), (6, 5))):
        entry = low_rank(spec, shape)
        a, b = to_peft({"dense/kernel": entry}).values()
        assert (a.shape, b.shape) == ((2, sizes[0]), (sizes[1], 2))
        dense = (1.5 * b @ a).T.reshape(shape)
        assert (
            cases.difference(
                jlora.merge({"dense": {"kernel": jnp.zeros(shape)}}, {"dense/kernel": entry})["dense"]["kernel"], dense
            )
            < 1e-6
        )
        back = from_peft(to_peft({"dense/kernel": entry}), {"dense/kernel": entry}, "file")["dense/kernel"]
        assert (back.a == entry.a).all()
        assert (back.b == entry.b).all()


def test_stacks_that_are_no_layers_have_no_form_in_pefts_files(tmp_path):
    adapter = {"experts/kernel": low_rank("arb,arc->abc", (3, 4, 4))}
    with pytest.raises(jlora.JloraError, match=r"^experts/kernel: expected one module a layer.*no form"):
        jlora.save_adapter(tmp_path / "new", adapter, jlora.LoraConfig())
    assert not (tmp_path / "new").exists()


def test_whole_leaves_of_any_name_are_saved_under_their_path():
    value = normal(1, 3, 4)
    assert list(to_peft({"params/scorer/w": jlora.Full(value)})) == ["base_model.model.scorer.w"]
