import pytest

from jlora.errors import JloraError
from tests.support.training.lm_data import CHAT, byte_tokenizer, section
from train.data.table_files import Table
from train.lm.text.documents import documents_of

TOKENIZER = byte_tokenizer()


def documents(form, rows=(0,), config=None, **columns):
    return documents_of(Table("a.jsonl", columns), rows, form, config or section(), TOKENIZER)


def learnt(found):
    return [[text[a:b] for a, b in spans] for text, spans in zip(found.texts, found.learnt, strict=True)]


def test_plain_text_is_learnt_whole():
    found = documents("text", (2, 0), text=["a", "b", "c"])
    assert (found.texts, found.learnt, found.prompts, len(found)) == (["c", "a"], None, [0, 0], 2)
    assert found.where(0) == "a.jsonl, data row 3"
    assert not found.from_template


def test_of_pairs_the_completion_is_learnt():
    columns = {"prompt": ["Q: ", ""], "completion": ["A", "B"]}
    found = documents("prompt_completion", (0, 1), **columns)
    assert (found.texts, found.prompts, learnt(found)) == (["Q: A", "B"], [3, 0], [["A"], ["B"]])
    whole = documents("prompt_completion", (0, 1), section(completion_only_loss=False), **columns)
    assert (whole.texts, whole.prompts, whole.learnt) == (found.texts, found.prompts, None)


def test_alpaca_has_the_words_of_stanford_alpaca():
    found = documents(
        "alpaca",
        (0, 1, 2),
        instruction=["Add {x}.", "Say hi.", "Go."],
        input=["1 2", "", None],
        output=["3", "Hi", "!"],
    )
    assert found.texts[0] == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd {x}.\n\n### Input:\n1 2\n\n### Response:\n3"
    )
    assert found.texts[1] == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nSay hi.\n\n### Response:\nHi"
    )
    assert "Input" not in found.texts[2]
    assert learnt(found) == [["3"], ["Hi"], ["!"]]
    assert documents("alpaca", instruction=["Say hi."], output=["Hi"]).texts == found.texts[1:2]


def test_chats_are_written_by_the_template_and_learnt_whole_or_by_answers():
    text = "<start>[user]Hi<end>\n[assistant]Ho<end>\n"
    sharegpt = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]
    for form, columns in {"messages": {"messages": [CHAT]}, "sharegpt": {"conversations": [sharegpt]}}.items():
        found = documents(form, **columns)
        assert (found.texts, found.learnt, found.from_template) == ([text], None, True)
        assert text[: found.prompts[0]] == "<start>[user]Hi<end>\n[assistant]"
        assert learnt(documents(form, config=section(completion_only_loss=True), **columns)) == [["Ho<end>"]]


def test_rows_bring_their_tools():
    tokenizer = byte_tokenizer(template="{{ tools[0].name if tools else 'none' }}")
    tools = [[{"name": "clock"}], '[{"name": "map"}]', None, []]
    table = Table("a.jsonl", {"messages": [CHAT] * 4, "tools": tools})
    assert documents_of(table, range(4), "messages", section(), tokenizer).texts == ["clock", "map", "none", "none"]


def turns(*roles):
    return [{"role": role, "content": role[0]} for role in roles]


def test_pairs_may_be_chats_whose_completion_is_learnt():
    """TRL's conversational form: an answer in the prompt is not learnt."""
    prompt, completion = turns("user", "assistant", "user"), turns("assistant")
    found = documents("prompt_completion", prompt=[prompt], completion=[completion])
    assert found.from_template
    assert found.texts == ["<start>[user]u<end>\n[assistant]a<end>\n[user]u<end>\n[assistant]a<end>\n"]
    assert learnt(found) == [["a<end>"]]
    assert found.texts[0][found.prompts[0] :] == "a<end>\n"
    assert documents("prompt_completion", config=section(completion_only_loss=False), prompt=[prompt],
                     completion=[completion]).learnt is None  # fmt: skip
    with pytest.raises(
        JloraError, match=r"^a\.jsonl, data row 2, column 'completion' .*: expected a list of turns, as"
    ):
        documents("prompt_completion", (0, 1), prompt=[prompt, prompt], completion=[completion, "text"])


@pytest.mark.parametrize("form", ["messages", "sharegpt", "prompt_completion"])
def test_a_column_of_system_prompts_is_the_first_turn(form):
    columns = {
        "messages": {"messages": [CHAT] * 3},
        "sharegpt": {"conversations": [[{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]] * 3},
        "prompt_completion": {"prompt": [CHAT[:1]] * 3, "completion": [CHAT[1:]] * 3},
    }[form]
    found = documents(form, range(3), section(completion_only_loss=True), system=["Be brief.", None, ""], **columns)
    plain = "[user]Hi<end>\n[assistant]Ho<end>\n"
    assert found.texts == [f"<start>[system]Be brief.<end>\n{plain}", f"<start>{plain}", f"<start>{plain}"]
    assert learnt(found) == [["Ho<end>"]] * 3


def test_two_system_prompts_must_be_one():
    chat = [{"role": "system", "content": "Be brief."}, *CHAT]
    assert documents("messages", messages=[chat], system=["Be brief."]).texts[0].count("Be brief.") == 1
    with pytest.raises(
        JloraError, match=r"data row 1, column 'system': expected no system prompt, or .*; found another: 'Be lo"
    ):
        documents("messages", messages=[chat], system=["Be long."])
    with pytest.raises(JloraError, match=r"data row 1, column 'system': expected text, found 3"):
        documents("messages", messages=[chat], system=[3])


def test_turns_that_the_row_weighs_with_nothing_are_not_learnt():
    chat = turns("user", "assistant", "user", "assistant")
    chat[1]["weight"] = 0
    found = documents("messages", (0, 1), section(completion_only_loss=True), messages=[chat, CHAT])
    assert learnt(found) == [["a<end>"], ["Ho<end>"]]
    assert found.learnt[0][0][0] > found.texts[0].index("a<end>")
    whole = documents("messages", (0, 1), messages=[chat, CHAT])
    assert learnt(whole) == [
        ["<start>[user]u<end>\n[assistant]", "\n[user]u<end>\n[assistant]a<end>\n"],
        [whole.texts[1]],
    ]


def test_variables_of_the_template_are_a_column():
    tokenizer = byte_tokenizer(template="{{ enable_thinking is defined and enable_thinking }}")
    given = [{"enable_thinking": True}, '{"enable_thinking": true}', None, {}, ""]
    table = Table("a.jsonl", {"messages": [CHAT] * 5, "chat_template_kwargs": given})
    found = documents_of(table, range(5), "messages", section(), tokenizer)
    assert found.texts == ["True", "True", "False", "False", "False"]
    for wrong, error in (
        ([1], "expected an object such as"),
        ("{", "expected JSON; found"),
        ({"tools": 1}, "found 'tools'"),
    ):
        table.columns["chat_template_kwargs"][0] = wrong
        with pytest.raises(JloraError, match=rf"data row 1, column 'chat_template_kwargs': .*{error}"):
            documents_of(table, [0], "messages", section(), tokenizer)


def test_keys_that_the_template_does_not_name_are_known():
    chat = [CHAT[0] | {"name": "Ann", "weight": 1}, CHAT[1] | {"id": 3}]
    given = {"messages": [chat], "chat_template_kwargs": [{"thinking": True}]}
    assert documents("messages", **given).unread == {"name", "id", "thinking"}
    tokenizer = byte_tokenizer(template="{% for turn in messages %}{{ turn['name'] }}{{ turn.get('id') }}{% endfor %}")
    assert documents_of(Table("a", given), [0], "messages", section(), tokenizer).unread == {"thinking"}


def test_tools_that_the_template_does_not_name_are_known():
    columns = {"messages": [CHAT, CHAT], "tools": [None, [{"name": "clock"}]]}
    assert documents("messages", (0, 1), **columns).unread == {"tools"}
    assert documents("messages", **columns).unread == set()
    tokenizer = byte_tokenizer(template="{{ tools }}")
    assert documents_of(Table("a", columns), (0, 1), "messages", section(), tokenizer).unread == set()


@pytest.mark.parametrize("read", ["reasoning_content", "thinking"])
def test_thoughts_that_reach_the_template_by_another_name_are_used(read):
    tokenizer = byte_tokenizer(template=f"{{% for turn in messages %}}{{{{ turn.{read} }}}}{{% endfor %}}")
    for given in ("reasoning_content", "thinking", "reasoning"):
        columns = {"messages": [[CHAT[0], CHAT[1] | {given: "Hm"}]], "chat_template_kwargs": [{"reasoning": "high"}]}
        found = documents_of(Table("a", columns), [0], "messages", section(), tokenizer)
        assert (found.texts, found.unread) == (["Hm"], {"reasoning"})
    assert documents("messages", messages=columns["messages"]).unread == {"reasoning"}


def test_cells_that_say_nothing_are_none():
    nothing = [None, "", " ", "null", "[]", []]
    columns = {"messages": [CHAT] * 6, "tools": nothing, "chat_template_kwargs": [*nothing[:4], "{}", {}]}
    assert documents("messages", range(6), **columns).texts == ["<start>[user]Hi<end>\n[assistant]Ho<end>\n"] * 6


def test_alpaca_has_a_system_prompt_and_a_history():
    columns = {"instruction": ["Go.", "Go."], "output": ["Yes", "Yes"], "system": ["Obey.", None]}
    found = documents("alpaca", (0, 1), history=[[["Hi", "Ho"], ["How?", "So"]], None], **columns)
    request = "### Instruction:\n{}\n\n### Response:\n{}"
    before = request.format("Hi", "Ho<end>\n\n") + request.format("How?", "So<end>\n\n")
    assert found.texts[0] == f"Obey.\n\n{before}{request.format('Go.', 'Yes')}"
    assert learnt(found) == [["Ho<end>", "So<end>", "Yes"], ["Yes"]]
    assert found.prompts[0] == found.texts[0].index("Ho<end>")
    assert found.texts[1].startswith("Below is an instruction")
    for wrong in ("Hi", [["Hi"]], ["Hi"]):
        with pytest.raises(
            JloraError, match=r"data row 1, column 'history' .*: expected a list of \[instruction, resp"
        ):
            documents("alpaca", instruction=["Go."], output=["Yes"], history=[wrong])


@pytest.mark.parametrize(
    ("form", "columns"),
    [
        ("text", {"text": ["a", None, "c"]}),
        ("prompt_completion", {"prompt": ["a", 3, "c"], "completion": ["a", "b", "c"]}),
        ("alpaca", {"instruction": ["a", "b", "c"], "output": ["a", None, "c"]}),
        ("messages", {"messages": [CHAT, CHAT[1:], CHAT]}),
        ("sharegpt", {"conversations": [[{"from": "human", "value": v}] for v in ("a", None, "c")]}),
    ],
)
def test_bad_rows_are_left_out_where_the_config_says_so(form, columns):
    found = documents(form, range(3), section(skip_bad_rows=True), **columns)
    assert (found.rows, len(found)) == ([0, 2], 2)
    assert len(found.left_out) == 1
    assert found.left_out[0].startswith("a.jsonl, data row 2, column")
    with pytest.raises(JloraError, match=r"^a\.jsonl, data row 2, .*\. data\.skip_bad_rows=true leaves such rows out"):
        documents(form, range(3), **columns)
    with pytest.raises(
        JloraError, match=r"^expected a row that can be read; found none in 1\. The first error: a\.jsonl, data"
    ):
        documents(form, [1], section(skip_bad_rows=True), **columns)


@pytest.mark.parametrize(
    ("form", "columns", "error"),
    [
        ("text", {"text": ["a", None]}, r"column 'text' \(data\.text\): expected text, found nothing"),
        ("text", {"text": ["a", 3.5]}, r"column 'text' \(data\.text\): expected text, found 3\.5 \(a number\)"),
        (
            "prompt_completion",
            {"prompt": ["a", ["b"]], "completion": ["a", "b"]},
            r"'prompt' \(data\.prompt\): expected t",
        ),
        (
            "prompt_completion",
            {"prompt": ["a", "b"], "completion": ["a", None]},
            r"'completion' \(data\.completion\): exp",
        ),
        (
            "alpaca",
            {"instruction": ["a", None], "output": ["a", "b"]},
            r"column 'instruction' \(data\.format=alpaca\): ex",
        ),
        (
            "alpaca",
            {"instruction": ["a", "b"], "input": ["", 1], "output": ["a", "b"]},
            r"column 'input' .* found 1 \(a number",
        ),
        (
            "alpaca",
            {"instruction": ["a", "b"], "output": ["a", None]},
            r"column 'output' \(data\.format=alpaca\): expected",
        ),
        ("messages", {"messages": [CHAT, CHAT[1:]]}, r"'messages' \(data\.messages\), turn 1: roles out of order"),
        (
            "messages",
            {"messages": [CHAT, CHAT], "tools": [None, "[{"]},
            r"column 'tools': expected JSON; found '\[\{' \(",
        ),
        (
            "messages",
            {"messages": [CHAT, CHAT], "tools": [[], ["f"]]},
            r"column 'tools': expected a list of JSON schemas",
        ),
        (
            "sharegpt",
            {"conversations": [[{"from": "human", "value": "x"}], None]},
            r"'conversations' .*: expected a chat",
        ),
    ],
)
def test_a_bad_row_is_named(form, columns, error):
    with pytest.raises(JloraError, match=rf"^a\.jsonl, data row 2, .*{error}"):
        documents(form, (0, 1), **columns)


def test_a_chat_without_an_answer_is_refused_where_only_answers_are_learnt():
    assert documents("messages", messages=[CHAT[:1]]).texts == ["<start>[user]Hi<end>\n"]
    with pytest.raises(JloraError, match=r"^a\.jsonl, data row 1, .*: expected the assistant's turn last"):
        documents("messages", config=section(completion_only_loss=True), messages=[CHAT[:1]])


def test_a_column_or_template_that_is_not_there_is_named():
    with pytest.raises(JloraError, match=r"expected a column 'messages' \(data\.messages\), found the columns chat"):
        documents("messages", config=section(messages="messages"), chat=[CHAT])
    with pytest.raises(JloraError, match=r"expected a column 'completion' \(data\.completion\)"):
        documents("prompt_completion", prompt=["a"])
    with pytest.raises(JloraError, match=r"expected a tokenizer with a chat template"):
        documents_of(Table("a", {"messages": [CHAT]}), [0], "messages", section(), byte_tokenizer(template=None))
