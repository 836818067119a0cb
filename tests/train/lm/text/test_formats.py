import pytest

from jlora.errors import JloraError
from tests.support.training.lm_data import CHAT, section
from train.data.table_files import Table
from train.lm.text.formats import answers_only, chat_column, detect_format, has_chats, too_long, used_columns

SHAREGPT = [{"from": "human", "value": "Hi"}]
FORMATS = ("text", "prompt_completion", "alpaca", "sharegpt", "messages")


def table(**columns):
    return Table("a.jsonl", {name: [value] for name, value in columns.items()})


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"text": "x"}, "text"),
        ({"prompt": "x", "completion": "y"}, "prompt_completion"),
        ({"instruction": "x", "output": "y"}, "alpaca"),
        ({"instruction": "x", "input": "", "output": "y", "text": "z"}, "alpaca"),
        ({"messages": CHAT, "prompt": "x", "text": "y"}, "messages"),
        ({"conversations": SHAREGPT}, "sharegpt"),
        ({"conversations": CHAT}, "messages"),
        ({"messages": SHAREGPT}, "sharegpt"),
        ({"messages": "no chat"}, "messages"),
    ],
)
def test_a_format_is_seen_from_the_columns(columns, expected):
    assert detect_format(table(**columns), section()) == expected


def test_the_config_names_columns():
    other = table(review="x", question="y", answer="z", turns=SHAREGPT)
    assert detect_format(other, section(text="review")) == "text"
    assert detect_format(other, section(prompt="question", completion="answer")) == "prompt_completion"
    assert detect_format(other, section(messages="turns")) == "sharegpt"
    with pytest.raises(JloraError, match=r"expected a column 'talk' \(data\.messages\), found the columns review"):
        detect_format(other, section(messages="talk"))


def test_unknown_columns_are_refused():
    expected = (
        r"^a\.jsonl: expected the columns of a format: .*text \(text\); found review\. data\.messages, .* name them"
    )
    with pytest.raises(JloraError, match=expected):
        detect_format(table(review="x"), section())


def test_the_column_of_the_chats():
    both = table(messages=CHAT, conversations=SHAREGPT)
    assert chat_column(both, "messages", section()) == "messages"
    assert chat_column(both, "sharegpt", section()) == "conversations"
    assert chat_column(table(conversations=CHAT), "messages", section()) == "conversations"
    assert chat_column(both, "messages", section(messages="turns")) == "turns"


def test_what_is_learnt_and_what_becomes_of_long_rows_where_the_config_says_nothing():
    assert [form for form in FORMATS if answers_only(form, section())] == ["prompt_completion", "alpaca"]
    assert [form for form in FORMATS if too_long(form, section()) == "split"] == ["text"]
    assert {too_long(form, section()) for form in FORMATS[1:]} == {"cut"}


def test_the_config_decides():
    assert all(answers_only(form, section(completion_only_loss=True)) for form in FORMATS[1:])
    assert not any(answers_only(form, section(completion_only_loss=False)) for form in FORMATS)
    assert {too_long(form, section(too_long="drop")) for form in FORMATS} == {"drop"}
    with pytest.raises(
        JloraError, match=r"completion_only_loss=true: expected .* found plain text.* Leave the key out"
    ):
        answers_only("text", section(completion_only_loss=True))


def test_pairs_are_chats_where_the_first_prompt_is_a_list():
    pairs = table(prompt=CHAT[:1], completion=CHAT[1:])
    assert has_chats(pairs, "prompt_completion", section())
    assert not has_chats(table(prompt="x", completion="y"), "prompt_completion", section())
    assert used_columns(pairs, "prompt_completion", section()) >= {"prompt", "completion", "system", "tools"}
    assert used_columns(table(prompt="x"), "prompt_completion", section()) == {"prompt", "completion"}


def test_rows_with_nothing_in_them_decide_nothing():
    assert detect_format(Table("a.jsonl", {"conversations": [None, [], SHAREGPT]}), section()) == "sharegpt"
    assert has_chats(Table("a.jsonl", {"prompt": [None, CHAT[:1]]}), "prompt_completion", section())


@pytest.mark.parametrize("column", ["messages", "conversations"])
@pytest.mark.parametrize("chat", [SHAREGPT, CHAT], ids=["sharegpt", "messages"])
def test_the_column_that_the_format_was_seen_in_is_read(column, chat):
    found = table(**{column: chat})
    assert chat_column(found, detect_format(found, section()), section()) == column
