import pytest
from lm_data import CHAT, byte_tokenizer, section

from jlora.errors import JloraError
from train.lm.documents import documents_of
from train.tables import Table

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


@pytest.mark.parametrize(
    ("form", "columns", "error"),
    [
        ("text", {"text": ["a", None]}, r"column 'text' \(data\.text\): expected text .* found nothing"),
        ("text", {"text": ["a", 3.5]}, r"column 'text' \(data\.text\): expected text .* found 3\.5 \(float\)"),
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
            r"column 'input' .* found 1 \(int",
        ),
        (
            "alpaca",
            {"instruction": ["a", "b"], "output": ["a", None]},
            r"column 'output' \(data\.format=alpaca\): expected",
        ),
        ("messages", {"messages": [CHAT, CHAT[1:]]}, r"'messages' \(data\.messages\), turn 1: roles out of order"),
        ("messages", {"messages": [CHAT, CHAT], "tools": [None, "[{"]}, r"column 'tools': not JSON \(.*\): \[\{"),
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
    with pytest.raises(JloraError, match=r"no column 'messages' \(data\.messages\); the columns are chat"):
        documents("messages", config=section(messages="messages"), chat=[CHAT])
    with pytest.raises(JloraError, match=r"no column 'completion' \(data\.completion\)"):
        documents("prompt_completion", prompt=["a"])
    with pytest.raises(JloraError, match=r"expected a tokenizer with a chat template"):
        documents_of(Table("a", {"messages": [CHAT]}), [0], "messages", section(), byte_tokenizer(template=None))
