"""Causal language models: PyTorch's logits, padded and packed, from the same files, and files that PyTorch opens."""

from __future__ import annotations

import decoder_cases as cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from encoder_cases import assert_same_dropout, difference
from lora_cases import assert_adapted_is_merged, random_adapter
from safetensors.numpy import load_file

import jlora
from jlora.models import abstract_base, build, family
from jlora.models.cache import causal_mask

_WEIGHTS = r".*(_proj|embed_tokens|lm_head|wte|wpe|c_attn|c_fc)"
all_switches = pytest.mark.parametrize(("model_type", "switches"), cases.SWITCHES.values(), ids=cases.SWITCHES)


@all_switches
def test_logits_are_pytorchs_padding_apart(model_type, switches, tmp_path):
    oracle = cases.torch_decoder(cases.tiny_decoder(model_type, **switches))
    model, base = cases.load_saved(oracle, tmp_path)
    batch = cases.random_tokens(model.config)
    real = np.asarray(batch["attention_mask"], bool)
    found = np.asarray(jax.jit(model.apply)(base, batch))
    assert found.dtype == np.float32
    assert difference(found[real], cases.torch_logits(oracle, batch)[real]) < 1e-5


@all_switches
def test_what_is_written_is_what_was_read(model_type, switches, tmp_path):
    """The same keys with the same bits, and PyTorch opens them: a tied head stays tied."""
    oracle = cases.torch_decoder(cases.tiny_decoder(model_type, **switches))
    model, base = cases.load_saved(oracle, tmp_path / "theirs")
    jlora.save_base(tmp_path / "ours", model, base)
    theirs, ours = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "ours"))
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[key], theirs[key]) for key in theirs)
    opened = type(oracle).from_pretrained(tmp_path / "ours").eval()
    batch = cases.random_tokens(model.config)
    real = np.asarray(batch["attention_mask"], bool)
    assert difference(cases.torch_logits(opened, batch)[real], cases.torch_logits(oracle, batch)[real]) < 1e-5


@pytest.mark.parametrize("name", ["llama", "mistral, windowed", "qwen3"])
def test_packed_documents_do_not_see_one_another(name):
    """Two documents in one row, positions restarted: the logits of the two alone."""
    model_type, switches = cases.SWITCHES[name]
    model = build(cases.tiny_decoder(model_type, **switches))
    ids = cases.random_tokens(model.config)["input_ids"][:1]
    base = jax.jit(model.init)(jax.random.key(0), {"input_ids": ids, "attention_mask": jnp.ones_like(ids)})
    apply = jax.jit(model.apply)
    segments = jnp.where(jnp.arange(14) < 9, 1, 2)[None]
    positions = jnp.concatenate([jnp.arange(9), jnp.arange(5)])[None]
    packed = {"input_ids": ids, "attention_mask": jnp.ones_like(ids)}
    packed |= {"segment_ids": segments, "position_ids": positions}
    alone = [{"input_ids": part, "attention_mask": jnp.ones_like(part)} for part in (ids[:, :9], ids[:, 9:])]
    expected = jnp.concatenate([apply(base, batch) for batch in alone], axis=1)
    assert difference(apply(base, packed), expected) < 1e-5
    assert difference(apply(base, alone[0] | {"input_ids": ids[:, :9] + 1}), expected[:, :9]) > 1e-2


@all_switches
def test_token_by_token_with_a_cache(model_type, switches):
    """A prompt padded on the left, then one token after the other: the logits of the whole row, in one compile each."""
    model = build(cases.tiny_decoder(model_type, **switches))
    ids = cases.random_tokens(model.config)["input_ids"][::2]
    base = jax.jit(model.init)(jax.random.key(0), {"input_ids": ids, "attention_mask": jnp.ones_like(ids)})
    mask = jnp.ones_like(ids).at[1, :3].set(0)
    whole = {"input_ids": ids, "attention_mask": mask, "position_ids": jnp.maximum(jnp.cumsum(mask, 1) - 1, 0)}
    expected = jax.jit(model.apply)(base, whole)

    @jax.jit
    def extend(base, batch, cache):
        hidden, cache = model.apply(base, batch, cache, method="extend")
        return model.apply(base, hidden, method="logits"), cache

    found, cache = [], model.empty_cache(2, 20, jnp.float32)
    for start, end in [(0, 9), *((i, i + 1) for i in range(9, 14))]:
        logits, cache = extend(base, {"input_ids": ids[:, start:end], "attention_mask": mask[:, start:end]}, cache)
        found.append(logits)
    real = np.asarray(mask, bool)
    assert difference(jnp.concatenate(found, 1)[real], expected[real]) < 1e-5
    assert extend._cache_size() == 2


def test_the_mask():
    batch = {"input_ids": jnp.zeros((1, 4), jnp.int32), "attention_mask": jnp.array([[1, 1, 1, 0]])}
    seen = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0]]
    assert (causal_mask(batch, 2)[0, 0] == jnp.array(seen, bool)).all()


@pytest.mark.parametrize(("name", "count"), [("llama, tied, as many keys as queries", 8), ("qwen3", 9), ("gpt2", 6)])
def test_adapted_is_merged(name, count):
    model_type, switches = cases.SWITCHES[name]
    model = build(cases.tiny_decoder(model_type, **switches), remat=True)
    batch = cases.random_tokens(model.config)
    base = jax.jit(model.init)(jax.random.key(0), batch)
    fields = {"ensure_weight_tying": True} if model.config.tie_word_embeddings else {}
    adapter = random_adapter(model.apply, base, batch, targets=_WEIGHTS, **fields)
    assert len(adapter) == count
    assert_adapted_is_merged(model.apply, base, adapter, batch)


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
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
    found = np.asarray(jax.jit(jlora.adapt(model.apply))(base, adapter, batch))
    assert difference(found[real], expected) < 1e-5

    jlora.save_adapter(tmp_path / "ours", adapter, read)
    fresh = type(oracle).from_pretrained(tmp_path / "base", attn_implementation="eager")
    opened = peft.PeftModel.from_pretrained(fresh, tmp_path / "ours").eval()
    assert difference(cases.torch_logits(opened, batch)[real], expected) < 1e-6


def test_gpt2_drops_where_pytorch_does(tmp_path, monkeypatch):
    rates = {"embd_pdrop": 0.1, "attn_pdrop": 0.2, "resid_pdrop": 0.3}
    oracle = cases.torch_decoder(cases.tiny_decoder("gpt2", **rates))
    ids = cases.random_tokens(oracle.config)["input_ids"][::2]
    assert_same_dropout(oracle, tmp_path, {"input_ids": ids, "attention_mask": jnp.ones_like(ids)}, monkeypatch)


@pytest.mark.parametrize(
    ("model_type", "switches", "key"),
    [
        ("llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}, "rope_type"),
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window"),
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


def test_families_differ_in_their_tables_alone():
    for name in ("gemma", "llama", "mistral", "qwen2", "qwen3"):
        assert family(name).task == "CAUSAL_LM"
        assert family(name).model.__mro__[1].__name__ == "CausalLM"
