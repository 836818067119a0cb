"""Tokenizers out of GGUF files: the ids that transformers' own conversion and the trained tokenizer give."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from jlora.errors import JloraError
from jlora.gguf.model import gguf_tokenizer
from tests.support.models import gguf_cases

ROOT = Path(__file__).parents[3]
TEXTS = [
    "Hello, I'm 1234567 years   old.\n\n  ok ",
    " a leading space, and two  more",
    "WE'LL see: it's x=[1,2]; naïve café, e\u0301, 日本語 🙂",
    "<s>turn</s> <|user|>\nhi</s>",
    "",
]


def _trained(tokenizer, **options):
    """(tokens by id, merges) of a BPE trained on the README."""
    lines = (ROOT / "README.md").read_text().splitlines()
    special = ["<unk>", "<s>", "</s>", "<|user|>"]
    tokenizer.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=700, special_tokens=special, **options))
    model = json.loads(tokenizer.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].get), [tuple(merge) for merge in model["merges"]]


@pytest.fixture(scope="module")
def byte_level():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return _trained(tokenizer, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())


@pytest.fixture(scope="module")
def sentencepiece():
    """The tokenizer itself beside its tokens and merges, with Llama 2's normalizer and bytes for what is unknown."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokens, merges = _trained(tokenizer)
    tokens = tokens[:4] + [f"<0x{byte:02X}>" for byte in range(256)] + tokens[4:]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    whole = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    whole.normalizer = tokenizer.normalizer
    whole.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    whole.add_special_tokens(["<unk>", "<s>", "</s>"])
    whole.add_tokens([AddedToken("<|user|>", normalized=False)])
    return whole, tokens, merges


def _write(path, kind, before, tokens, add=lambda writer: None):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    for key in ("block_count", "embedding_length", "attention.head_count"):
        writer.add_uint32(f"llama.{key}", 1)
    writer.add_tokenizer_model(kind)
    if before is not None:
        writer.add_tokenizer_pre(before)
    writer.add_token_list(tokens)
    types = {"<unk>": 2, "<s>": 3, "</s>": 3, "<|user|>": 4}
    writer.add_token_types([types.get(token, 6 if token.startswith("<0x") else 1) for token in tokens])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    add(writer)
    gguf_cases.close(writer)
    return path


def _write_byte_level(path, before, trained, add=lambda writer: None):
    tokens, merges = trained

    def add_merges(writer):
        writer.add_token_merges([" ".join(merge) for merge in merges])
        add(writer)

    return _write(path, "gpt2", before, tokens, add_merges)


def _write_sentencepiece(path, trained, add=lambda writer: None):
    _, tokens, merges = trained
    ranks = {"".join(merge): rank for rank, merge in enumerate(merges)}

    def add_scores(writer):
        writer.add_token_scores([-float(ranks.get(token, 0)) for token in tokens])
        add(writer)

    return _write(path, "llama", None, tokens, add_scores)


@pytest.mark.parametrize("before", ["gpt-2", "llama-bpe", "qwen2"])
def test_byte_level_ids_are_those_of_transformers_conversion(before, byte_level, tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    file = _write_byte_level(tmp_path / "x.gguf", before, byte_level)
    oracle, found = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="x.gguf"), gguf_tokenizer(file)
    for text in TEXTS:
        composed = text.replace("e\u0301", "é") if before == "qwen2" else text  # their conversion leaves Qwen's NFC out
        ids = found(text, add_special_tokens=False)["input_ids"]
        assert ids == oracle(composed, add_special_tokens=False)["input_ids"], text
        assert found.decode(ids) == composed
    assert (found.bos_token, found.eos_token, found.model_max_length) == ("<s>", "</s>", 64)


def test_digits_stand_alone_or_in_threes(byte_level, tmp_path):
    counts = {}
    for before in ("smollm", "llama-bpe"):
        tokenizer = gguf_tokenizer(_write_byte_level(tmp_path / "x.gguf", before, byte_level)).backend_tokenizer
        counts[before] = [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str("1234567")]
    assert counts == {"smollm": list("1234567"), "llama-bpe": ["123", "456", "7"]}


def test_llama_3s_whole_tokens_are_never_taken_apart(tmp_path):
    tokens = ["<unk>", "<s>", "</s>", "<|user|>", "a", "b", "c", "ab", "abc"]
    trained = tokens, [("a", "b")]
    ids = {
        before: gguf_tokenizer(_write_byte_level(tmp_path / "x.gguf", before, trained))(
            "abc", add_special_tokens=False
        )["input_ids"]
        for before in ("llama-bpe", "gpt-2")
    }
    assert ids == {"llama-bpe": [8], "gpt-2": [7, 6]}


def test_bos_is_put_first_where_llama_cpp_does(byte_level, sentencepiece, tmp_path):
    path = tmp_path / "x.gguf"

    def starts(file):
        return gguf_tokenizer(file)("ok")["input_ids"][0] == 1

    for before, expected in {"llama-bpe": True, "qwen2": False, "smollm": False}.items():
        assert starts(_write_byte_level(path, before, byte_level)) == expected
        flag = lambda writer, expected=expected: writer.add_add_bos_token(not expected)  # noqa: E731
        assert starts(_write_byte_level(path, before, byte_level, flag)) != expected
    assert starts(_write_sentencepiece(path, sentencepiece))
    both = gguf_tokenizer(_write_sentencepiece(path, sentencepiece, lambda writer: writer.add_add_eos_token(True)))
    ids = both("ok")["input_ids"]
    assert (ids[0], ids[-1]) == (1, 2)


def test_sentencepiece_ids_are_those_of_the_tokenizer_whose_scores_were_written(sentencepiece, tmp_path):
    oracle, _, _ = sentencepiece
    found = gguf_tokenizer(_write_sentencepiece(tmp_path / "x.gguf", sentencepiece))
    for text in [*TEXTS, *(ROOT / "README.md").read_text().splitlines()]:
        ids = found(text, add_special_tokens=False)["input_ids"]
        assert ids == oracle.encode(text).ids, text
        assert found.decode(ids) == oracle.decode(ids, skip_special_tokens=False)


def test_sentencepiece_ids_are_those_of_transformers_conversion(sentencepiece, tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    found = gguf_tokenizer(_write_sentencepiece(tmp_path / "x.gguf", sentencepiece))
    oracle = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="x.gguf")
    for text in filter(None, map(str.strip, (ROOT / "README.md").read_text().splitlines())):
        assert found(text)["input_ids"] == oracle(text)["input_ids"], text


def test_sentencepiece_without_a_space_in_front(sentencepiece, tmp_path):
    plain = _write_sentencepiece(tmp_path / "x.gguf", sentencepiece, lambda writer: writer.add_add_space_prefix(False))
    tokenizer = gguf_tokenizer(plain)
    assert tokenizer.tokenize("a b")[0] == "a"
    for text in TEXTS:
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_chat_templates(byte_level, tmp_path):
    def template(add):
        return gguf_tokenizer(_write_byte_level(tmp_path / "x.gguf", "smollm", byte_level, add)).chat_template

    assert template(lambda writer: None) is None
    assert template(lambda writer: writer.add_chat_template("{{ x }}")) == "{{ x }}"
    several = [{"name": "default", "template": "{{ x }}"}, {"name": "tool_use", "template": "{{ y }}"}]
    assert template(lambda writer: writer.add_chat_template(several)) == {"default": "{{ x }}", "tool_use": "{{ y }}"}
    with pytest.raises(JloraError, match="the chat template 'default' is not text but 5"):
        template(lambda writer: writer.add_uint32("tokenizer.chat_template", 5))


@pytest.mark.parametrize(("kind", "before"), [("gpt2", "tekken"), ("gpt2", None), ("bert", None)])
def test_another_tokenizer_is_an_error(kind, before, byte_level, tmp_path):
    lists = lambda writer: (writer.add_token_scores([0.0] * 700), writer.add_token_merges(["a b"]))  # noqa: E731
    file = _write(tmp_path / "x.gguf", kind, before, byte_level[0], lists)
    with pytest.raises(
        JloraError, match=rf"tokenizer\.ggml: expected the model gpt2 with one of gpt-2, llama-bpe.*found '{kind}'"
    ):
        gguf_tokenizer(file)


@pytest.mark.parametrize(("kind", "missing"), [("gpt2", "merges"), ("llama", "scores")])
def test_a_list_that_is_missing_is_an_error(kind, missing, byte_level, tmp_path):
    file = _write(tmp_path / "x.gguf", kind, "gpt-2", byte_level[0])
    with pytest.raises(JloraError, match=rf"tokenizer\.ggml\.{missing}: expected a list; found no such key"):
        gguf_tokenizer(file)
