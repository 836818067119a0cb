"""A source reads each part when it is first used, and once; two sources of one folder know nothing of each other."""

from __future__ import annotations

import json
import shutil

import pytest

import jlora
from jlora.models.registry import build
from jlora.pretrained import source as module
from jlora.pretrained.source import PretrainedSource
from jlora.pretrained.weights import load_weights, new_heads
from tests.support.training import tiny_lm

PARTS = {"config": "read_stored_config", "tensors": "open_tensors", "tokenizer": "read_tokenizer"}


@pytest.fixture
def folder(tmp_path):
    """A folder with a tiny language model whose head is tied, and its tokenizer."""
    return shutil.copytree(tiny_lm.model_folder("llama", tie_word_embeddings=True), tmp_path / "model")


@pytest.fixture
def reads(monkeypatch):
    """The parts that were read, in order."""
    found = []
    for part, name in PARTS.items():
        read = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given, part=part, read=read: (found.append(part), read(*given))[1])
    return found


@pytest.mark.parametrize("part", PARTS)
def test_a_part_is_read_when_it_is_first_used_and_once(part, folder, reads):
    source = PretrainedSource(folder)
    assert reads == []
    assert getattr(source, part) is getattr(source, part)
    assert reads == [part]


def test_config_head_and_weights_come_of_one_reading(folder, reads):
    source = PretrainedSource(folder)
    model = build(source.with_stored_head(source.config))
    assert new_heads(model, source) == {}
    load_weights(model, source)
    source.with_stored_head(source.config_with(use_cache=False))
    assert reads == ["config", "tensors"]


def test_overrides_change_neither_the_config_nor_each_other(folder):
    source = PretrainedSource(folder)
    stored = source.config.to_dict()
    assert source.config_with(num_hidden_layers=7).num_hidden_layers == 7
    assert source.config_with().to_dict() == source.config.to_dict() == stored


def test_two_sources_of_one_folder_are_independent(folder, reads):
    first, second = PretrainedSource(folder), PretrainedSource(str(folder))
    first.config.hidden_size = 4
    first.tokenizer.add_tokens(["<more>"])
    assert second.config.hidden_size != 4
    assert "<more>" not in second.tokenizer.get_vocab()
    assert reads == ["config", "tokenizer", "config", "tokenizer"]


def test_files_that_change_are_read_again_by_a_new_source_alone(folder):
    source = PretrainedSource(folder)
    size = source.config.vocab_size
    stored = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(stored | {"vocab_size": size + 1}))
    assert source.config_with().vocab_size == size
    assert PretrainedSource(folder).config.vocab_size == size + 1


@pytest.mark.parametrize("part", ["config", "tensors", "tokenizer"])
def test_a_folder_that_is_not_there_is_refused_at_the_first_use(part, tmp_path):
    source = PretrainedSource(tmp_path / "nowhere")
    with pytest.raises(jlora.FileError, match="nowhere: expected the folder of a model"):
        getattr(source, part)
    shutil.copytree(tiny_lm.model_folder(), tmp_path / "nowhere")
    assert getattr(source, part)  # a refusal is not kept


def test_an_installed_package_is_a_place(tmp_path, monkeypatch, folder):
    package = tmp_path / "has_a_model"
    package.mkdir()
    (package / "__init__.py").write_text("")
    folder.rename(package / "model")
    monkeypatch.syspath_prepend(tmp_path)
    source = PretrainedSource("package:has_a_model/model")
    assert (source.name, source.place) == ("package:has_a_model/model", str(package / "model"))
    assert source.config.model_type == "llama"


def test_the_hub_is_asked_once_for_each_part_and_never_for_the_head_alone(folder, monkeypatch):
    asked = []

    def download(name, *, revision, allow_patterns=None, local_files_only=False):
        asked.append((name, revision, "on this disk" if local_files_only else allow_patterns[0]))
        if local_files_only and len(asked) < 3:
            raise OSError("nothing was downloaded")
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    source = PretrainedSource("org/model", "v2")
    assert source.with_stored_head(source.config) is source.config
    asked_of_disk = ("org/model", "v2", "on this disk")
    assert asked == [("org/model", "v2", "config.json"), asked_of_disk]
    for _ in range(2):
        load_weights(build(source.with_stored_head(source.config)), source)
    assert [patterns for _, _, patterns in asked if patterns != "on this disk"] == [
        "config.json"
    ]  # what is here is taken
    assert PretrainedSource("org/model", "v2").fetch_weights() == folder
    assert asked[-1] == ("org/model", "v2", "model.safetensors")
