import pytest

from jlora.errors import JloraError
from train.lm.turns import require_answer, turns_of_messages, turns_of_sharegpt


def chat(*roles):
    return [{"role": role, "content": f"words of {role}"} for role in roles]


@pytest.mark.parametrize(
    "roles",
    [
        ("user",),
        ("user", "assistant"),
        ("system", "user", "assistant", "user", "assistant"),
        ("user", "assistant", "tool", "tool", "assistant", "user"),
    ],
)
def test_roles_in_order_are_taken(roles):
    assert turns_of_messages(chat(*roles), "x") == chat(*roles)


@pytest.mark.parametrize(
    ("roles", "error"),
    [
        (("assistant", "user"), "x, turn 1: roles out of order: expected system or user first; found assistant"),
        (("tool",), "turn 1: roles out of order: expected system or user first; found tool"),
        (("system", "assistant"), "turn 2: roles out of order: expected user after system; found assistant"),
        (("user", "user"), "turn 2: .* expected assistant after user; found user; join turns of one role into one"),
        (("user", "assistant", "assistant"), "turn 3: .* expected user or tool after assistant; found assistant; join"),
        (("user", "assistant", "system"), "turn 3: .* found system"),
        (("user", "tool"), "turn 2: .* expected assistant after user; found tool"),
        (("user", "bot"), "turn 2: expected one of the roles system or user or assistant or tool; found 'bot'"),
    ],
)
def test_roles_out_of_order_are_refused(roles, error):
    with pytest.raises(JloraError, match=error):
        turns_of_messages(chat(*roles), "x")


@pytest.mark.parametrize(
    ("found", "error"),
    [
        (None, "^x: expected a chat, a list of turns; found nothing"),
        ([], "^x: expected a chat, a list of turns; found an empty list"),
        ("Hi", "^x: expected a chat, a list of turns; found 'Hi'"),
        (["Hi"], "^x, turn 1: expected an object with 'role'; found 'Hi'"),
        ([{"content": "Hi"}], "^x, turn 1: expected an object with 'role'"),
        ([{"role": None, "content": "Hi"}], "^x, turn 1: expected an object with 'role'"),
        ([{"role": "user"}], "^x, turn 1, 'content': expected text .* found nothing"),
        ([{"role": "user", "content": 3}], r"^x, turn 1, 'content': expected text .* found 3 \(int\)"),
        ([{"role": "user", "content": "half \ud83d"}], "^x, turn 1, 'content': expected text in whole Unicode"),
    ],
)
def test_what_is_no_chat_is_refused(found, error):
    with pytest.raises(JloraError, match=error):
        turns_of_messages(found, "x")


def test_sharegpt_says_from_and_value():
    found = [{"from": "system", "value": "s"}, {"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}]
    assert turns_of_sharegpt(found, "x") == [
        {"role": "system", "content": "s"}, {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"},
    ]  # fmt: skip
    with pytest.raises(
        JloraError, match=r"^x, turn 1: roles out of order: expected system or user first; found assist"
    ):
        turns_of_sharegpt(found[2:], "x")
    with pytest.raises(JloraError, match=r"^x, turn 1: expected one of system or human .* in 'from'; found 'robot'"):
        turns_of_sharegpt([{"from": "robot", "value": "beep"}], "x")
    with pytest.raises(JloraError, match=r"^x, turn 1, 'value': expected text .* found nothing"):
        turns_of_sharegpt([{"from": "human", "value": None}], "x")
    with pytest.raises(JloraError, match=r"^x, turn 1: expected an object with 'from'"):
        turns_of_sharegpt(chat("user"), "x")


def test_entries_without_a_value_are_left_out_and_a_call_needs_no_content():
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "clock"}]}
    turns = turns_of_messages([{"role": "user", "content": "Time?", "tool_calls": None}, call], "x")
    assert turns == [{"role": "user", "content": "Time?"}, {"role": "assistant", "tool_calls": [{"name": "clock"}]}]


def test_an_answer_to_learn_comes_last():
    require_answer(chat("user", "assistant"), "x")
    with pytest.raises(
        JloraError, match=r"^x: expected the assistant's turn last.*completion_only_loss=true\); found u"
    ):
        require_answer(chat("user", "assistant", "user"), "x")
