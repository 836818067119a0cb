"""PEFT's adapters on every family: its logits here, and there again after they were saved here."""

from __future__ import annotations

import copy
import functools
import tempfile
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

import jlora
from jlora.initialization.abstract_adapter import abstract_adapter
from jlora.lora import name_patterns
from tests.support.adapters import peft_cases as cases
from tests.support.models import decoder_cases, encoder_cases
from tests.support.models.encoder_cases import difference, torch_batch

peft = pytest.importorskip("peft", reason="the oracle is PEFT")
torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

LABELS = list(cases.configurations(cases.FAMILIES["llama"]))
TRANSLATED = ("names of other models", "parameters", "biases of the update", "PiSSA", "OLoRA")
"""Configurations that are other ones here: `init` refuses them, or means something else."""


class Pair(NamedTuple):
    """The same weights in PyTorch and here, and a batch."""

    oracle: Any
    model: Any
    base: Any
    batch: Any
    apply: Any
    plain: np.ndarray

    def theirs(self, model: Any) -> np.ndarray:
        """Logits of a PyTorch model, without those of padding."""
        with torch.no_grad():
            return self._real(model(**torch_batch(self.batch)).logits.numpy())

    def ours(self, fn: Any, *args: Any) -> np.ndarray:
        """Logits of a function of ours."""
        return self._real(np.asarray(fn(*args, self.batch)))

    def _real(self, logits: np.ndarray) -> np.ndarray:
        return logits[np.asarray(self.batch["attention_mask"], bool)] if logits.ndim == 3 else logits


@functools.cache
def pair(name: str) -> Pair:
    """The family's tiny model."""
    torch.set_num_threads(1)
    family = cases.FAMILIES[name]
    if family.task == "SEQ_CLS":
        config = encoder_cases.tiny_config(name, **family.switches)
        oracle, batch = encoder_cases.torch_classifier(config), encoder_cases.random_batch(config)
    else:
        config = decoder_cases.tiny_decoder(name, **family.switches)
        oracle, batch = decoder_cases.torch_decoder(config), decoder_cases.random_tokens(config, rows=2)
    with tempfile.TemporaryDirectory() as folder:
        model, base = decoder_cases.load_saved(oracle, Path(folder))
    found = Pair(oracle, model, base, batch, jax.jit(model.apply), np.zeros(0))
    return found._replace(plain=found.theirs(oracle))


def saved_by_peft(name: str, folder: Path, fields: dict[str, Any]) -> np.ndarray:
    """Writes an adapter of PEFT's, everything trained random; its logits."""
    here, family = pair(name), cases.FAMILIES[name]
    given = {"r": 4, "lora_alpha": 6, "task_type": family.task, "fan_in_fan_out": family.conv1d, **fields}
    wrapped = peft.get_peft_model(copy.deepcopy(here.oracle), peft.LoraConfig(**given)).eval()
    torch.manual_seed(1)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    wrapped.save_pretrained(folder)
    logits = here.theirs(wrapped)
    assert difference(logits, here.plain) > 1e-3, "the adapter changes nothing: nothing is tested"
    return logits


def opened_by_peft(name: str, folder: Path) -> Any:
    """The folder on the family's model, after PEFT missed no tensor of it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = peft.PeftModel.from_pretrained(copy.deepcopy(pair(name).oracle), folder).eval()
    assert [str(warning.message) for warning in caught if "missing" in str(warning.message)] == []
    return model


def fields_of(name: str, label: str) -> dict[str, Any]:
    """The fields, or a skip where there is nothing of the kind."""
    family = cases.FAMILIES[name]
    if label == "parameters" and family.conv1d:
        pytest.skip("Conv1D keeps its weights the other way round: see the list of what is refused")
    if label == "OLoRA" and family.conv1d:
        pytest.skip("PEFT itself takes Conv1D's weight the other way round, and fails")
    if name == "distilbert" and "all linear" in label:
        pytest.skip("PEFT itself adapts pre_classifier, then fails to train it whole")
    if label == "biases of the update" and not family.biases:
        pytest.skip("the modules have no biases: see the list of what is refused")
    return cases.configurations(family)[label]


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("name", cases.FAMILIES)
def test_there_and_back(name, label, tmp_path):
    """The logits of PEFT's file, merged and, for one configuration a family, adapted; PEFT opens ours with the same."""
    here, fields = pair(name), fields_of(name, label)
    expected = saved_by_peft(name, tmp_path / "peft", fields)
    adapter, config = jlora.load_adapter(tmp_path / "peft", here.base, here.apply, here.batch)
    tolerance = 3e-5 if label == "PiSSA" else 1e-5  # two libraries' singular vectors
    assert difference(here.ours(here.apply, jlora.merge(here.base, adapter)), expected) < tolerance
    if (list(cases.FAMILIES).index(name) - LABELS.index(label)) % len(cases.FAMILIES) == 0:  # each costs a compilation
        assert difference(here.ours(jax.jit(jlora.adapt(here.model.apply)), here.base, adapter), expected) < tolerance
    if label not in TRANSLATED:
        typed = jlora.LoraConfig(**{"r": 4, "lora_alpha": 6, "task_type": cases.FAMILIES[name].task, **fields})
        planned = abstract_adapter(typed, here.base, here.apply, here.batch)
        assert jax.tree.structure(planned) == jax.tree.structure(adapter)
    jlora.save_adapter(tmp_path / "ours", adapter, config)
    assert difference(here.theirs(opened_by_peft(name, tmp_path / "ours")), expected) < tolerance


@pytest.mark.parametrize("label", cases.OTHER_FILES)
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_files_that_others_changed(name, label, tmp_path):
    """Names and keys that PEFT ignores, or takes away itself, change no logits."""
    here, family = pair(name), cases.FAMILIES[name]
    expected = saved_by_peft(name, tmp_path, {"target_modules": family.attention, "use_dora": True})
    cases.OTHER_FILES[label](tmp_path)
    adapter, _ = jlora.load_adapter(tmp_path, here.base, here.apply, here.batch)
    assert difference(here.ours(here.apply, jlora.merge(here.base, adapter)), expected) < 1e-5


@pytest.mark.parametrize("label", cases.REFUSED)
def test_what_is_refused_is_said(label, tmp_path, monkeypatch):
    """Each with what was expected and found; docs/adapters.md lists them with the reason."""
    monkeypatch.setattr(name_patterns, "PATTERN_SECONDS", 0.1)
    refused = cases.REFUSED[label]
    here = pair(refused.family)
    fields = {"target_modules": cases.FAMILIES[refused.family].attention, **refused.fields}
    saved_by_peft(refused.family, tmp_path, fields)
    refused.change(tmp_path)
    with pytest.raises(jlora.JloraError, match=refused.message):
        jlora.load_adapter(tmp_path, here.base, here.apply, here.batch)
