import datetime
import re
from pathlib import Path

import numpy as np
import pytest

from jlora.errors import JloraError
from tests.support.training.lm_data import (
    CHAT,
    SHARED,
    TAGGED,
    byte_tokenizer,
    examples,
    jsonl,
    real_tokenizer,
    section,
)
from train.lm.data.load import load_examples, prompts
from train.lm.data.packing import Packed

PAGE = (Path(__file__).parents[4] / "docs" / "data.md").read_text(encoding="utf-8")
DOCUMENTED = re.findall(r"### `(\w+)`\n\n```json\n(.*?)```", PAGE, re.DOTALL)
NOVEL = SHARED / "gutenberg" / "sherlock_holmes.txt"


def words(found, tokenizer):
    return [tokenizer.decode(row) for row in np.split(found.ids, found.offsets[1:-1])]


@pytest.mark.parametrize(("form", "rows"), [pytest.param(*found, id=found[0]) for found in DOCUMENTED])
def test_the_rows_of_the_page_are_read_as_it_says(form, rows, tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text(rows)
    data = load_examples(section(train=str(file), validation=str(file)), byte_tokenizer(), 0)
    assert f"data.format={form} " in data.notes[0]
    assert len(data.splits["train"]) == 3
    assert rows.count("\n") == 3


def test_the_page_shows_every_format():
    assert {form for form, _ in DOCUMENTED} == {"messages", "sharegpt", "prompt_completion", "alpaca", "text"}


def test_rows_are_held_out_then_sampled_and_both_are_said(tmp_path):
    tokenizer = byte_tokenizer()
    file = jsonl(tmp_path / "a.jsonl", [{"text": f"row {i}"} for i in range(40)])
    config = section(train=file, validation_fraction=0.25, max_rows=12)
    data = load_examples(config, tokenizer, seed=3)
    splits = [data.splits[name] for name in ("train", "validation")]
    train, validation = (set(words(split, tokenizer)) for split in splits)
    assert (len(train), len(validation), len(train & validation)) == (12, 10, 0)
    assert data.notes == (
        f"train: {file} is read as data.format=text (columns: text)",
        "no validation data: 10 of 40 training rows held out (data.validation_fraction=0.25, seed 3)",
        "train: a sample of 12 of 30 rows (data.max_rows, seed 3)",
        f"train: 12 examples of {len(splits[0].ids)} tokens, {splits[0].learn.sum()} of them learnt",
        f"validation: 10 examples of {len(splits[1].ids)} tokens, {splits[1].learn.sum()} of them learnt",
    )
    again = load_examples(config, tokenizer, seed=3)
    assert again.notes == data.notes
    assert all(np.array_equal(again.splits[name].ids, data.splits[name].ids) for name in data.splits)
    assert set(words(load_examples(config, tokenizer, seed=4).splits["train"], tokenizer)) != train


def test_of_few_long_texts_the_ends_are_held_out(tmp_path):
    tokenizer = byte_tokenizer()
    texts = [f"{name}\n" * 200 for name in ("one", "two")]
    for name, text in zip("ab", texts, strict=True):
        (tmp_path / f"{name}.txt").write_text(text)
    files = [str(tmp_path / f"{name}.txt") for name in "ab"]
    data = load_examples(section(train=files, max_length=64), tokenizer, 0)
    learnt = {name: tokenizer.decode(split.ids[split.learn]) for name, split in data.splits.items()}
    assert learnt["train"] == f"{texts[0][1:720]}<end>{texts[1][1:720]}<end>"
    assert learnt["validation"] == f"{texts[0][721:]}<end>{texts[1][721:]}<end>"
    assert "no validation data: the last 10% of each of 2 texts held out (data.validation_fraction=0.1)" in data.notes
    assert "train: 2 of 2 rows are longer than data.max_length=64 tokens and were split" in data.notes


@pytest.mark.parametrize("packing", [False, True])
def test_packing_is_a_matter_of_the_rows_alone(packing, tmp_path):
    file = jsonl(tmp_path / "a.jsonl", [{"text": "word " * (i % 7 + 1)} for i in range(30)])
    data = load_examples(section(train=file, validation=file, max_length=40, packing=packing), byte_tokenizer(), 0)
    assert [len(split) for split in data.splits.values()] == [30, 30]
    for name, rows in data.rows.items():
        assert isinstance(rows, Packed) == packing
        assert (rows is data.splits[name]) != packing
        assert sorted(rows.ids) == sorted(data.splits[name].ids)
    assert any("examples packed into" in note and "% of them padding" in note for note in data.notes) == packing


def test_what_is_left_out_is_counted(tmp_path):
    rows = [("abcdefgh", "x"), ("ab", "cdefghij"), ("a", "b"), ("", "")]
    file = jsonl(tmp_path / "a.jsonl", [{"prompt": prompt, "completion": completion} for prompt, completion in rows])
    tokenizer = byte_tokenizer()
    data = load_examples(section(train=file, validation=file, max_length=6), tokenizer, 0)
    assert words(data.splits["train"], tokenizer) == ["abcdef", "ab<end>"]
    assert data.notes[2:5] == (
        "train: 2 of 4 rows are longer than data.max_length=6 tokens and were cut",
        "train: 2 examples left out, as no token of them is learnt",
        "train: 2 examples of 9 tokens, 6 of them learnt",
    )
    dropped = load_examples(section(train=file, validation=file, max_length=6, too_long="drop"), tokenizer, 0)
    assert "train: 2 of 4 rows are longer than data.max_length=6 tokens and were dropped" in dropped.notes
    with pytest.raises(
        JloraError, match=r"a\.jsonl, data row 1: expected at most data\.max_length=6 tokens; found 10 "
    ):
        load_examples(section(train=file, validation=file, max_length=6, too_long="error"), tokenizer, 0)


def test_a_token_of_prompt_and_completion_is_said(tmp_path):
    file = jsonl(tmp_path / "a.jsonl", [{"prompt": "x: ", "completion": "yes"}, {"prompt": "x:", "completion": " yes"}])
    tokenizer = byte_tokenizer(merges=[("Ġ", "y")])
    notes = load_examples(section(train=file, validation=file), tokenizer, 0).notes
    assert any(
        "train: 1 of 2 rows have a token of both prompt and completion, which is learnt" in note for note in notes
    )


def test_a_split_without_anything_to_learn_is_refused(tmp_path):
    file = jsonl(tmp_path / "a.jsonl", [{"prompt": "a long prompt", "completion": "x"}] * 3)
    nothing = r"^data\.train \(.*a\.jsonl\): nothing is left to learn in 3 rows: "
    filled = r"each prompt alone fills data\.max_length=8 tokens, .* \(the longest row has 15 tokens\), or shorten"
    with pytest.raises(JloraError, match=nothing + filled):
        load_examples(section(train=file, validation=file, max_length=8), byte_tokenizer(), 0)
    with pytest.raises(JloraError, match=nothing + r"each is longer than data\.max_length=8 tokens and was dropped"):
        load_examples(section(train=file, validation=file, max_length=8, too_long="drop"), byte_tokenizer(), 0)


def test_a_split_of_empty_texts_is_refused(tmp_path):
    file = jsonl(tmp_path / "a.jsonl", [{"text": ""}] * 2)
    with pytest.raises(JloraError, match=r"in 2 rows: all texts are empty\. Check data\.text, now 'text'$"):
        load_examples(section(train=file, validation=file), byte_tokenizer(), 0)


def test_the_rows_length_is_one_that_the_tokenizer_knows(tmp_path):
    file = jsonl(tmp_path / "a.jsonl", [{"text": "a"}])
    with pytest.raises(JloraError, match=r"^data\.max_length=512: expected at most the tokenizer's 256 tokens"):
        load_examples(section(train=file, validation=file), byte_tokenizer(model_max_length=256), 0)


def test_the_config_may_bring_the_template(tmp_path):
    file = jsonl(tmp_path / "a.jsonl", [{"messages": CHAT}])
    (tmp_path / "chat.jinja").write_text(TAGGED)
    given = section(train=file, validation=file, completion_only_loss=True, chat_template=str(tmp_path / "chat.jinja"))
    tokenizer = byte_tokenizer(template=None)
    train = load_examples(given, tokenizer, 0).splits["train"]
    assert words(train, tokenizer) == ["[user]Hi<end>\n[assistant]Ho<end>\n"]
    assert tokenizer.decode(train.ids[train.learn]) == "Ho<end>"
    with pytest.raises(JloraError, match=r"expected a tokenizer with a chat template"):
        load_examples(section(train=file, validation=file), tokenizer, 0)


def test_the_clock_of_a_template_shows_the_day_that_is_given(tmp_path):
    file = jsonl(tmp_path / "a.jsonl", [{"messages": CHAT}])
    tokenizer = byte_tokenizer(template="{{ strftime_now('%d %b %Y') }} " + TAGGED)
    days = [datetime.date(2026, 11, 29), datetime.date(2026, 11, 30)]
    found = [load_examples(section(train=file, validation=file), tokenizer, 0, day).splits["train"] for day in days]
    assert [words(split, tokenizer)[0][:11] for split in found] == ["29 Nov 2026", "30 Nov 2026"]


def test_bad_rows_are_left_out_counted_and_named(tmp_path):
    bad = [{"messages": CHAT[1:]}] * 7
    file = jsonl(tmp_path / "a.jsonl", [{"messages": CHAT}, *bad, {"messages": CHAT}])
    data = load_examples(section(train=file, validation=file, skip_bad_rows=True), byte_tokenizer(), 0)
    assert len(data.splits["train"]) == 2
    note = next(note for note in data.notes if "left out" in note)
    assert note.startswith(
        f"train: 7 of 9 rows left out (data.skip_bad_rows):\n  {file}, data row 2, column 'messages'"
    )
    assert note.endswith("\n  and 2 more")
    assert note.count("\n") == 6


def test_keys_that_the_template_does_not_name_are_said(tmp_path):
    file = jsonl(tmp_path / "a.jsonl", [{"messages": [CHAT[0] | {"id": 1, "name": "Ann"}, CHAT[1]]}])
    notes = load_examples(section(train=file, validation=file), byte_tokenizer(), 0).notes
    assert f"train: {file}: not used, because the chat template does not name them: id, name" in notes


def test_prompts_end_where_the_first_answer_begins():
    found = prompts(examples(9, 4, 9, 2, prompts=[3, 4, 0, 0]), 10, prompt_tokens=5)
    assert [prompt.tolist() for prompt in found] == [[0, 1, 2], [13, 14, 15, 16, 17], [22]]
    assert found[0].dtype == np.int32


def test_prompts_are_spread_over_the_examples():
    many = examples(*[4] * 100)
    assert [prompt.tolist() for prompt in prompts(many, 4, 2)] == [[4 * i, 4 * i + 1] for i in (0, 25, 50, 75)]
    assert len(prompts(many, 1000, 2)) == 100
    assert prompts(many, 0, 2) == []
    assert prompts(many.take(np.array([], np.int64)), 3, 2) == []


@pytest.mark.skipif(not NOVEL.is_file(), reason="needs ../shared/data")
def test_of_a_novel_no_token_is_lost():
    tokenizer = real_tokenizer()
    data = load_examples(section(train=str(NOVEL)), tokenizer, 0)
    train, validation = data.splits["train"], data.splits["validation"]
    learnt = [tokenizer.decode(split.ids[split.learn]) for split in (train, validation)]
    text = NOVEL.read_text(encoding="utf-8")
    end = tokenizer.eos_token
    place = len(text) - len(learnt[1].removesuffix(end)) - 1
    assert text[place - 2 : place] == "\n\n"
    assert 0.1 <= 1 - place / len(text) < 0.11
    first = [tokenizer.decode(split.ids[:1]) for split in (train, validation)]
    assert [a + b for a, b in zip(first, learnt, strict=True)] == [text[:place] + end, text[place:] + end]
    assert train.lengths[:-1].tolist() == [512] * (len(train) - 1)
