"""Files of a folder and links out of it, for every kind of file that is read for a folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from jlora.errors import JloraError
from jlora.files.path_checks import looks_like_path
from jlora.pretrained.folder import INDEX_FILE, open_tensors
from jlora.pretrained.source import PretrainedSource
from tests.support.adapters import small_adapter
from tests.support.training import tiny
from train.classify.classifier import read_label_entries


def _shards(folder: Path) -> None:
    save_file({"a": np.ones(4, np.float32)}, folder / "model-1.safetensors")
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    (folder / "model.safetensors").unlink()


READERS = {
    "config.json": lambda folder: PretrainedSource(folder).config,
    "generation_config.json": lambda folder: PretrainedSource(folder).config,
    "model.safetensors": open_tensors,
    INDEX_FILE: open_tensors,
    "model-1.safetensors": open_tensors,
    "tokenizer.json": lambda folder: PretrainedSource(folder).tokenizer,
    "tokenizer_config.json": lambda folder: PretrainedSource(folder).tokenizer,
    "adapter_config.json": small_adapter.load,
    "adapter_model.safetensors": small_adapter.load,
    "labels.json": lambda folder: read_label_entries(folder / "labels.json"),
}


@pytest.mark.parametrize("name", READERS)
def test_a_link_out_of_the_folder_is_refused_and_one_inside_is_not(name, tmp_path):
    folder = shutil.copytree(tiny.model_folder("bert"), tmp_path / "model")
    small_adapter.save(folder)
    (folder / "generation_config.json").write_text("{}")
    (folder / "labels.json").write_text('{"id2label": {"0": "a"}, "problem_type": "regression"}')
    if "-" in name or name == INDEX_FILE:
        _shards(folder)
    READERS[name](folder)
    (folder / name).rename(folder / "inside")
    (folder / name).symlink_to("inside")
    READERS[name](folder)
    (folder / "inside").rename(tmp_path / "outside")
    (folder / name).unlink()
    (folder / name).symlink_to(tmp_path / "outside")
    with pytest.raises(JloraError, match=rf"{name}: expected a file inside .*; found a link to .*outside\. Replace"):
        READERS[name](folder)


def test_a_folder_may_be_a_link_itself(tmp_path):
    (tmp_path / "link").symlink_to(tiny.model_folder("bert"))
    assert PretrainedSource(tmp_path / "link").config.model_type == "bert"


@pytest.mark.parametrize("shared", [False, True])
def test_the_hubs_cache_is_made_of_links(shared, tmp_path):
    """A snapshot's files are links to the blobs of its repository, which may be links to blobs that all share."""
    snapshot = tmp_path / "models--me--bert" / "snapshots" / "0f1e"
    shutil.copytree(tiny.model_folder("bert"), snapshot)
    blobs = tmp_path / "models--me--bert" / "blobs"
    for folder in (blobs, tmp_path / "blobs"):
        folder.mkdir()
    for number, file in enumerate(sorted(snapshot.iterdir())):
        file.rename(blobs / str(number))
        file.symlink_to(f"../../blobs/{number}")
        if shared:
            (blobs / str(number)).rename(tmp_path / "blobs" / str(number))
            (blobs / str(number)).symlink_to(f"../../blobs/{number}")
    assert PretrainedSource(snapshot).config.model_type == "bert"
    assert PretrainedSource(snapshot).tokenizer.get_vocab()
    assert open_tensors(snapshot)
    (tmp_path / "secret").write_text("{}")
    (snapshot / "generation_config.json").symlink_to(tmp_path / "secret")
    with pytest.raises(JloraError, match=r"found a link to .*secret"):
        PretrainedSource(snapshot).config_with()


@pytest.mark.parametrize("name", ["./a", "/a/b", "~/a", "a/b/c", "runs/nope"])
def test_what_is_meant_as_a_path(name):
    assert looks_like_path(name)


@pytest.mark.parametrize("name", ["bert", "org/model", "runs"])
def test_what_may_be_the_hubs_name(name):
    assert not looks_like_path(name)
