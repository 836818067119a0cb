from __future__ import annotations

import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jlora
from jlora.generation.chat import chat_ids
from jlora.generation.open_model import end_ids, load_language_model
from tests.support.training import lm_folders, tiny, tiny_lm


def _logits(language):
    ids = jnp.asarray([[5, 6, 7, 8, 9, 10, 11, 12]])
    adapted = language.adapted
    apply = jax.jit(jlora.adapt(adapted.model.apply))
    return apply(adapted.base, adapted.adapter or None, {"input_ids": ids, "attention_mask": jnp.ones_like(ids)})


@pytest.fixture(scope="module")
def expected():
    """{"base", "adapted"}: the logits."""
    model, base, adapter, _ = lm_folders.adapted()
    ids = jnp.asarray([[5, 6, 7, 8, 9, 10, 11, 12]])
    batch = {"input_ids": ids, "attention_mask": jnp.ones_like(ids)}
    return {"base": model.apply(base, batch), "adapted": model.apply(jlora.merge(base, adapter), batch)}


@pytest.mark.parametrize(
    ("part", "options", "kind"),
    [
        ("", {}, "adapted"),
        ("merged", {}, "adapted"),
        ("adapter", {}, "adapted"),
        ("adapter", {"base": "model"}, "adapted"),
        ("", {"use_adapter": False}, "base"),
        ("adapter", {"use_adapter": False}, "base"),
        (None, {}, "base"),
        (None, {"adapter": "adapter"}, "adapted"),
        (None, {"adapter": "adapter", "use_adapter": False}, "base"),
    ],
)
def test_what_is_opened(part, options, kind, expected):
    run, model = lm_folders.run_folder(), str(tiny_lm.model_folder())
    options = {**options, **({"base": model} if "base" in options else {})}
    options = {**options, **({"adapter": str(run / "adapter")} if "adapter" in options else {})}
    language = load_language_model(model if part is None else str(run / part), **options)
    assert np.allclose(_logits(language), expected[kind], atol=1e-5)
    assert language.tokenizer.chat_template
    assert language.stop_ids == (language.tokenizer.eos_token_id,)
    assert np.abs(expected["base"] - expected["adapted"]).max() > 1e-2


def test_an_adapter_alone_is_found_where_nothing_was_merged(tmp_path, expected):
    shutil.copytree(lm_folders.run_folder() / "adapter", tmp_path / "adapter")
    language = load_language_model(str(tmp_path))
    assert language.adapted.lora.r == 2
    assert np.allclose(_logits(language), expected["adapted"], atol=1e-5)


def test_weights_in_another_type_and_quantized(expected):
    language = load_language_model(str(tiny_lm.model_folder()), dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(language.adapted.base)} == {jnp.dtype(jnp.bfloat16)}
    assert 1e-4 < np.abs(_logits(language) - expected["base"]).max() < 0.1
    language = load_language_model(str(lm_folders.run_folder() / "adapter"), quantize="int8")
    assert 1e-5 < np.abs(_logits(language) - expected["adapted"]).max() < 0.2


def test_what_is_no_language_model_is_refused(tmp_path):
    with pytest.raises(jlora.JloraError, match=r"expected a causal language model \(.*llama.*\), found 'bert'"):
        load_language_model(str(tiny.model_folder()))
    with pytest.raises(jlora.JloraError, match="found none of them"):
        load_language_model(str(tmp_path))
    with pytest.raises(jlora.JloraError, match="no such file or folder"):
        load_language_model(str(tmp_path / "nowhere"))
    with pytest.raises(jlora.JloraError, match="--base: expected none together with --adapter"):
        load_language_model("a", adapter="b", base="c")


def test_texts_end_by_the_models_tokens_and_the_tokenizers():
    model, *_ = lm_folders.adapted()
    tokenizer = load_language_model(str(tiny_lm.model_folder())).tokenizer
    config = type(model.config)(eos_token_id=[3, 9])
    assert end_ids(config, tokenizer) == (3, 9, tokenizer.eos_token_id)


SERVED = """
import sys
import jax
import jlora
from jlora.generation.chat import chat_ids
from jlora.generation.detokenize import decode_stream
from jlora.generation.chat import chat_ids
from jlora.generation.open_model import load_language_model

language = load_language_model(sys.argv[1], base=sys.argv[2])
assert set(language.adapted.adapter) and language.adapted.lora.r == 2
prompt = chat_ids(language.tokenizer, [{"role": "user", "content": "Hi"}])
tokens = list(language.generator.stream(prompt, max_new_tokens=4))
assert 1 <= len(tokens) <= 4
assert isinstance("".join(decode_stream(language.tokenizer, tokens, prompt)), str)
print(tokens, [name for name in sys.modules if name.partition(".")[0] == "train"])
"""


def test_a_program_without_the_trainer_opens_a_run_and_chats():
    adapter, model = str(lm_folders.run_folder() / "adapter"), str(tiny_lm.model_folder())
    run = subprocess.run([sys.executable, "-c", SERVED, adapter, model], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    language = load_language_model(adapter, base=model)
    prompt = chat_ids(language.tokenizer, [{"role": "user", "content": "Hi"}])
    assert run.stdout == f"{list(language.generator.stream(prompt, max_new_tokens=4))} []\n"
