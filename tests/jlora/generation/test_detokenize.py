from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from jlora.generation.detokenize import StopMatcher, decode_stream, until
from tests.support.training import lm_data

_TEXTS = ["Paris.", "naïve café ☕ 🧑‍🚀 — 東京", " leading and\n\n  double spaces ", "<end>"]


@pytest.mark.parametrize("text", _TEXTS)
def test_pieces_are_whole_characters_and_together_the_text(text):
    tokenizer = lm_data.byte_tokenizer(merges=[("Ã", "¯"), ("Ġ", "Ġ")])
    ids = tokenizer(text)["input_ids"]
    pieces = list(decode_stream(tokenizer, ids))
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True)
    assert len(ids) > len(pieces) or text.isascii()
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_character_that_stays_unfinished_is_left_out():
    tokenizer = lm_data.byte_tokenizer()
    ids = tokenizer("a ☕")["input_ids"]
    assert "".join(decode_stream(tokenizer, ids[:-1])) == "a "
    wrong = [ids[-1], *tokenizer("b")["input_ids"]]  # no character begins so, and the text goes on
    assert "".join(decode_stream(tokenizer, wrong)) == "\ufffdb"


@pytest.fixture(scope="module")
def words():
    """Words as SentencePiece has them, whose decoder takes the first space away."""
    fast = Tokenizer(
        models.Unigram([("<unk>", 0.0), ("▁The", -1.0), ("▁capital", -1.0), ("▁is", -1.0), ("s", -2.0)], 0)
    )
    fast.pre_tokenizer, fast.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=fast, unk_token="<unk>")


def test_spaces_between_the_prompt_and_its_completion_are_kept(words):
    prompt, answer = words("The capital")["input_ids"], words("is capital")["input_ids"]
    assert "".join(decode_stream(words, answer, prompt)) == " is capital"
    assert "".join(decode_stream(words, answer)) == "is capital"
    assert "".join(decode_stream(words, [words.convert_tokens_to_ids("s")], prompt)) == "s"


def test_many_tokens_before_do_not_come_again(words):
    prompt = words("The capital " * 20)["input_ids"]
    assert "".join(decode_stream(words, words("is")["input_ids"], prompt)) == " is"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize(
    ("stops", "expected"),
    [
        ([], "one two. Three</s> four"),
        ([". "], "one two"),
        (["</s>", "our"], "one two. Three"),
        (["three", "ff"], "one two. Three</s> four"),
        (["o"], ""),
        (["four!", " two.T", "ee</"], "one two. Thr"),
    ],
)
def test_text_ends_before_the_first_stop_string_wherever_pieces_end(size, stops, expected):
    text = "one two. Three</s> four"
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    assert "".join(until(pieces, stops)) == expected


def test_nothing_more_is_asked_for_after_a_stop():
    pieces = iter(["a", "b", "c"])
    assert list(until(pieces, ["b"])) == ["a", ""]
    assert next(pieces) == "c"


def test_what_cannot_become_a_stop_is_shown_at_once():
    shown = until(iter(["ab", "c", "d"]), ["bx"])
    assert [next(shown) for _ in range(3)] == ["a", "bc", "d"]


def test_a_long_text_is_decoded_by_its_end_and_is_the_same_text():
    tokenizer = lm_data.byte_tokenizer(merges=[("Ã", "¯"), ("Ġ", "Ġ")])
    decoded = []
    tokenizer_decode = tokenizer.decode
    tokenizer.decode = lambda ids, **options: decoded.append(len(ids)) or tokenizer_decode(ids, **options)
    text = "naïve café ☕ 🧑‍🚀 — 東京   and  so on <end> " * 12
    ids = tokenizer(text)["input_ids"]
    assert "".join(decode_stream(tokenizer, ids)) == tokenizer_decode(ids, skip_special_tokens=True)
    assert len(ids) > 500
    assert max(decoded) < 80


@pytest.mark.parametrize("seed", range(5))
def test_any_ids_have_the_text_that_the_tokenizer_gives_them_at_once(seed):
    tokenizer = lm_data.real_tokenizer()
    ids = np.random.default_rng(seed).integers(0, len(tokenizer), 400).tolist()
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert "".join(decode_stream(tokenizer, ids)).rstrip("\ufffd") == text.rstrip("\ufffd")


def test_words_far_into_a_text_keep_their_spaces(words):
    ids = words("The capital is " * 60)["input_ids"]
    assert "".join(decode_stream(words, ids)) == words.decode(ids, skip_special_tokens=True)


def test_a_matcher_says_that_it_stopped_and_gives_back_what_it_held():
    matcher = StopMatcher(["xyz"])
    assert [matcher.push("ax"), matcher.push("y")] == ["a", ""]
    assert not matcher.is_stopped
    assert matcher.finish() == "xy"
    assert [matcher.push("bxy"), matcher.push("z!")] == ["b", ""]
    assert matcher.is_stopped
    assert matcher.finish() == ""
