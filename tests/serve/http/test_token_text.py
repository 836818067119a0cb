"""The text of single tokens, with tokenizers of both kinds."""

from types import SimpleNamespace

from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from serve.engine.requests import Token
from serve.http.answers import Piece
from serve.http.routes.completions import _CompletionWriter
from serve.http.token_text import token_text
from tests.support.serve.fake_engine import TOKENIZER

VOCABULARY = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "▁a", "▁the", "▁sea"]


def _sentencepiece():
    """A tokenizer as Llama 2 has it: words begin with ▁, which the decoder strips from the first one."""
    numbers = {text: number for number, text in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.BPE(numbers, [("▁", "a")], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def test_a_word_keeps_the_space_before_it():
    tokenizer = _sentencepiece()
    assert token_text(tokenizer, VOCABULARY.index("▁sea")) == " sea"
    assert token_text(tokenizer, VOCABULARY.index("a")) == "a"
    assert token_text(tokenizer, VOCABULARY.index("<0xE2>")) == "\ufffd"
    assert token_text(TOKENIZER, TOKENIZER.encode("x")[0]) == "x"


def test_tokens_and_offsets_are_those_of_the_text():
    tokenizer, byte = _sentencepiece(), VOCABULARY.index("<0xE2>")
    tops = ((byte, -1.0), (byte + 1, -2.0))
    the, sea = (Token(VOCABULARY.index(word), -0.5) for word in ("▁the", "▁sea"))
    parts = tuple(Token(VOCABULARY.index(f"<0x{part:02X}>"), -0.5, tops) for part in "☕".encode())
    body = SimpleNamespace(logprobs=2, model="m")
    writer = _CompletionWriter(body, tokenizer)
    pieces = [Piece(0, " the", (the,)), Piece(0, " sea", (sea,)), Piece(0, "☕", parts), Piece(0, " the", (the,))]
    found = writer.whole([(pieces, "stop")])["choices"][0]["logprobs"]
    assert found["tokens"] == [" the", " sea", *["\ufffd"] * 3, " the"]
    assert found["text_offset"] == [0, 4, 8, 8, 8, 9]
    assert found["top_logprobs"][2] == {"\ufffd": -1.0}
