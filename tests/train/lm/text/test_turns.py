import pytest

from jlora.errors import JloraError
from train.lm.text.turns import require_answer, take_weights, turns_of_messages, turns_of_sharegpt


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
        ('[{"role": "user"}]', r"^x: .* found text, the JSON of a list: .*json\.loads.* a CSV file cannot hold chats$"),
        (["Hi"], "^x, turn 1: expected an object with 'role'; found 'Hi'"),
        ([{"content": "Hi"}], "^x, turn 1: expected an object with 'role'"),
        ([{"role": None, "content": "Hi"}], "^x, turn 1: expected an object with 'role'"),
        ([{"role": "user"}], "^x, turn 1, 'content': expected text, found nothing"),
        (
            [{"role": "user", "content": 3}],
            r"^x, turn 1, 'content': expected text, found 3 \(a number\)\. Put it in quotes",
        ),
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
    with pytest.raises(JloraError, match=r"^x, turn 1, 'value': expected text, found nothing"):
        turns_of_sharegpt([{"from": "human", "value": None}], "x")
    with pytest.raises(JloraError, match=r"^x, turn 1: expected an object with 'from'"):
        turns_of_sharegpt(chat("user"), "x")


def test_entries_without_a_value_are_left_out_and_a_call_needs_no_content():
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "clock"}]}
    for nothing in ([], ""):
        user = {"role": "user", "content": "Time?", "tool_calls": nothing}
        turns = turns_of_messages([user, call], "x")
        assert turns == [{"role": "user", "content": "Time?"}, {"role": "assistant", "tool_calls": [{"name": "clock"}]}]


def test_an_answer_to_learn_comes_last():
    require_answer(chat("user", "assistant"), "x")
    with pytest.raises(
        JloraError, match=r"^x: expected the assistant's turn last.*completion_only_loss=true\); found u"
    ):
        require_answer(chat("user", "assistant", "user"), "x")


def answer(**entries):
    """The last turn of a chat in which the assistant's has these entries."""
    return turns_of_messages([*chat("user"), {"role": "assistant", **entries}], "x")[-1]


CALL = {"type": "function", "function": {"name": "get", "arguments": {"city": "Paris"}}}


@pytest.mark.parametrize(
    "entries",
    [
        {"tool_calls": [CALL]},
        {"tool_calls": [{"type": "function", "function": {"name": "get", "arguments": '{"city": "Paris"}'}}]},
        {"tool_calls": '[{"type": "function", "function": {"name": "get", "arguments": {"city": "Paris"}}}]'},
        {"function_call": {"name": "get", "arguments": '{"city": "Paris"}'}},
        {"function_call": {"name": "get", "arguments": '{"city": "Paris"}'}, "tool_calls": []},
    ],
    ids=["objects", "arguments as text", "all as text", "the older function_call", "both keys"],
)
def test_a_call_is_an_object_however_it_is_written(entries):
    assert answer(**entries) == {"role": "assistant", "tool_calls": [CALL]}


def test_a_call_without_a_function_or_arguments():
    assert answer(tool_calls=[{"name": "clock", "arguments": ""}])["tool_calls"] == [{"name": "clock", "arguments": {}}]
    assert answer(tool_calls=[{"name": "clock"}])["tool_calls"] == [{"name": "clock"}]


@pytest.mark.parametrize(
    ("calls", "error"),
    [
        ("[{", r"'tool_calls': expected JSON; found '\[\{' \(.*\)\. Correct it"),
        ("[" * 100_000, r"'tool_calls': expected JSON; found '\[\[\["),
        ('[{"name": "f", "name": "g"}]', r"'tool_calls': expected JSON; found .* \(the key 'name' twice\)"),
        ({"name": "get"}, r"'tool_calls': expected a list of calls; found \{'name'"),
        (
            [{"function": {"arguments": "{city: Paris}"}}],
            r"'tool_calls', 'arguments': expected JSON; found '\{city: Paris\}'",
        ),
        ([{"function": {"arguments": "[1]"}}], r"'tool_calls': expected arguments that are a JSON object; found \[1\]"),
        ([{"arguments": 3}], r"'tool_calls': expected arguments that are a JSON object; found 3"),
    ],
)
def test_calls_that_are_none_are_refused(calls, error):
    with pytest.raises(JloraError, match=rf"^x, turn 2, {error}"):
        answer(tool_calls=calls)


def test_parts_of_text_are_joined_and_others_refused():
    parts = [{"type": "text", "text": "one "}, {"type": "output_text", "text": "two"}, {"text": "."}]
    assert answer(content=parts)["content"] == "one two."
    assert answer(content=[])["content"] == ""
    for part in ({"type": "image_url", "image_url": "x"}, {"type": "thinking"}, "bare"):
        with pytest.raises(JloraError, match=r"^x, turn 2, 'content': expected parts of text alone, .*; found"):
            answer(content=[part])
    with pytest.raises(
        JloraError, match=r"^x, turn 2, 'content': expected text, or a list .* one part alone, .* list$"
    ):
        answer(content=parts[0])
    with pytest.raises(
        JloraError, match=r"^x, turn 2: expected the turn's text in 'content'; found it in 'text'\. Rename"
    ):
        answer(text="Ho")
    with pytest.raises(JloraError, match=r"^x, turn 2, 'content', a part's 'text': expected text"):
        answer(content=[{"type": "text", "text": None}])


def test_openais_other_names_of_roles():
    found = turns_of_messages(chat("developer", "user", "assistant", "function", "assistant"), "x")
    assert [turn["role"] for turn in found] == ["system", "user", "assistant", "tool", "assistant"]


def test_sharegpt_calls_functions_and_observes():
    value = '{"name": "get", "arguments": {"city": "Paris"}}'
    found = [
        {"from": "human", "value": "weather?"}, {"from": "function_call", "value": value},
        {"from": "observation", "value": "hot"}, {"from": "gpt", "value": [{"type": "text", "text": "It is hot."}]},
    ]  # fmt: skip
    turns = turns_of_sharegpt(found, "x")
    assert [turn["role"] for turn in turns] == ["user", "assistant", "tool", "assistant"]
    assert turns[1] == {"role": "assistant", "tool_calls": [CALL]}
    assert turns[3]["content"] == "It is hot."
    found[1]["value"] = f"[{value}, {value}]"
    assert turns_of_sharegpt(found, "x")[1]["tool_calls"] == [CALL, CALL]
    for wrong, error in (
        ("get(Paris)", r"expected JSON; found 'get\(Paris\)'"),
        ("[1]", "expected a call such as"),
        ('{"city": 1}', "expected a call"),
    ):
        found[1]["value"] = wrong
        with pytest.raises(JloraError, match=rf"^x, turn 2, 'value' of function_call: {error}"):
            turns_of_sharegpt(found, "x")


def test_other_keys_of_turns_are_kept():
    found = [{"from": "human", "value": "Hi", "name": "Ann", "weight": 0}]
    assert turns_of_sharegpt(found, "x") == [{"role": "user", "content": "Hi", "name": "Ann", "weight": 0}]


@pytest.mark.parametrize("key", ["weight", "train"])
def test_turns_say_whether_they_are_learnt(key):
    turns = chat("user", "assistant", "user", "assistant")
    for place, said in ((1, 0), (3, 1.0)):
        turns[place] = turns[place] | {key: said}
    assert take_weights(turns, "x") == (chat("user", "assistant", "user", "assistant"), frozenset({1}))
    for wrong in (0.5, "0", None, [0]):
        turns[1][key] = wrong
        with pytest.raises(JloraError, match=rf"^x, turn 2, '{key}': expected 0 \(not learnt\) or 1 \(learnt\); found"):
            take_weights(turns, "x")
