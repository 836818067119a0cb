"""Folders of safetensors files: found, refused, written whole or not at all."""

from __future__ import annotations

import json
import os
import pickle
import weakref

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jlora.errors import FileError, JloraError
from jlora.pretrained import folder as files
from jlora.pretrained.folder import INDEX_FILE, SINGLE_FILE, Planned, fetch, open_tensors, read_json, write_model
from tests.support.models import encoder_cases as cases

CONFIG = cases.tiny_config("bert")


def _planned(**values: np.ndarray) -> dict[str, Planned]:
    return {key: Planned(value.shape, lambda value=value: value) for key, value in values.items()}


def _write(folder, *, dtype="float32", max_shard_bytes=10**9, **values):
    write_model(folder, _planned(**values), [CONFIG], dtype, max_shard_bytes)


A, B = np.arange(6, dtype=np.float32).reshape(2, 3), np.full((4,), 1 / 3, np.float32)


def test_what_was_written_is_opened_again(tmp_path):
    _write(tmp_path, a=A, b=B)
    tensors = open_tensors(tmp_path)
    assert {key: tensor.shape for key, tensor in tensors.items()} == {"a": (2, 3), "b": (4,)}
    np.testing.assert_array_equal(tensors["a"].read(np.float32), A)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", SINGLE_FILE]


def test_shards_and_their_index(tmp_path):
    _write(tmp_path, a=A, b=B, max_shard_bytes=24)
    assert not (tmp_path / SINGLE_FILE).exists()
    index = read_json(tmp_path / INDEX_FILE)
    assert index["metadata"]["total_size"] == A.nbytes + B.nbytes
    assert len(set(index["weight_map"].values())) == 2
    np.testing.assert_array_equal(open_tensors(tmp_path)["b"].read(np.float32), B)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_file_is_the_one_that_safetensors_writes(dtype, tmp_path):
    values = {"b": B, "a": A, "scalar": np.array(3, np.float32), "é": np.ones((3, 1, 2), np.float32)}
    _write(tmp_path, **values, dtype=dtype)
    expected = {key: np.asarray(value.astype(files.DTYPES[dtype])) for key, value in values.items()}
    save_file(expected, tmp_path / "expected", metadata={"format": "pt"})
    assert (tmp_path / SINGLE_FILE).read_bytes() == (tmp_path / "expected").read_bytes()


def test_one_tensor_is_in_memory_at_a_time(tmp_path):
    alive = []

    def value():
        assert not [reference for reference in alive if reference() is not None]
        array = np.ones(1000, np.float32)
        alive.append(weakref.ref(array))
        return array

    write_model(tmp_path, {key: Planned((1000,), value) for key in "abc"}, [CONFIG], "float32", 10**9)
    assert len(alive) == 3


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_values_are_rounded_once_to_nearest(dtype, tmp_path):
    _write(tmp_path, b=B, dtype=dtype)
    found = load_file(tmp_path / SINGLE_FILE)["b"]
    assert found.dtype == files.DTYPES[dtype]
    np.testing.assert_array_equal(found, B.astype(files.DTYPES[dtype]))


def test_a_value_that_float16_cannot_hold_is_an_error_and_writes_nothing(tmp_path):
    with pytest.raises(JloraError, match=r"big: expected values that float16 can hold.*70000"):
        _write(tmp_path, big=np.float32([7e4]), dtype="float16")
    with pytest.raises(JloraError, match="dtype: expected one of float32, bfloat16, float16; found 'int8'"):
        _write(tmp_path, b=B, dtype="int8")
    assert not list(tmp_path.iterdir())


def test_old_weights_are_replaced_and_other_files_stay(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    _write(tmp_path, a=A, b=B, max_shard_bytes=24)
    _write(tmp_path, b=B)
    assert set(open_tensors(tmp_path)) == {"b"}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", SINGLE_FILE, "tokenizer.json"]


def test_a_crash_while_writing_leaves_the_old_model(tmp_path, monkeypatch):
    _write(tmp_path, a=A, b=B)
    write, calls = files._write_file, []

    def crash_at_the_second(*args, **kwargs):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        write(*args, **kwargs)

    monkeypatch.setattr(files, "_write_file", crash_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        _write(tmp_path, a=2 * A, b=B, max_shard_bytes=24)
    np.testing.assert_array_equal(open_tensors(tmp_path)["a"].read(np.float32), A)
    monkeypatch.undo()
    _write(tmp_path, a=2 * A, b=B)
    np.testing.assert_array_equal(open_tensors(tmp_path)["a"].read(np.float32), 2 * A)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", SINGLE_FILE]


def test_a_crash_while_files_come_into_place_leaves_no_weights(tmp_path, monkeypatch):
    _write(tmp_path, a=A, b=B)
    replace = os.replace

    def crash_at_the_index(source, target, **kwargs):
        if os.fspath(target).endswith(INDEX_FILE):
            raise KeyboardInterrupt
        replace(source, target, **kwargs)

    monkeypatch.setattr(os, "replace", crash_at_the_index)
    with pytest.raises(KeyboardInterrupt):
        _write(tmp_path, a=2 * A, b=B, max_shard_bytes=24)
    with pytest.raises(JloraError, match=r"found parts of the weights alone \(model-00001-of-00002"):
        open_tensors(tmp_path)


@pytest.mark.parametrize("name", ["./nowhere", "/no/where", "no/such/folder", "runs/nope"])
def test_a_folder_that_is_not_there(name):
    with pytest.raises(JloraError, match=f"{name}.*found no such folder"):
        fetch(name, None, ["config.json"])


@pytest.mark.parametrize("name", ["somebody/a-model", "not a valid id!"])
def test_a_hub_model_that_cannot_be_had(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(JloraError, match=f"{name}: expected a folder or a model on the Hugging Face hub"):
        fetch(name, None, ["config.json"])


def test_a_name_whose_first_folder_is_there_is_a_missing_folder(monkeypatch, tmp_path):
    (tmp_path / "models" / "bert").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    expected = r"^models/bret: .*found no such folder; nearest: bert in .*, and no model of that name on the hub$"
    with pytest.raises(FileError, match=expected):
        fetch("models/bret", None, ["config.json"])


def test_a_model_in_an_installed_package(monkeypatch, tmp_path):
    (tmp_path / "a_package_of_models" / "model").mkdir(parents=True)
    (tmp_path / "a_package_of_models" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    name = "package:a_package_of_models/model"
    assert fetch(name, None, ["config.json"]) == tmp_path / "a_package_of_models" / "model"
    (fetch(name, None, []) / "model.safetensors").touch()
    assert files.find_downloaded(name, None, ["*.safetensors"]) == fetch(name, None, [])
    with pytest.raises(FileError, match=r"mdoel: no such file or folder; nearest: model in"):
        fetch("package:a_package_of_models/mdoel", None, [])


def test_a_file_where_a_folder_is_expected(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(FileError, match=rf"found a file\. Give the folder that it is in: {tmp_path}$"):
        fetch(str(tmp_path / "model.safetensors"), None, [])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "^model: expected the folder of a model .*found an empty name"),
        ("https://huggingface.co/openai/gpt2/", "found an address. Give its name on the hub: openai/gpt2$"),
        ("http://example.org/gpt2", "found an address. Give its name on the hub, or download its folder"),
    ],
)
def test_a_name_that_is_none(name, message):
    with pytest.raises(FileError, match=message):
        fetch(name, None, [])


def test_the_folder_of_a_run_says_which_folder_in_it_is_meant(tmp_path):
    for name in ("config.yaml", "manifest.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(FileError, match=r"found no config\.json\. This is .* a run without merged/"):
        fetch(str(tmp_path), None, [])
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "config.json").write_text("{}")
    with pytest.raises(FileError, match=r"This is the folder of a run: give .*merged$"):
        fetch(str(tmp_path), None, [])


def test_the_hub_is_asked_for_the_files_that_are_read(monkeypatch, tmp_path):
    asked = {}

    def download(name, **options):
        asked.update(options, name=name)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert fetch("org/model", "v2", files.WEIGHT_PATTERNS) == tmp_path
    assert asked == {"name": "org/model", "revision": "v2", "allow_patterns": list(files.WEIGHT_PATTERNS)}


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "found none"), ("{", "expected JSON"), ("[]", "expected a JSON object, .*; found a list")],
)
def test_json_that_is_none(text, message, tmp_path):
    if text is not None:
        (tmp_path / "x.json").write_text(text)
    with pytest.raises(JloraError, match=f"x.json.*{message}"):
        read_json(tmp_path / "x.json")


class _Bomb:
    def __reduce__(self):
        return (os.abort, ())


def test_a_pickle_is_refused_and_never_opened(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(_Bomb()))
    with pytest.raises(JloraError, match=r"expected model.safetensors.*found pytorch_model.bin.*never opened"):
        open_tensors(tmp_path)


def test_no_weights_at_all(tmp_path):
    with pytest.raises(JloraError, match=r"expected model.safetensors or model.safetensors.index.json; found neither"):
        open_tensors(tmp_path)


@pytest.mark.parametrize("kept", [0, 5, 60, -1])
def test_a_truncated_file(kept, tmp_path):
    file = tmp_path / SINGLE_FILE
    save_file({"a": A}, file)
    whole = file.read_bytes()
    file.write_bytes(whole[:kept])
    size = "" if kept in (0, 5, 60) else f" of {len(whole)} bytes"
    with pytest.raises(JloraError, match=f"expected a whole safetensors file{size}; found {len(whole[:kept])} bytes"):
        open_tensors(tmp_path)


def test_an_index_that_does_not_hold(tmp_path):
    _write(tmp_path, a=A, b=B, max_shard_bytes=24)
    index = read_json(tmp_path / INDEX_FILE)

    def with_map(weight_map):
        (tmp_path / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))

    with_map(index["weight_map"] | {"c": index["weight_map"]["a"]})
    with pytest.raises(JloraError, match=f"{index['weight_map']['a']}: c: .*no such key"):
        open_tensors(tmp_path)
    with_map(index["weight_map"] | {"c": "model-3.safetensors"})
    with pytest.raises(JloraError, match=r"model-3.safetensors: expected by .*no such file"):
        open_tensors(tmp_path)
    with_map(["a"])
    with pytest.raises(JloraError, match="weight_map: expected an object"):
        open_tensors(tmp_path)
