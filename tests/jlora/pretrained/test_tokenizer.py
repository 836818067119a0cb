from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest

from jlora.errors import JloraError
from jlora.pretrained.tokenizer import pad_id, read_tokenizer
from tests.support.training import tiny


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    """transformers would make one of the special tokens alone, to which every text is [UNK]."""
    for family in ("bert", "roberta"):
        folder = tmp_path / family
        shutil.copytree(tiny.model_folder(family), folder, ignore=shutil.ignore_patterns("tokenizer*"))
        with pytest.raises(JloraError, match="expected a tokenizer with the model"):
            read_tokenizer(folder, str(folder))


@pytest.mark.parametrize(("pad", "end", "expected"), [(3, 1, 3), (0, 1, 0), (None, 1, 1), (None, None, 0)])
def test_rows_are_padded_with_some_token(pad, end, expected):
    assert pad_id(SimpleNamespace(pad_token_id=pad, eos_token_id=end)) == expected


def test_a_folder_without_a_vocabulary_says_where_to_get_one(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(
        JloraError, match=r"found none\. It has adapter_config\.json: this is an adapter; give its base"
    ):
        read_tokenizer(tmp_path, "a")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(JloraError, match=r"^m: .* found none\. Copy the tokenizer's files .*save_pretrained\('"):
        read_tokenizer(tmp_path, "m")
