"""The server's configuration is checked before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from jlora.errors import JloraError
from serve.config import read_serve_config


def _read(tmp_path, text, **changes):
    file = tmp_path / "serve.yaml"
    file.write_text(text)
    return read_serve_config(file, changes)


def test_the_shipped_configuration_is_valid():
    assert read_serve_config(Path("configs/serve.yaml"), {}).base_name == "smollm2"


@pytest.mark.parametrize(
    ("model", "name"),
    [("org/Model-1", "Model-1"), ("package:x/y/Some Model.Q4.gguf", "Some-Model.Q4"), ("runs/a/", "a"), ("..", "base")],
)
def test_the_base_is_called_by_the_last_part_of_its_name(tmp_path, model, name):
    assert _read(tmp_path, f"model: {model!r}").base_name == name


def test_changes_replace_keys(tmp_path):
    assert _read(tmp_path, "model: m\nport: 1", port=2).port == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slots: 3", "model: Field required"),
        ("model: m\nslot: 3", "slot: unknown key; known are model, name"),
        ("model: m\nslots: 0", "slots: .*greater than or equal to 1, found 0"),
        ("model: m\nadapters: {../x: y}", "adapters"),
        ("model: m\nhost: 0.0.0.0", "can be reached from other machines, which needs a `token`"),
        ("model: m\ntoken: short", "at least 8 characters"),
        ("- a", "expected `key: value` lines"),
        ("model: [", "not valid YAML"),
        ("model: m\nmodel: n", "the key 'model' is given twice"),
        ("model: m\n1: 2", "1: unknown key|1: Keys should be strings"),
    ],
)
def test_what_is_wrong_names_file_and_key(tmp_path, text, message):
    with pytest.raises(JloraError, match=message) as error:
        _read(tmp_path, text)
    assert "serve.yaml" in str(error.value)
    assert "short" not in str(error.value)  # a token is not repeated


def test_a_file_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(JloraError, match=r"nothing\.yaml"):
        read_serve_config(tmp_path / "nothing.yaml", {})
