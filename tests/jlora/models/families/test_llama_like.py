"""Causal language models: PyTorch's logits and greedy tokens from the same files, and files that PyTorch opens."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jlora
from jlora.initialization.abstract_adapter import abstract_adapter
from jlora.models.registry import abstract_base, build, family
from jlora.tree.leaf_paths import leaves_by_path
from tests.support.adapters.lora_cases import assert_adapted_is_merged, random_adapter, randomized
from tests.support.models import decoder_cases as cases
from tests.support.models.encoder_cases import assert_same_dropout, difference

_WEIGHTS = r".*(_proj|embed_tokens)"
_CACHED = [
    "llama, one key, yarn",
    "mistral, windowed",
    "gemma2",
    "gemma3",
    "phi3, longer than trained",
    "gpt2",
]
_TRACED = [
    "llama 3.1 with biases and wide heads",
    "llama, dynamic positions",
    "qwen3",
    "gemma2",
    "gemma3",
    "phi3, longer than trained",
    "gpt2",
]
_WRITTEN = ["llama, tied, as many keys as queries", "qwen3", "gemma2", "gemma3", "phi3, longer than trained", "gpt2"]


@pytest.fixture(scope="module")
def loaded(request, tmp_path_factory):
    """(PyTorch's model, its folder, our model, our base) of one of SWITCHES."""
    return cases.loaded_case(*cases.SWITCHES[request.param], tmp_path_factory.mktemp("theirs"))


def _of(names):
    return pytest.mark.parametrize("loaded", names, indirect=True, scope="module")


@_of(cases.SWITCHES)
def test_logits_are_pytorchs_padded_and_packed(loaded):
    oracle, _, model, base = loaded
    cases.assert_same_logits(oracle, model, base)


@_of(_CACHED)
def test_greedy_generation_with_a_cache_is_pytorchs(loaded):
    oracle, _, model, base = loaded
    cases.assert_same_generation(oracle, model, base)


@_of(_WRITTEN)
def test_what_is_written_is_what_was_read(loaded, tmp_path):
    oracle, folder, model, base = loaded
    cases.assert_same_files(oracle, folder, model, base, tmp_path)


@_of(["gemma3"])
def test_layers_of_several_kinds_are_adapted_by_their_numbers(loaded, tmp_path):
    """Ranks, chosen layers and PEFT's files go by the layers' numbers, also where every second is in one stack."""
    peft = pytest.importorskip("peft")
    oracle, folder, model, base = loaded
    batch = cases.random_tokens(model.config, rows=1)
    ranks = {"layers.3.mlp.up_proj": 3, "layers.4.self_attn.q_proj": 1}
    config = jlora.LoraConfig(
        r=2,
        target_modules=["q_proj", "up_proj"],
        layers_to_transform=[1, 2, 3, 4],
        rank_pattern=ranks,
        task_type="CAUSAL_LM",
    )
    adapter = randomized(abstract_adapter(config, base, model.apply, batch))
    found = {path.removeprefix("params/model/"): entry.ranks for path, entry in adapter.items()}
    assert found == {
        "layers_0_of_2/mlp/up_proj/kernel": (0, 2),
        "layers_0_of_2/self_attn/q_proj/kernel": (0, 2),
        "layers_1_of_2/mlp/up_proj/kernel": (2, 3),
        "layers_1_of_2/self_attn/q_proj/kernel": (2, 2),
        "layers_4/mlp/up_proj/kernel": (2,),
        "layers_4/self_attn/q_proj/kernel": (1,),
    }
    jlora.save_adapter(tmp_path, adapter, config)
    fresh = type(oracle).from_pretrained(folder, attn_implementation="eager")
    opened = peft.PeftModel.from_pretrained(fresh, tmp_path).eval()
    adapted = cases.quick(jlora.adapt(model.apply))(base, adapter, batch)
    assert difference(adapted, cases.torch_logits(opened, batch)) < 1e-5
    read, _ = jlora.load_adapter(tmp_path, base, model.apply, batch)
    for path, entry in adapter.items():
        kept = np.asarray(entry.scale) != 0
        np.testing.assert_array_equal(np.asarray(read[path].a)[kept], np.asarray(entry.a)[kept])


def test_adapted_is_merged():
    """With remat, a tied embedding and two stacks of two layers."""
    sizes = {"num_hidden_layers": 4, "sliding_window": 4, "sliding_window_pattern": 2}
    model = build(cases.tiny_decoder("gemma3_text", **sizes), remat=True)
    base, batch = cases.random_base(model), cases.random_tokens(model.config, rows=1)
    adapter = random_adapter(model.apply, base, batch, targets=_WEIGHTS, ensure_weight_tying=True)
    assert len(adapter) == 2 * 7 + 1
    assert_adapted_is_merged(jax.jit(model.apply), base, adapter, batch, jit=cases.quick)


@pytest.mark.parametrize("name", _TRACED)
@pytest.mark.parametrize("param_dtype", [jnp.float32, jnp.bfloat16])
def test_bfloat16_is_computed_in_bfloat16_to_float32_logits(name, param_dtype):
    """Whatever the leaves are, and with a cache too; nothing is promoted implicitly (traced, not run)."""
    model_type, switches = cases.SWITCHES[name]
    model = build(cases.tiny_decoder(model_type, **switches), dtype=jnp.bfloat16)
    base = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, param_dtype), abstract_base(model))
    batch = jax.eval_shape(lambda: cases.random_tokens(model.config, length=5))
    cache = jax.eval_shape(lambda: model.empty_cache(3, 7, jnp.bfloat16))
    logits = jax.eval_shape(model.apply, base, batch)
    hidden, extended = jax.eval_shape(lambda *args: model.apply(*args, method="extend"), base, batch, cache)
    assert (logits.shape, logits.dtype) == ((3, 5, 60), jnp.float32)
    assert (hidden.shape, hidden.dtype) == ((3, 5, 32), jnp.bfloat16)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), extended) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), cache
    )


@pytest.mark.parametrize("model_type", ["phi3", "gpt2", "gpt_neox", "bloom"])
def test_adapters_go_to_peft_and_come_back(model_type, tmp_path):
    peft = pytest.importorskip("peft")
    torch = pytest.importorskip("torch")
    oracle = cases.torch_decoder(cases.tiny_decoder(model_type))
    model, base = cases.load_saved(oracle, tmp_path / "base")
    batch = cases.random_tokens(model.config)
    real = np.asarray(batch["attention_mask"], bool)
    dense_of_gpt2 = {"fan_in_fan_out": True} if model_type == "gpt2" else {}  # PEFT warns where it sets this itself
    config = peft.LoraConfig(r=3, lora_alpha=4, target_modules="all-linear", task_type="CAUSAL_LM", **dense_of_gpt2)
    wrapped = peft.get_peft_model(oracle, config).eval()
    torch.manual_seed(1)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    wrapped.save_pretrained(tmp_path / "peft")
    expected = cases.torch_logits(wrapped, batch)[real]

    adapter, read = jlora.load_adapter(tmp_path / "peft", base, model.apply, batch)
    found = np.asarray(cases.quick(jlora.adapt(model.apply))(base, adapter, batch))
    assert difference(found[real], expected) < 1e-5

    jlora.save_adapter(tmp_path / "ours", adapter, read)
    fresh = type(oracle).from_pretrained(tmp_path / "base", attn_implementation="eager")
    opened = peft.PeftModel.from_pretrained(fresh, tmp_path / "ours").eval()
    assert difference(cases.torch_logits(opened, batch)[real], expected) < 1e-6


@pytest.mark.parametrize(
    ("model_type", "rates"),
    [("gpt2", {"embd_pdrop": 0.1, "attn_pdrop": 0.2, "resid_pdrop": 0.3}), ("phi3", {"resid_pdrop": 0.3})],
)
def test_dropout_is_where_pytorch_has_it(model_type, rates, tmp_path, monkeypatch):
    oracle = cases.torch_decoder(cases.tiny_decoder(model_type, **rates))
    ids = cases.random_tokens(oracle.config)["input_ids"][::2]
    assert_same_dropout(oracle, tmp_path, {"input_ids": ids, "attention_mask": jnp.ones_like(ids)}, monkeypatch)


@pytest.mark.parametrize(
    ("model_type", "switches", "key"),
    [
        ("llama", {"rope_parameters": {"rope_type": "proportional", "rope_theta": 1e4}}, "rope_type"),
        (
            "qwen2",
            {"layer_types": ["full_attention", "chunked_attention"]},
            "layer_types.*'chunked_attention' of layer 1",
        ),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ("llama", {"attention_dropout": 0.1}, "attention_dropout"),
        ("llama", {"hidden_act": "mish"}, "mish"),
    ],
)
def test_a_config_that_is_not_honoured_is_refused_by_its_key(model_type, switches, key):
    with pytest.raises(jlora.JloraError, match=key):
        abstract_base(build(cases.tiny_decoder(model_type, **switches)))


def test_a_row_that_is_longer_than_the_positions_is_refused():
    model = build(cases.tiny_decoder("llama", max_position_embeddings=8))
    with pytest.raises(jlora.JloraError, match="at most 8 tokens a row"):
        jax.eval_shape(lambda batch: model.init(jax.random.key(0), batch), cases.random_tokens(model.config))


def test_parameters_of_layers_of_several_kinds():
    """Gemma 3 of 5 layers, every second of which sees all: two whole periods in two stacks, one layer left."""
    model_type, switches = cases.SWITCHES["gemma3"]
    leaves = leaves_by_path(abstract_base(build(cases.tiny_decoder(model_type, **switches))))
    shapes = {path: leaf.shape for path, leaf in leaves.items() if path.endswith("q_proj/kernel")}
    assert shapes == {
        "params/model/layers_0_of_2/self_attn/q_proj/kernel": (2, 32, 32),
        "params/model/layers_1_of_2/self_attn/q_proj/kernel": (2, 32, 32),
        "params/model/layers_4/self_attn/q_proj/kernel": (32, 32),
    }


def test_families_differ_in_their_tables_alone():
    for name in ("gemma", "gemma2", "gemma3_text", "llama", "mistral", "phi3", "qwen2", "qwen3"):
        assert family(name).task == "CAUSAL_LM"
        assert family(name).model.__mro__[1].__name__ == "CausalLM"
