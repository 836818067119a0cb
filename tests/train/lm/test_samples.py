from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

import jlora
from jlora.lora.adapted_model import Adapted
from tests.support.training import lm_folders, tiny_lm
from train.lm import samples
from train.lm.config import SamplesSection
from train.lm.samples import write_samples

_TEXTS = ["the sea", "a cold night and", "ship ☕", "star"]


@pytest.fixture(scope="module")
def setting():
    """(base and adapter, tokenizer, prompts)."""
    model, base, adapter, config = lm_folders.adapted()
    tokenizer = tiny_lm.lm_data.byte_tokenizer()
    return Adapted(model, base, adapter, config), tokenizer, [np.array(tokenizer(t)["input_ids"]) for t in _TEXTS]


def _written(setting, path, prompts=None, seed=0, **given):
    adapted, tokenizer, texts = setting
    section = SamplesSection(**{"prompt_tokens": 1, "max_length": 20, "temperature": 0.0, "show": 2, **given})
    texts = texts if prompts is None else prompts
    shown = write_samples(
        path / "samples.jsonl", texts, adapted, adapted.adapter, tokenizer, section, jax.random.key(seed)
    )
    return [json.loads(line) for line in (path / "samples.jsonl").read_text(encoding="utf-8").splitlines()], shown


def test_greedy_completions_of_base_and_tuned(setting, tmp_path):
    """As `stream` writes them, one prompt after the other: `max_length` counts prompt and completion."""
    adapted, tokenizer, prompts = setting
    found, _ = _written(setting, tmp_path)
    assert [sample["prompt"] for sample in found] == _TEXTS
    for sample, prompt in zip(found, prompts, strict=True):
        for name, adapter in (("base", None), ("tuned", adapted.adapter)):
            count, stops = 20 - len(prompt), [tokenizer.eos_token_id]
            ids = jlora.stream(adapted.model, adapted.base, adapter, prompt, max_new_tokens=count, stop_ids=stops)
            assert sample[name] == tokenizer.decode(list(ids), skip_special_tokens=True).rstrip("\ufffd")
    assert any(sample["base"] != sample["tuned"] for sample in found)


def test_batches_change_nothing(setting, tmp_path, monkeypatch):
    expected, _ = _written(setting, tmp_path)
    monkeypatch.setattr(samples, "_ROWS", 3)  # the second batch is filled up
    assert _written(setting, tmp_path)[0] == expected


def test_draws_repeat_and_are_the_same_for_base_and_tuned(setting, tmp_path):
    first, again, other = (_written(setting, tmp_path, seed=seed, temperature=1.0)[0] for seed in (1, 1, 2))
    assert first == again != other
    adapted, *rest = setting
    untrained = (dataclasses.replace(adapted, adapter={}), *rest)
    assert all(sample["base"] == sample["tuned"] for sample in _written(untrained, tmp_path, temperature=1.0)[0])


def test_the_base_of_a_residual_run_is_the_original(setting, tmp_path):
    """Where the adapter started with a part of the base, base and that start are what there was before."""
    adapted, *rest = setting
    residual = (dataclasses.replace(adapted, initial=adapted.adapter), *rest)
    assert all(sample["base"] == sample["tuned"] for sample in _written(residual, tmp_path)[0])


def test_a_few_are_shown(setting, tmp_path):
    found, shown = _written(setting, tmp_path)
    assert shown.count("prompt: ") == shown.count("  base: ") == shown.count(" tuned: ") == 2
    assert found[1]["prompt"] in shown
    assert found[2]["prompt"] not in shown
    assert max(map(len, shown.splitlines())) <= 100


def test_prompts_without_room_are_left_out_and_said(setting, tmp_path, caplog):
    _, _, prompts = setting
    found, _ = _written(setting, tmp_path, max_length=len(_TEXTS[1]))
    assert [sample["prompt"] for sample in found] == [_TEXTS[0], *_TEXTS[2:]]
    assert "1 prompts left out, as they fill samples.max_length=16" in caplog.text
    assert _written(setting, tmp_path, prompts=prompts[:0]) == ([], "")


def test_the_models_context_bounds_them(setting, tmp_path, caplog):
    _, _, prompts = setting
    found, _ = _written(setting, tmp_path, prompts=[prompts[0], np.resize(prompts[1], 126)], max_length=1000)
    assert len(found) == 2
    found, _ = _written(setting, tmp_path, prompts=[prompts[0], np.resize(prompts[1], 128)], max_length=1000)
    assert "1 prompts left out, as they fill samples.max_length=128" in caplog.text
