import json
import shutil

import pytest

from jlora.errors import JloraError
from tests.support.training import tiny
from train.sources.model_files import base_of, load_tokenizer


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    """transformers would make one of the special tokens alone, to which every text is [UNK]."""
    for family in ("bert", "roberta"):
        folder = tmp_path / family
        shutil.copytree(tiny.model_folder(family), folder, ignore=shutil.ignore_patterns("tokenizer*"))
        with pytest.raises(JloraError, match="expected a tokenizer with the model"):
            load_tokenizer(str(folder))


@pytest.mark.parametrize("written", [None, "{}", '{"base_model_name_or_path": null}'])
def test_an_adapter_that_names_no_base_is_refused(written, tmp_path):
    if written is not None:
        (tmp_path / "adapter_config.json").write_text(written)
    with pytest.raises(JloraError, match=r"adapter_config\.json"):
        base_of(tmp_path)


def _named(folder, name):
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": name}))
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "/root/autodl-tmp/models/llama",
        "./checkpoints/base",
        "~/models/llama",
        r"C:\\Users\\me\\llama",
        "D:/models/llama",
        "models/llama/3",
        "/" + "a" * 100_000,
    ],
)
def test_a_base_on_another_machine_is_said_with_the_way_out(name, tmp_path):
    with pytest.raises(JloraError, match=r"base_model_name_or_path: expected .*; found .* Give the base with --base"):
        base_of(_named(tmp_path, name))


def test_a_base_that_could_be_there_is_taken(tmp_path):
    for name in ("org/model", "model", str(tmp_path)):
        assert base_of(_named(tmp_path, name)) == name


def test_an_adapter_does_not_choose_what_is_installed(tmp_path):
    with pytest.raises(JloraError, match=r"found 'package:evil/x'\. Give the base with --base") as caught:
        base_of(_named(tmp_path, "package:evil/x"))
    assert "pip" not in str(caught.value)


def test_what_an_adapter_calls_its_base_cannot_act_on_a_terminal(tmp_path):
    with pytest.raises(JloraError, match=r"found '/\\x1b\[2J'"):
        base_of(_named(tmp_path, "/\x1b[2J"))
