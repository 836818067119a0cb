"""Tensors that PEFT writes twice: read without harm, checked against the base, written where PEFT looks for them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jlora

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
KERNEL = "model/layers/self_attn/q_proj/kernel"
IDS = jnp.asarray([[1, 3, 5]])


def _llama(seed=0):
    """A tiny causal model with tied embeddings, in PyTorch."""
    torch = pytest.importorskip("torch", reason="the oracle is PEFT")
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=20, tie_word_embeddings=True, **sizes)).eval()


def _base(model):
    weights = {name: jnp.asarray(value.detach().numpy()) for name, value in model.named_parameters()}
    projection = weights["model.layers.0.self_attn.q_proj.weight"].T
    layer = {"self_attn": {"q_proj": {"kernel": projection[None]}}}
    return {"model": {"embed_tokens": {"embedding": weights["model.embed_tokens.weight"]}, "layers": layer}}


def _fn(base, ids):
    """What there is of Llama here: the embedding as a table and as the head, and one projection between."""
    table = base["model"]["embed_tokens"]["embedding"]
    kernels = base["model"]["layers"]["self_attn"]["q_proj"]["kernel"]
    x, _ = jax.lax.scan(lambda x, kernel: (x @ kernel, None), table[ids], kernels)
    return x @ table.T


def _saved_by_peft(folder, **fields):
    """The file of a PEFT model on `_llama`, every trained tensor random: (model, tensors)."""
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    model = peft.get_peft_model(_llama(), peft.LoraConfig(r=2, task_type="CAUSAL_LM", **fields)).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return model, load_file(folder / WEIGHTS)


CASES = [
    ({"target_modules": ["embed_tokens", "q_proj"]}, {"base_layer"}),
    ({"target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": True}, {"base_layer"}),
    ({"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}, set()),
    ({"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, set()),
    ({"target_modules": ["q_proj"], "trainable_token_indices": [3, 1]}, set()),
    ({"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [3]}}, set()),
]


@pytest.mark.parametrize(("fields", "left_out"), CASES)
def test_tied_embeddings_there_and_back(fields, left_out, tmp_path, recwarn):
    """Every tensor but the base's own comes back with the same bits; PEFT misses none and computes the same."""
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    theirs, original = _saved_by_peft(tmp_path / "peft", **fields)
    base = _base(_llama())
    adapter, config = jlora.load_adapter(tmp_path / "peft", base, _fn, IDS)
    jlora.save_adapter(tmp_path / "ours", adapter, config)
    back = load_file(tmp_path / "ours" / WEIGHTS)
    assert back.keys() == {key for key in original if not left_out & set(key.split("."))}
    assert all(back[key].tobytes() == original[key].tobytes() for key in back)
    again, _ = jlora.load_adapter(tmp_path / "ours", base, _fn, IDS)
    assert jax.tree.structure(again) == jax.tree.structure(adapter)

    recwarn.clear()
    opened = peft.PeftModel.from_pretrained(_llama(), tmp_path / "ours").eval()
    assert not [warning for warning in recwarn if "missing" in str(warning.message)]
    ids = torch.tensor(np.asarray(IDS))
    with torch.no_grad():
        assert torch.equal(opened(ids).logits, theirs(ids).logits)


@pytest.mark.parametrize("tied", [True, False])
def test_the_uses_that_see_an_adapter_on_a_tied_embedding_are_pefts(tied, tmp_path):
    fields = {"target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": tied}
    _saved_by_peft(tmp_path, **fields)
    adapter, _ = jlora.load_adapter(tmp_path, _base(_llama()), _fn, IDS)
    assert adapter["model/embed_tokens/embedding"].only == (None if tied else "lookup")


def test_a_weight_of_another_base(tmp_path):
    _saved_by_peft(tmp_path, target_modules=["embed_tokens"])
    with pytest.raises(jlora.JloraError) as caught:
        jlora.load_adapter(tmp_path, _base(_llama(seed=1)), _fn, IDS)
    assert f"{PREFIX}model.embed_tokens.base_layer.weight: expected the base's own weight, found" in str(caught.value)
    assert "Check that this is the base that the adapter was made for" in str(caught.value)
    shapes = jax.eval_shape(lambda: _base(_llama(seed=1)))
    assert jlora.load_adapter(tmp_path, shapes, _fn, IDS)


def test_a_copy_of_another_shape(tmp_path):
    _, tensors = _saved_by_peft(tmp_path, target_modules=["embed_tokens"])
    tensors[f"{PREFIX}model.embed_tokens.base_layer.weight"] = np.ones((21, 8), np.float32)
    save_file(tensors, tmp_path / WEIGHTS)
    with pytest.raises(jlora.JloraError, match=r"own weight of shape \(20, 8\), found one of \(21, 8\)\. Check that"):
        jlora.load_adapter(tmp_path, _base(_llama()), _fn, IDS)


def test_a_head_that_differs_from_its_embedding_is_no_copy(tmp_path):
    _, tensors = _saved_by_peft(tmp_path, target_modules=["embed_tokens"], ensure_weight_tying=True)
    tensors[f"{PREFIX}lm_head.lora_A.weight"] += 1
    save_file(tensors, tmp_path / WEIGHTS)
    with pytest.raises(jlora.JloraError, match=r"lm_head\.lora_A\.weight: found, but adapter_config\.json names no"):
        jlora.load_adapter(tmp_path, _base(_llama()), _fn, IDS)


def _with_tables(folder, change):
    """An adapter of the projection, and the base's tied tables in its file (`save_embedding_layers`), changed."""
    _, tensors = _saved_by_peft(folder, target_modules=["q_proj"])
    table = change(np.asarray(_base(_llama())["model"]["embed_tokens"]["embedding"]))
    keys = [f"{PREFIX}model.embed_tokens.weight", f"{PREFIX}lm_head.weight"]
    save_file(tensors | {key: table.copy() for key in keys}, folder / WEIGHTS)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_copy_of_the_base_is_left_out(dtype, tmp_path):
    _with_tables(tmp_path, lambda table: table.astype(jnp.dtype(dtype)))
    assert list(jlora.load_adapter(tmp_path, _base(_llama()), _fn, IDS)[0]) == [KERNEL]


@pytest.mark.parametrize("factor", [0.0, 0.999])
def test_a_weight_of_the_base_that_nobody_named(factor, tmp_path):
    """PEFT takes the file's, however near it is."""
    _with_tables(tmp_path, lambda table: table * np.float32(factor))
    with pytest.raises(jlora.JloraError) as caught:
        jlora.load_adapter(tmp_path, _base(_llama()), _fn, IDS)
    assert "model.embed_tokens.weight: expected the base's own weight, found other values" in str(caught.value)
    assert "add its module to modules_to_save in adapter_config.json" in str(caught.value)
