"""What of a folder reaches transformers: the tokenizer that it would load itself, and no other file of the user's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from jlora.errors import JloraError
from jlora.pretrained.source import PretrainedSource
from jlora.pretrained.tokenizer import read_tokenizer
from tests.support.training import tiny

SECRET = "swordfish"
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


def _say(file: Path, **entries) -> None:
    stored = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(stored | entries))


def _bert(folder: Path, **config) -> Path:
    """BERT's own files: no tokenizer.json."""
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "B", "##b"]))
    _say(folder / "tokenizer_config.json", **({"tokenizer_class": "BertTokenizer"} | config))
    return folder


def _gpt2(folder: Path, **config) -> Path:
    folder.mkdir()
    _say(folder / "vocab.json", **{token: i for i, token in enumerate(["<|endoftext|>", "a", "b", "ab", "Ġ", "Ċ"])})
    (folder / "merges.txt").write_text("#version: 0.2\na b\n")
    _say(folder / "tokenizer_config.json", **({"tokenizer_class": "GPT2Tokenizer"} | config))
    _say(folder / "special_tokens_map.json", pad_token={"content": "<pad>", "lstrip": True}, eos_token="<|endoftext|>")
    return folder


def _fast(folder: Path, **config) -> Path:
    """tokenizer.json, with tokens added and several chat templates."""
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "b": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", extra_special_tokens=["<x>", "<y>"])
    made.add_tokens(["new"])
    made.chat_template = {"default": TEMPLATE, "tool_use": TEMPLATE + "!"}
    made.save_pretrained(folder)
    _say(folder / "tokenizer_config.json", **config)
    return folder


def _llama(folder: Path, **config) -> Path:
    """A class that builds its parts anew from tokenizer.json, and config.json that says which."""
    vocabulary = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", "▁", "a", "b", "▁a"])}
    Tokenizer(models.BPE(vocabulary, [("▁", "a")])).save(str(_made(folder) / "tokenizer.json"))
    _say(folder / "tokenizer_config.json", **({"tokenizer_class": "LlamaTokenizer", "legacy": False} | config))
    _say(folder / "config.json", model_type="llama", num_hidden_layers=10**10, transformers_version="4.40.0")
    return folder


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


SETTINGS = {
    "bert": (_bert, {}),
    "bert, cased": (_bert, {"do_lower_case": False, "strip_accents": None, "never_split": ["a"], "max_len": 512}),
    "gpt2": (_gpt2, {"add_prefix_space": True, "errors": "replace", "model_max_length": 10**30}),
    "fast": (_fast, {"padding_side": "left", "model_max_length": 12, "image_token": "<image>"}),
    "fast, older": (_fast, {"chat_template": TEMPLATE, "additional_special_tokens": ["<z>"], "tokenizer_file": "/x"}),
    "llama": (_llama, {"add_bos_token": True, "sp_model_kwargs": {}, "use_default_system_prompt": False}),
    "named by others": (_fast, {"name_or_path": "me/it", "device_map": "auto", "special_tokens_map_file": "/root/x"}),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_it_is_the_tokenizer_that_transformers_loads(name, tmp_path):
    write, config = SETTINGS[name]
    folder = write(tmp_path / "model", **config)
    ours = PretrainedSource(folder).tokenizer
    if (folder / "config.json").exists():
        _say(folder / "config.json", num_hidden_layers=2)  # ten billion are for us alone
    theirs = AutoTokenizer.from_pretrained(folder)
    assert type(ours) is type(theirs)
    assert ours.backend_tokenizer.to_str() == theirs.backend_tokenizer.to_str()
    assert ours.special_tokens_map == theirs.special_tokens_map
    for key in ("chat_template", "padding_side", "truncation_side", "model_max_length", "model_input_names"):
        assert getattr(ours, key) == getattr(theirs, key), key
    assert ours.name_or_path == str(folder)
    ours.save_pretrained(tmp_path / "saved")
    again = PretrainedSource(tmp_path / "saved").tokenizer
    assert again("a b new ab")["input_ids"] == ours("a b new ab")["input_ids"]


FILES = (
    "vocab_file", "merges_file", "tokenizer_file", "added_tokens_file", "special_tokens_map_file",
    "chat_template_file", "chat_template_x", "spm_file", "source_spm", "emoji_file", "entity_vocab", "vocab", "merges",
    "gguf_file", "init_inputs", "tokenizer_object", "sp_model_kwargs", "fast_tokenizer_files", "normalizer_file",
)  # fmt: skip


@pytest.mark.parametrize("key", FILES)
@pytest.mark.parametrize("write", [_bert, _gpt2, _fast, _llama])
def test_no_key_opens_another_file(write, key, tmp_path):
    """The user's own files would stand in the tokenizer, and then in what a run uploads."""
    secret = tmp_path / "tokenizer.0.json"
    secret.write_text(json.dumps({SECRET: 0, "a": 1}) + f"\n{SECRET} a\n")
    folder = write(tmp_path / "model")
    for value in (str(secret), [str(secret)], {"model_file": str(secret)}, "../tokenizer.0.json"):
        assert SECRET not in _all_that_is_read(folder, "tokenizer_config.json", {key: value})
    assert SECRET not in _all_that_is_read(folder, "special_tokens_map.json", {key: str(secret)})


def _all_that_is_read(folder: Path, file: str, entries: dict) -> str:
    """What the tokenizer knows, or why it was refused, with these entries in the file."""
    before = (folder / file).read_text() if (folder / file).exists() else "{}"
    (folder / file).write_text(json.dumps(json.loads(before) | entries))
    try:
        loaded = PretrainedSource(folder).tokenizer
    except JloraError as error:
        return str(error)
    finally:
        (folder / file).write_text(before)
    return f"{loaded.backend_tokenizer.to_str()} {loaded.chat_template} {loaded.init_kwargs}"


WRONG = {
    "chat_template": 5,
    "eos_token": 5,
    "pad_token": {"content": 5},
    "padding_side": "up",
    "model_max_length": "long",
    "model_input_names": "input_ids",
    "added_tokens_decoder": {"3": "a"},
    "extra_special_tokens": [3],
    "fast_tokenizer_files": ["../tokenizer.1.json"],
    "init_inputs": ["vocab.txt"],
    "auto_map": {"AutoTokenizer": ["mine.Tokenizer", None]},
    "tokenizer_class": "pipeline",
}


@pytest.mark.parametrize("key", WRONG)
def test_a_key_of_another_type_is_refused(key, tmp_path):
    folder = _bert(tmp_path / "model", **{key: WRONG[key]})
    with pytest.raises(JloraError, match=rf"tokenizer_config\.json: {key}: expected .*; found"):
        read_tokenizer(folder, str(folder))


@pytest.mark.parametrize("file", ["special_tokens_map.json", "added_tokens.json", "tokenizer.json", "vocab.json"])
def test_a_key_twice_in_any_json(file, tmp_path):
    folder = _gpt2(tmp_path / "model")
    (folder / file).write_text('{"a": 1, "\\u0061": 2}')
    with pytest.raises(JloraError, match=rf"{file}: expected JSON; found: the key 'a' twice"):
        read_tokenizer(folder, str(folder))


@pytest.mark.parametrize("file", ["vocab.txt", "chat_template.jinja", "tokenizer_config.json", "tokenizer.json"])
def test_links_out_of_the_folder_are_refused(file, tmp_path):
    folder = _bert(tmp_path / "model")
    (tmp_path / "secret").write_text('{"a": 1}')
    (folder / file).unlink(missing_ok=True)
    (folder / file).symlink_to(tmp_path / "secret")
    with pytest.raises(JloraError, match=rf"{file}: expected a file inside .*model; found a link to .*secret"):
        read_tokenizer(folder, str(folder))


def test_a_folder_of_links_out_of_it_is_refused(tmp_path):
    folder = _bert(tmp_path / "model")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x.jinja").write_text(SECRET)
    (folder / "additional_chat_templates").symlink_to(tmp_path / "other")
    with pytest.raises(JloraError, match=r"x\.jinja: expected a file inside .*model; found a link"):
        read_tokenizer(folder, str(folder))


@pytest.mark.parametrize("file", ["vocab.txt", "chat_template.jinja"])
def test_what_is_no_text_is_named(file, tmp_path):
    folder = _bert(tmp_path / "model")
    (folder / file).write_bytes(b"\xff\xfe")
    with pytest.raises(JloraError, match=rf"{file}: expected text in UTF-8; found"):
        read_tokenizer(folder, str(folder))


def test_a_folder_as_a_run_leaves_it(tmp_path):
    folder = shutil.copytree(tiny.model_folder("bert"), tmp_path / "model")
    ours, theirs = PretrainedSource(folder).tokenizer, AutoTokenizer.from_pretrained(folder)
    assert ours("the film")["input_ids"] == theirs("the film")["input_ids"]
