"""Adapters that PEFT has made answer as PEFT's own models do; devices that share a base answer as one alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

import jlora
from jlora.pretrained.load import build, example_batch, load_weights
from jlora.pretrained.source import PretrainedSource
from serve.config import ServeConfig
from serve.engine.open_engine import open_engine
from tests.support.programs import served_on_mesh
from tests.support.serve.engines import adapter_folder, ask, prompt, request
from tests.support.training import tiny, tiny_lm

torch = pytest.importorskip("torch", reason="the oracle is PyTorch")
peft = pytest.importorskip("peft", reason="the oracle is PEFT")


def _save_random(model, folder, **fields):
    """PEFT's model with random A and B, saved in the folder."""
    torch.manual_seed(len(folder.name))
    wrapped = peft.get_peft_model(model, peft.LoraConfig(init_lora_weights=False, **fields)).eval()
    wrapped.save_pretrained(folder)
    return wrapped


def _open(model, folders, **keys):
    opened = open_engine(ServeConfig(model=str(model), slots=2, rows=2, max_rank=8, context=120, **keys), folders)
    opened.engine.start()
    return opened.engine


@pytest.mark.parametrize(
    "fields",
    [
        {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "down_proj"]},
        {"r": 8, "use_rslora": True, "target_modules": "all-linear", "rank_pattern": {"v_proj": 2}},
    ],
)
def test_a_language_model_writes_what_pefts_writes(tmp_path, fields):
    from transformers import AutoModelForCausalLM

    base, folder, ids = tiny_lm.model_folder(), tmp_path / "adapter", prompt(4, 21)
    theirs = _save_random(AutoModelForCausalLM.from_pretrained(base), folder, task_type="CAUSAL_LM", **fields)
    engine = _open(base, {"theirs": folder})
    (found,) = ask(engine, request("theirs", ids, 16, top_logprobs=1))
    engine.stop(0)
    with torch.no_grad():
        logits = theirs(torch.tensor([ids + found.ids])).logits[0, len(ids) - 1 : -1].log_softmax(-1)
    assert found.ids == logits.argmax(-1).tolist()
    np.testing.assert_allclose([token.logprob for token in found.tokens], logits.amax(-1), rtol=1e-5, atol=1e-5)


def test_an_encoder_classifies_as_pefts_does(tmp_path):
    from transformers import AutoModelForSequenceClassification

    base, ids, folders, expected = tiny.model_folder(), prompt(6, 12), {}, {}
    for count in (2, 5):
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=count)
        fields = {"task_type": "SEQ_CLS", "r": count, "target_modules": ["query", "dense"]}
        name = "theirs" + "s" * count
        theirs, folders[name] = _save_random(model, tmp_path / name, **fields), tmp_path / name
        with torch.no_grad():
            expected[name] = theirs(torch.tensor([ids]) % 60).logits.softmax(-1).numpy()
    engine = _open(base, folders, labels=6)
    for name in folders:
        found = engine.classify(name, [[i % 60 for i in ids]]).result(60)
        np.testing.assert_allclose(found.probabilities, expected[name], rtol=1e-5, atol=1e-6)
    engine.stop(0)


def _save_classifier(folder):
    """A random adapter with a head of three classes for the tiny encoder."""
    source = PretrainedSource(tiny.model_folder())
    model = build(source.config_with(num_labels=3))
    base = load_weights(model, source, key=jax.random.key(9), new_head=True)
    config = jlora.LoraConfig(r=2, target_modules=["query", "value"], task_type="SEQ_CLS", init_lora_weights=False)
    adapter = jlora.init(jax.random.key(4), config, base, model.apply, example_batch(model.config))
    jlora.save_adapter(folder, adapter, config)
    (folder / "labels.json").write_text(json.dumps({"id2label": {"0": "a", "1": "b", "2": "c"}}))


def test_devices_that_share_a_base_answer_as_one_alone(tmp_path):
    for index in range(3):
        shutil.copytree(adapter_folder(index), tmp_path / f"a{index}")
    _save_classifier(tmp_path / "classifier")
    environment = tiny.environment(XLA_FLAGS=f"{os.environ.get('XLA_FLAGS', '')} {tiny.EIGHT_DEVICES}")
    command = [sys.executable, "-m", "tests.support.programs.served_on_mesh", tmp_path]
    done = subprocess.run(command, env=environment, cwd=tiny.ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    adapters = {f"a{index}": tmp_path / f"a{index}" for index in range(3)}
    for kind, rows in served_on_mesh.KINDS.items():
        engine = served_on_mesh.open_on(1, tiny_lm.model_folder(), adapters, quantize=kind, rows=rows)
        assert found["answers"][str(kind)] == [one.ids for one in ask(engine, *served_on_mesh.questions())]
        assert not any(found[f"compiled later, {kind}"])
        engine.stop(0)
    assert found["splits"] == {"weights": True, "keys": True}
    assert found["errors"] == []
    engine = served_on_mesh.open_on(1, tiny.model_folder(), {"c": tmp_path / "classifier"}, labels=4)
    expected = engine.classify("c", served_on_mesh.ROWS).result(60).probabilities
    np.testing.assert_allclose(found["probabilities"], expected, rtol=1e-5)
    engine.stop(0)
    assert found["refused"] == "mesh.tensor: expected at most 8, the number of devices here; found 9"
