import pytest

from jlora.errors import JloraError
from tests.support.training.lm_data import CHAT, TAGGED, TEMPLATE, byte_tokenizer, real_tokenizer
from train.lm.text.chat_templates import Chat, chat_template, with_template
from train.lm.text.chat_templates import write_chat as _write_chat
from train.lm.text.conversations import Conversation

LONG = [
    {"role": "system", "content": "Be brief."},
    *CHAT,
    {"role": "user", "content": "How?"},
    CHAT[1] | {"content": ""},
]
WITHOUT_OLD_THOUGHTS = (
    "{% for turn in messages %}[{{ turn.role }}]"
    "{% if turn.role == 'assistant' and loop.last %}<think></think>{% endif %}"
    "{{ turn.content.split('</think>')[-1] if not loop.last else turn.content }}<end>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
"""As Qwen3's: an empty thought before the last answer alone, and no thoughts in those before."""


def write_chat(turns, tokenizer, answers=True, *, tools=None, prompt=0, unlearnt=(), variables=None):
    chat = Conversation(turns, prompt, frozenset(unlearnt), tools, variables or {}, "x")
    return _write_chat(chat, chat_template(tokenizer), answers)


def spoken(chat):
    return [chat.text[start:end] for start, end in chat.learnt]


def test_a_chat_is_written_by_the_template():
    chat = write_chat(LONG, byte_tokenizer(), answers=True)
    text = "<start>[system]Be brief.<end>\n[user]Hi<end>\n[assistant]Ho<end>\n[user]How?<end>\n[assistant]<end>\n"
    assert chat.text == text
    assert spoken(chat) == ["Ho<end>", "<end>"]
    assert chat.text[: chat.prompt] == "<start>[system]Be brief.<end>\n[user]Hi<end>\n[assistant]"
    assert write_chat(LONG, byte_tokenizer(), answers=False) == Chat(text, None, chat.prompt)


def test_a_chat_without_an_answer_is_all_prompt():
    chat = write_chat(CHAT[:1], byte_tokenizer(), answers=False)
    assert chat.prompt == len(chat.text)


def test_the_answers_of_the_real_template_are_content_and_end_token():
    chat = write_chat(LONG[1:4] + CHAT[1:], real_tokenizer(), answers=True)
    assert spoken(chat) == ["Ho<|im_end|>", "Ho<|im_end|>"]
    assert chat.text[: chat.prompt].endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


def test_generation_tags_say_what_transformers_says():
    tokenizer = byte_tokenizer(template=TAGGED)
    chat = write_chat(LONG, tokenizer, answers=True)
    encoded = tokenizer.apply_chat_template(LONG, return_dict=True, return_assistant_tokens_mask=True)
    learnt = [any(start <= i < end for start, end in chat.learnt) for i in range(len(chat.text))]
    in_bytes = tokenizer(chat.text, return_offsets_mapping=True, add_special_tokens=False)["offset_mapping"]
    assert [int(learnt[start]) for start, _ in in_bytes] == encoded["assistant_masks"]
    assert spoken(chat) == ["Ho<end>", "<end>"]


def test_tools_reach_the_template():
    tokenizer = byte_tokenizer(template="{% if tools %}{{ tools[0].name }} {% endif %}" + TEMPLATE)
    assert write_chat(CHAT, tokenizer, tools=[{"name": "clock"}]).text.startswith("clock <start>[user]")
    assert write_chat(CHAT, tokenizer, answers=True).text.startswith("<start>[user]")


def test_a_template_may_leave_out_empty_thoughts_but_no_words():
    tokenizer = byte_tokenizer(template=WITHOUT_OLD_THOUGHTS)
    two = [*CHAT, {"role": "user", "content": "How?"}, {"role": "assistant", "content": "So"}]
    assert spoken(write_chat(two, tokenizer, answers=True)) == ["Ho<end>", "<think></think>So<end>"]
    two[1] = {"role": "assistant", "content": "<think>Hm</think>Ho"}
    with pytest.raises(
        JloraError, match=r"^x, turn 2: expected a chat template that .* leaves earlier turns unchanged"
    ):
        write_chat(two, tokenizer, answers=True)
    assert write_chat(two, tokenizer, answers=False).text.count("think") == 2


def test_a_template_that_writes_the_beginning_anew_is_refused():
    tokenizer = byte_tokenizer(template="{{ 'A' if messages|length < 3 else 'B' }}" + TEMPLATE)
    assert spoken(write_chat(CHAT, tokenizer, answers=True)) == ["Ho<end>"]
    with pytest.raises(JloraError, match=r"^x, turn 2: expected a chat template that"):
        write_chat([*CHAT, *CHAT], tokenizer, answers=True)


def test_a_generation_prompt_that_the_chat_does_not_go_on_from_is_refused():
    tokenizer = byte_tokenizer(template=TEMPLATE.replace("[assistant]{% endif", "[assistant]<think>{% endif"))
    with pytest.raises(JloraError, match=r"^x, turn 2: .*\{% generation %\}.*data\.chat_template"):
        write_chat(CHAT, tokenizer, answers=True)
    chat = write_chat(CHAT, tokenizer, answers=False)
    assert chat.text[: chat.prompt] == "<start>[user]Hi<end>\n[assistant]"


def test_a_tokenizer_needs_a_template():
    assert chat_template(byte_tokenizer()).source == "the model"
    with pytest.raises(
        JloraError, match=r"^the model: expected a tokenizer with a chat template.*data\.chat_template="
    ):
        chat_template(byte_tokenizer(template=None))


TWO = [*CHAT, {"role": "user", "content": "How?"}, {"role": "assistant", "content": "So"}]


@pytest.mark.parametrize("template", [TEMPLATE, TAGGED], ids=["plain", "tagged"])
def test_turns_that_are_not_to_be_learnt_are_not(template):
    tokenizer = byte_tokenizer(template=template)
    assert spoken(write_chat(TWO, tokenizer, unlearnt={1})) == ["So<end>"]
    assert spoken(write_chat(TWO, tokenizer, unlearnt={0, 1, 3})) == []
    whole = write_chat(TWO, tokenizer, False, unlearnt={1, 2})
    start = "<start>" * (template == TEMPLATE)
    assert spoken(whole) == [f"{start}[user]Hi<end>\n[assistant]", "\n", "[assistant]So<end>\n"]


@pytest.mark.parametrize("template", [TEMPLATE, TAGGED], ids=["plain", "tagged"])
def test_the_answers_of_a_prompt_are_not_learnt(template):
    chat = write_chat(TWO, byte_tokenizer(template=template), prompt=3)
    assert spoken(chat) == ["So<end>"]
    assert chat.text[chat.prompt :] == "So<end>\n"


def test_not_all_turns_are_learnt_needs_a_tag_for_each():
    once = byte_tokenizer(template="{% generation %}all{% endgeneration %}")
    assert spoken(write_chat(TWO, once)) == ["all"]
    with pytest.raises(JloraError, match=r"^x: expected \{% generation %\} around each .* 2 turns.* found it 1 times"):
        write_chat(TWO, once, unlearnt={1})


def test_variables_of_the_row_reach_the_template():
    tokenizer = byte_tokenizer(template="{{ 'on' if thinking is defined and thinking }}" + TEMPLATE)
    assert write_chat(CHAT, tokenizer, variables={"thinking": True}).text.startswith("on<start>")
    assert write_chat(CHAT, tokenizer).text.startswith("<start>")


@pytest.mark.parametrize(
    "arguments", ["{{ call.arguments | tojson }}", "{{ '' + call.arguments }}"], ids=["object", "text"]
)
def test_arguments_are_an_object_or_text_as_the_template_takes_them(arguments):
    """DeepSeek's templates join the text that OpenAI's API sends."""
    loop = f"{{% for call in turn.tool_calls or [] %}}{arguments}{{% endfor %}}"
    tokenizer = byte_tokenizer(template=TEMPLATE.replace("{{ turn.content }}", "{{ turn.content }}" + loop))
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "get", "arguments": {"city": "Zürich"}}]}
    assert spoken(write_chat([CHAT[0], call], tokenizer)) == ['{"city": "Zürich"}<end>']


@pytest.mark.parametrize("content", [{}, {"content": ""}, {"content": "  "}], ids=["null", "empty", "spaces"])
def test_calls_that_the_template_leaves_out_are_no_empty_answer(content):
    call = {"role": "assistant", **content, "tool_calls": [{"name": "get", "arguments": {}}]}
    with pytest.raises(
        JloraError, match=r"turn 2: expected a chat template that writes tool_calls.*data\.chat_template"
    ):
        write_chat([CHAT[0], call], byte_tokenizer(template=TEMPLATE))
    said = {**call, "content": "let me look"}
    assert spoken(write_chat([CHAT[0], said], byte_tokenizer(template=TEMPLATE))) == ["let me look<end>"]


def test_a_file_gives_a_template_to_a_copy(tmp_path):
    bare = byte_tokenizer(template=None)
    (tmp_path / "chat.jinja").write_text(TAGGED)
    given = with_template(bare, str(tmp_path / "chat.jinja"))
    assert (given.chat_template, bare.chat_template) == (TAGGED, None)
    assert with_template(bare, None) is bare
    with pytest.raises(JloraError, match=r"chta\.jinja: no such file.*nearest: chat\.jinja"):
        with_template(bare, str(tmp_path / "chta.jinja"))
    with pytest.raises(JloraError, match=r"^data\.chat_template=.*: expected a Jinja file in UTF-8; found"):
        with_template(bare, str(tmp_path))
    (tmp_path / "empty.jinja").write_text("\n")
    with pytest.raises(JloraError, match=r"^data\.chat_template=.*: expected a Jinja file; found an empty one"):
        with_template(bare, str(tmp_path / "empty.jinja"))


def test_a_template_that_is_not_jinja_is_an_error_before_any_row(tmp_path):
    (tmp_path / "chat.jinja").write_text("hello\n{% if %}")
    given = with_template(byte_tokenizer(), str(tmp_path / "chat.jinja"))
    with pytest.raises(
        JloraError, match=r"^chat\.jinja: expected a chat template in Jinja, found .* line 2: Expected an"
    ):
        chat_template(given, "chat.jinja")
    several = byte_tokenizer()
    several.chat_template = {"default": TEMPLATE, "tool_use": "{{ x|nofilter }}"}
    with pytest.raises(JloraError, match=r"^the model: .* line 1: No filter named 'nofilter'\. Correct the template"):
        chat_template(several)
