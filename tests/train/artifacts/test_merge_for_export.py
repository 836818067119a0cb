"""What a run ships opens in PyTorch, and gives our logits there."""

import dataclasses
import math

import gguf
import jax
import numpy as np
import pytest

import jlora
from jlora.errors import JloraError
from jlora.lora.adapted_model import Adapted
from jlora.models.registry import example_batch
from tests.support.models.encoder_cases import difference
from tests.support.training import lm_folders, tiny, tiny_lm
from train.artifacts import merge_for_export
from train.classify.classifier import load_trained
from train.classify.data.splits import Split

_FAMILIES = ["bert", "roberta", "distilbert"]
_TEXTS = [text for text, _ in tiny.texts(6, seed=9)]


def _ours(folder):
    rows = Split(_TEXTS, None, [-1] * 6, list(range(6)), ["x"] * 6)
    return load_trained(folder).logits(rows, 16)


def _theirs(model, tokenizer):
    torch = pytest.importorskip("torch")
    encoded = tokenizer(_TEXTS, padding=True, truncation=True, max_length=16, return_tensors="pt")
    with torch.no_grad():
        return model.eval()(**encoded).logits.numpy()


@pytest.mark.parametrize("family", _FAMILIES)
def test_merged_opens_in_transformers_with_our_logits(family):
    pytest.importorskip("torch", reason="the oracle is transformers' PyTorch model")
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = tiny.finished_run(family=family) / "merged"
    model, report = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert difference(_ours(folder), _theirs(model, AutoTokenizer.from_pretrained(folder))) < 1e-5


@pytest.mark.parametrize("family", _FAMILIES)
def test_the_adapter_opens_in_peft_with_our_logits(family):
    pytest.importorskip("torch", reason="the oracle is PEFT")
    peft = pytest.importorskip("peft", reason="the oracle is PEFT")
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    run = tiny.finished_run(family=family)
    base = AutoModelForSequenceClassification.from_pretrained(tiny.model_folder(family))
    model = peft.PeftModel.from_pretrained(base, run / "adapter")
    theirs = _theirs(model, AutoTokenizer.from_pretrained(run / "adapter"))
    assert difference(_ours(run / "adapter"), theirs) < 1e-5
    assert difference(_ours(run / "merged"), theirs) < 1e-5


@pytest.mark.parametrize(
    "settings",
    [
        ["lora.init_lora_weights=pissa"],
        ["lora.init_lora_weights=olora", "lora.use_dora=true"],
        ["lora.init_lora_weights=orthogonal", "lora.trainable_token_indices=12,13", "lora.bias=all"],
    ],
    ids=lambda settings: " ".join(settings),
)
def test_every_form_of_lora_opens_in_peft_on_the_original_base(settings):
    run = tiny.finished_run(*settings)
    ours = _ours(run / "merged")
    assert difference(_ours(run / "adapter"), ours) < 1e-4
    peft = pytest.importorskip("peft", reason="the oracle is PEFT")
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    base = AutoModelForSequenceClassification.from_pretrained(tiny.model_folder())
    model = peft.PeftModel.from_pretrained(base, run / "adapter")
    assert difference(_theirs(model, AutoTokenizer.from_pretrained(run / "adapter")), ours) < 1e-4


def test_read_back_is_what_was_written():
    run = tiny.finished_run()
    _, base = merge_for_export.read_back(run / "merged", "float32")
    assert np.array_equal(base["params"]["classifier"]["kernel"].T, tiny.tensors(run / "merged")["classifier.weight"])


def test_the_largest_difference_is_the_largest():
    one = np.zeros((3, 2), np.float32)
    other = one.copy()
    other[1, 1] = -0.25
    assert merge_for_export.largest_difference(one, other) == 0.25
    assert math.isnan(merge_for_export.largest_difference(one, other * np.nan))


@pytest.mark.parametrize("difference", [1.1e-4, float("inf"), float("nan")])
def test_files_that_give_other_logits_are_an_error(difference, tmp_path):
    merge_for_export.require_equal(1e-4, tmp_path)
    with pytest.raises(JloraError, match="must not be used"):
        merge_for_export.require_equal(difference, tmp_path)


def test_a_language_models_adapter_has_no_labels(tmp_path):
    model, base, adapter, config = lm_folders.adapted()
    tokenizer = tiny_lm.lm_data.byte_tokenizer()
    merge_for_export.write_adapter(tmp_path, Adapted(model, base, adapter, config), adapter, tokenizer, None, "base")
    names = {path.name for path in tmp_path.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "chat_template.jinja"} <= names
    assert "labels.json" not in names


def test_for_llama_cpp_a_residual_adapter_is_the_original_bases(tmp_path):
    model, base, _, config = lm_folders.adapted()
    config = dataclasses.replace(config, init_lora_weights="pissa")
    residual, initial = jlora.init_residual(jax.random.key(0), config, base, model.apply, example_batch(model.config))
    adapted = Adapted(model, residual, initial, config, initial)
    merge_for_export.write_gguf_lora(tmp_path / "lora.gguf", adapted, initial)
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "lora.gguf").tensors}
    a, b = (tensors[f"blk.1.ffn_down.weight.lora_{side}"] for side in "ab")
    assert len(a) == 2 * config.r
    assert np.abs(b @ a).max() < 1e-6  # nothing was trained, so nothing is added
