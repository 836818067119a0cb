import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jlora.errors import JloraError
from tests.support.training.lm_data import CHAT, jsonl, section
from train.data.table_files import Table
from train.lm.data.rows import TableRows, hold_out_rows, read_rows, sample_rows, take_rows


def parts(*sizes):
    return [
        TableRows(Table(f"{i}.csv", {"text": ["x"] * size}), "text", np.arange(size)) for i, size in enumerate(sizes)
    ]


def numbered(found):
    """(file, row) of every row."""
    return [(part.table.name, int(row)) for part in found for row in part.rows]


sizes = st.lists(st.integers(1, 6), min_size=1, max_size=5)


@given(sizes, st.data())
def test_rows_are_counted_through_all_files(sizes, data):
    every = numbered(parts(*sizes))
    chosen = sorted(data.draw(st.sets(st.integers(0, len(every) - 1), min_size=1)))
    taken = take_rows(parts(*sizes), np.array(chosen))
    assert numbered(taken) == [every[i] for i in chosen]
    assert all(len(part) for part in taken)
    again = take_rows(taken, np.arange(len(chosen)))
    assert numbered(again) == numbered(taken)


@given(sizes, st.integers(1, 40), st.integers(0, 3))
def test_a_sample_is_seeded_and_in_the_order_of_the_files(sizes, max_rows, seed):
    every = numbered(parts(*sizes))
    found = numbered(sample_rows(parts(*sizes), max_rows, "train", seed))
    assert len(found) == min(max_rows, len(every))
    assert found == sorted(set(found)) == numbered(sample_rows(parts(*sizes), max_rows, "train", seed))
    assert numbered(sample_rows(parts(*sizes), None, "train", seed)) == every


@given(sizes.filter(lambda sizes: sum(sizes) > 1), st.sampled_from([0.1, 0.3, 0.5]), st.integers(0, 3))
def test_rows_that_are_held_out_are_gone_from_the_rest(sizes, fraction, seed):
    every = numbered(parts(*sizes))
    rest, held_out = map(numbered, hold_out_rows(parts(*sizes), fraction, seed))
    assert sorted(rest + held_out) == every
    assert (rest, held_out) == (sorted(rest), sorted(held_out))
    assert len(held_out) == max(1, round(fraction * len(every)))


def test_another_seed_holds_out_other_rows():
    one, two = (numbered(hold_out_rows(parts(50), 0.2, seed)[1]) for seed in (0, 1))
    assert one != two


def test_too_few_rows_are_refused():
    with pytest.raises(
        JloraError, match=r"^0\.csv: 1 row in all, too few to hold out .*, or give data\.validation=FILE"
    ):
        hold_out_rows(parts(1), 0.1, 0)


def test_each_file_has_its_format_which_is_said_where_it_was_seen(tmp_path):
    chats, texts = jsonl(tmp_path / "a.jsonl", [{"messages": CHAT}]), tmp_path / "b.txt"
    texts.write_text("one\ntwo\n")
    notes = []
    found = read_rows("train", section(train=[chats, str(texts)], sample_by="line"), notes)
    assert [(part.form, len(part)) for part in found] == [("messages", 1), ("text", 2)]
    assert notes == [
        f"train: {chats} is read as data.format=messages (columns: messages)",
        f"train: {texts} is read as data.format=text (columns: text)",
    ]
    notes.clear()
    assert read_rows("validation", section(validation=str(texts), format="text"), notes)[0].form == "text"
    assert notes == []


@pytest.mark.parametrize("form", [None, "messages"])
def test_columns_that_are_not_used_are_named(form, tmp_path):
    row = {"id": 7, "messages": CHAT, "system": "x", "tools": [], "chat_template_kwargs": {}, "history": []}
    notes = []
    file = jsonl(tmp_path / "a.jsonl", [row])
    read_rows("train", section(train=file, format=form), notes)
    assert f"train: {file}: columns that are not used: id, history" in notes
