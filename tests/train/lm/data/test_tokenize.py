from types import SimpleNamespace

import numpy as np
import pytest

from jlora.errors import JloraError
from tests.support.training.lm_data import CHAT, byte_tokenizer, chats, pairs, real_tokenizer, rows, texts
from train.lm.data.tokenize import tokenize_texts


def words(examples, tokenizer):
    return [tokenizer.convert_ids_to_tokens(row) for row in rows(examples)]


def test_texts_end_in_the_end_token_and_begin_as_the_tokenizer_begins_them():
    for first in (False, True):
        tokenizer = byte_tokenizer(first=first)
        examples = tokenize_texts(texts("ab", "", "c<end>"), tokenizer)
        start = ["<start>"] * first
        assert words(examples, tokenizer) == [[*start, "a", "b", "<end>"], [*start, "<end>"], [*start, "c", "<end>"]]
        assert rows(examples, examples.learn) == [[False] + [True] * (n - 1) for n in examples.lengths]
        assert (examples.ids.dtype, examples.learn.dtype, examples.offsets.dtype) == (np.int32, bool, np.int64)
        assert examples.prompts.tolist() == [0, 0, 0]


def test_a_text_that_begins_with_the_first_token_gets_no_second_one():
    tokenizer = byte_tokenizer(first=True)
    given = [("<start>ab", "c"), ("ab", "c"), ("<start>", "c"), ("<start><start>a", "c")]
    examples = tokenize_texts(pairs(*given), tokenizer)
    one = ["<start>", "a", "b", "c", "<end>"]
    assert words(examples, tokenizer) == [
        one,
        one,
        ["<start>", "c", "<end>"],
        ["<start>", "<start>", "a", "c", "<end>"],
    ]
    assert examples.prompts.tolist() == [3, 3, 1, 3]
    assert [sum(learn) for learn in rows(examples, examples.learn)] == [2, 2, 2, 2]
    plain = tokenize_texts(texts("<start>ab", "ab"), tokenizer)
    assert rows(plain)[0] == rows(plain)[1]
    assert not plain.learn[plain.offsets[:-1]].any()


def test_the_mask_of_pairs_is_that_of_trl():
    """TRL: the tokens of prompt + completion + eos, of which as many are masked as the prompt alone has."""
    tokenizer = real_tokenizer()
    given = [("What is 2 + 2?", " It is 4."), ("Q: why\nA:", " because\n\nof it 🙂"), ("", "x"), ("Short", "")]
    examples = tokenize_texts(pairs(*given), tokenizer)
    assert rows(examples) == [tokenizer(a + b + tokenizer.eos_token)["input_ids"] for a, b in given]
    for (prompt, _), ids, learn, start in zip(
        given, rows(examples), rows(examples, examples.learn), examples.prompts, strict=True
    ):
        masked = len(tokenizer(prompt)["input_ids"])
        expected = [False] * masked + [True] * (len(ids) - masked)
        assert learn == [False, *expected[1:]]  # nothing comes before the first
        assert start == masked
    assert examples.counts == (4, 0, 0, 0, 0, 0)


def test_pairs_may_be_learnt_whole_and_still_know_their_prompt():
    tokenizer = byte_tokenizer(first=True)
    for only, learn in ((True, "0001"), (False, "0111")):
        examples = tokenize_texts(pairs(("ab", ""), only=only), tokenizer)
        assert words(examples, tokenizer) == [["<start>", "a", "b", "<end>"]]
        assert rows(examples, examples.learn) == [[x == "1" for x in learn]]
        assert examples.prompts.tolist() == [3]


def test_a_token_of_prompt_and_completion_is_learnt_and_counted():
    tokenizer = byte_tokenizer(merges=[("Ġ", "y")])
    examples = tokenize_texts(pairs(("x: ", "yes"), ("x:", " yes")), tokenizer)
    assert words(examples, tokenizer) == [["x", ":", "Ġy", "e", "s", "<end>"]] * 2
    assert rows(examples, examples.learn) == [[False, False, True, True, True, True]] * 2
    assert examples.counts.straddling == 1
    assert examples.prompts.tolist() == [2, 2]


def test_chats_have_the_templates_tokens_and_no_others():
    tokenizer = byte_tokenizer(first=True)
    examples = tokenize_texts(chats(tokenizer, CHAT), tokenizer)
    expected = ["<start>", *"[user]Hi", "<end>", "Ċ", *"[assistant]Ho", "<end>", "Ċ"]
    assert words(examples, tokenizer) == [expected]
    assert examples.ids.tolist() == tokenizer.apply_chat_template(CHAT, return_dict=False)
    answer = len(expected) - 4
    assert np.flatnonzero(examples.learn).tolist() == [answer, answer + 1, answer + 2]
    assert examples.prompts.tolist() == [answer]


def test_the_end_token_is_learnt_where_it_is_the_padding_token_too():
    tokenizer = real_tokenizer()
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    two = [*CHAT, {"role": "user", "content": "How?"}, {"role": "assistant", "content": "So."}]
    examples = tokenize_texts(chats(tokenizer, two), tokenizer)
    assert tokenizer.convert_ids_to_tokens(examples.ids[examples.learn]) == [
        "Ho",
        "<|im_end|>",
        "So",
        ".",
        "<|im_end|>",
    ]
    whole = tokenize_texts(chats(tokenizer, two, only=False), tokenizer)
    assert whole.ids.tolist() == examples.ids.tolist()
    assert whole.learn.tolist() == [False] + [True] * (len(whole.ids) - 1)
    assert whole.prompts.tolist() == examples.prompts.tolist()


def test_many_texts_are_those_of_transformers():
    tokenizer = byte_tokenizer(first=True)
    many = [f"{i} é 🙂" * (i % 5) for i in range(1500)]
    examples = tokenize_texts(texts(*many), tokenizer)
    assert rows(examples) == [[*ids, tokenizer.eos_token_id] for ids in tokenizer(many)["input_ids"]]
    assert examples.counts.rows == 1500


def test_padding_and_limits_of_the_tokenizers_file_do_not_count():
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.enable_padding(length=9)
    tokenizer.backend_tokenizer.enable_truncation(3)
    before = tokenizer.backend_tokenizer.to_str()
    assert tokenize_texts(texts("a", "abcdef"), tokenizer).lengths.tolist() == [2, 7]
    assert tokenizer.backend_tokenizer.to_str() == before


def test_tokenizers_that_cannot_serve_are_refused():
    with pytest.raises(JloraError, match=r"expected an end token \(eos_token\), which texts end in; found none"):
        tokenize_texts(texts("a"), byte_tokenizer(eos_token=None))
    slow = SimpleNamespace(is_fast=False, name_or_path="old", eos_token_id=1)
    with pytest.raises(JloraError, match=r"^old: expected a fast tokenizer; found a slow one"):
        tokenize_texts(texts("a"), slow)
