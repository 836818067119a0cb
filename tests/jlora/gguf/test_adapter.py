"""Adapters for llama.cpp: read back by its package and added to its layout of the base, they are the merged model.

`python -m benchmarks.llama_cpp` has llama.cpp itself load them: its greedy tokens are ours, its logits to 4.3e-4.
"""

from __future__ import annotations

import gguf
import numpy as np
import pytest

import jlora
from jlora.gguf.adapter import save_gguf_lora
from jlora.lora.matrices import to_matrices
from jlora.models.registry import abstract_base, build, example_batch
from tests.support.adapters.lora_cases import random_adapter
from tests.support.models import decoder_cases as cases
from tests.support.models import gguf_cases


def _tensors(path):
    return {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}


def _fields(path):
    return {key: field.contents() for key, field in gguf.GGUFReader(path).fields.items()}


@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_added_to_the_base_it_is_the_merged_model(model_type, dtype, tmp_path):
    oracle = cases.torch_decoder(cases.tiny_decoder(model_type))
    model, base = cases.load_saved(oracle, tmp_path / "base")
    patterns = {"rank_pattern": {"k_proj": 3, "lm_head": 1}, "alpha_pattern": {"down_proj": 5, r"0\..*up_proj": 1}}
    targets = r".*(_proj|lm_head)"
    adapter = random_adapter(model.apply, base, example_batch(model.config), targets=targets, **patterns)
    assert len(adapter) == 8
    save_gguf_lora(tmp_path / "lora.gguf", adapter, model.config, dtype=dtype)

    jlora.save_base(tmp_path / "merged", model, jlora.merge(base, adapter))
    gguf_cases.write_model(tmp_path / "base.gguf", oracle)
    gguf_cases.write_model(tmp_path / "merged.gguf", type(oracle).from_pretrained(tmp_path / "merged"))
    plain, merged, lora = (_tensors(tmp_path / f"{name}.gguf") for name in ("base", "merged", "lora"))

    fields = _fields(tmp_path / "lora.gguf")
    assert fields["general.architecture"] == model_type
    assert (fields["general.type"], fields["adapter.type"]) == ("adapter", "lora")
    adapted = [name for name in plain if f"{name}.lora_a" in lora]
    assert len(adapted) == 2 * 7 + 1
    assert len(lora) == 2 * len(adapted)
    for name, weight in plain.items():
        if name in adapted:
            a, b = (lora[f"{name}.lora_{side}"].astype(np.float32) for side in "ab")
            weight = weight + fields["adapter.lora.alpha"] / len(a) * b @ a
        assert np.allclose(weight, merged[name], atol=1e-6 if dtype == "float32" else 5e-3), name
        assert lora.get(f"{name}.lora_a", np.zeros(0, dtype)).dtype == dtype


def test_one_alpha_leaves_b_as_it_is(tmp_path):
    model = build(cases.tiny_decoder("llama"))
    adapter = random_adapter(model.apply, abstract_base(model), example_batch(model.config), targets=["v_proj"])
    save_gguf_lora(tmp_path / "deep/lora.gguf", adapter, model.config)
    found = _tensors(tmp_path / "deep/lora.gguf")["blk.1.attn_v.weight.lora_b"]
    assert np.array_equal(found, np.asarray(adapter["params/model/layers/self_attn/v_proj/kernel"].b[1]).T)
    assert _fields(tmp_path / "deep/lora.gguf")["adapter.lora.alpha"] == 3.0
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["lora.gguf"]


@pytest.mark.parametrize("alphas", [{r"layers\.0\..*": 0}, {r"layers\.0\..*": 1e-6}, {".*": 0}])
def test_a_layers_small_scale_leaves_the_others_theirs(alphas, tmp_path):
    """llama.cpp takes a lora_alpha of 0 for a scale of 1; and no B may be too large for float16."""
    model = build(cases.tiny_decoder("llama"))
    batch = example_batch(model.config)
    adapter = random_adapter(model.apply, abstract_base(model), batch, targets=["v_proj"], alpha_pattern=alphas)
    save_gguf_lora(tmp_path / "lora.gguf", adapter, model.config, dtype="float16")
    lora, alpha = _tensors(tmp_path / "lora.gguf"), _fields(tmp_path / "lora.gguf")["adapter.lora.alpha"]
    assert alpha > 0
    for layer, (_, b, scale) in enumerate(to_matrices(adapter["params/model/layers/self_attn/v_proj/kernel"])):
        found = alpha / 2 * lora[f"blk.{layer}.attn_v.weight.lora_b"].astype(np.float32)
        assert np.allclose(found, np.asarray(b) * np.asarray(scale), atol=2e-3), layer


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"use_dora": True}, "DoRA's magnitude"),
        ({"modules_to_save": ["lm_head"]}, "trained whole"),
        ({"targets": ["embed_tokens"]}, "an embedding"),
    ],
)
def test_what_llama_cpp_has_no_form_for_is_refused(fields, message, tmp_path):
    model = build(cases.tiny_decoder("llama"))
    batch = example_batch(model.config)
    base = abstract_base(model)
    adapter = random_adapter(model.apply, base, batch, **{"targets": ["q_proj"], **fields})
    with pytest.raises(jlora.JloraError, match=f"{message}.*; merge the adapter, and convert"):
        save_gguf_lora(tmp_path / "lora.gguf", adapter, model.config)
    assert not list(tmp_path.iterdir())


def test_a_family_with_other_weights_there_is_refused(tmp_path):
    config = cases.tiny_decoder("gpt2")
    config.model_type = "bloom"
    with pytest.raises(jlora.JloraError, match=r"model_type: expected one .*llama.*; found 'bloom'; merge"):
        save_gguf_lora(tmp_path / "lora.gguf", {}, config)


def test_gpt2s_layers_go_as_they_are(tmp_path):
    model = build(cases.tiny_decoder("gpt2"))
    adapter = random_adapter(model.apply, abstract_base(model), example_batch(model.config), targets=["c_attn"])
    save_gguf_lora(tmp_path / "lora.gguf", adapter, model.config)
    found = _tensors(tmp_path / "lora.gguf")
    assert found["blk.1.attn_qkv.weight.lora_a"].shape == (2, 32)
    assert found["blk.1.attn_qkv.weight.lora_b"].shape == (96, 2)
