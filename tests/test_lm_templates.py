import pytest
from lm_data import CHAT, TAGGED, TEMPLATE, byte_tokenizer, real_tokenizer

from jlora.errors import JloraError
from train.lm.templates import Chat, require_template, with_template, write_chat

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


def spoken(chat):
    return [chat.text[start:end] for start, end in chat.answers]


def test_a_chat_is_written_by_the_template():
    chat = write_chat(LONG, None, byte_tokenizer(), "x", answers=True)
    text = "<start>[system]Be brief.<end>\n[user]Hi<end>\n[assistant]Ho<end>\n[user]How?<end>\n[assistant]<end>\n"
    assert chat.text == text
    assert spoken(chat) == ["Ho<end>", "<end>"]
    assert chat.text[: chat.prompt] == "<start>[system]Be brief.<end>\n[user]Hi<end>\n[assistant]"
    assert write_chat(LONG, None, byte_tokenizer(), "x", answers=False) == Chat(text, (), chat.prompt)


def test_a_chat_without_an_answer_is_all_prompt():
    chat = write_chat(CHAT[:1], None, byte_tokenizer(), "x", answers=False)
    assert chat.prompt == len(chat.text)


def test_the_answers_of_the_real_template_are_content_and_end_token():
    chat = write_chat(LONG[1:4] + CHAT[1:], None, real_tokenizer(), "x", answers=True)
    assert spoken(chat) == ["Ho<|im_end|>", "Ho<|im_end|>"]
    assert chat.text[: chat.prompt].endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


def test_generation_tags_say_what_transformers_says():
    tokenizer = byte_tokenizer(template=TAGGED)
    chat = write_chat(LONG, None, tokenizer, "x", answers=True)
    encoded = tokenizer.apply_chat_template(LONG, return_dict=True, return_assistant_tokens_mask=True)
    learnt = [any(start <= i < end for start, end in chat.answers) for i in range(len(chat.text))]
    in_bytes = tokenizer(chat.text, return_offsets_mapping=True, add_special_tokens=False)["offset_mapping"]
    assert [int(learnt[start]) for start, _ in in_bytes] == encoded["assistant_masks"]
    assert spoken(chat) == ["Ho<end>", "<end>"]


def test_tools_reach_the_template():
    tokenizer = byte_tokenizer(template="{% if tools %}{{ tools[0].name }} {% endif %}" + TEMPLATE)
    assert write_chat(CHAT, [{"name": "clock"}], tokenizer, "x", answers=True).text.startswith("clock <start>[user]")
    assert write_chat(CHAT, None, tokenizer, "x", answers=True).text.startswith("<start>[user]")


def test_a_template_may_leave_out_empty_thoughts_but_no_words():
    tokenizer = byte_tokenizer(template=WITHOUT_OLD_THOUGHTS)
    two = [*CHAT, {"role": "user", "content": "How?"}, {"role": "assistant", "content": "So"}]
    assert spoken(write_chat(two, None, tokenizer, "x", answers=True)) == ["Ho<end>", "<think></think>So<end>"]
    two[1] = {"role": "assistant", "content": "<think>Hm</think>Ho"}
    with pytest.raises(
        JloraError, match=r"^x, turn 2: expected a chat template that .* leaves earlier turns as they are"
    ):
        write_chat(two, None, tokenizer, "x", answers=True)
    assert write_chat(two, None, tokenizer, "x", answers=False).text.count("think") == 2


def test_a_template_that_writes_the_beginning_anew_is_refused():
    tokenizer = byte_tokenizer(template="{{ 'A' if messages|length < 3 else 'B' }}" + TEMPLATE)
    assert spoken(write_chat(CHAT, None, tokenizer, "x", answers=True)) == ["Ho<end>"]
    with pytest.raises(JloraError, match=r"^x, turn 2: expected a chat template that"):
        write_chat([*CHAT, *CHAT], None, tokenizer, "x", answers=True)


def test_a_generation_prompt_that_the_chat_does_not_go_on_from_is_refused():
    tokenizer = byte_tokenizer(template=TEMPLATE.replace("[assistant]{% endif", "[assistant]<think>{% endif"))
    with pytest.raises(JloraError, match=r"^x, turn 2: .*\{% generation %\}.*data\.chat_template"):
        write_chat(CHAT, None, tokenizer, "x", answers=True)
    chat = write_chat(CHAT, None, tokenizer, "x", answers=False)
    assert chat.text[: chat.prompt] == "<start>[user]Hi<end>\n[assistant]"


@pytest.mark.parametrize(
    ("template", "error"),
    [
        ("{{ raise_exception('no system here') }}", "no system here"),
        ("{% for", "Unexpected end of template|unexpected"),
        ("{{ messages[0].content + 1 }}", "concatenate"),
    ],
)
def test_what_the_template_refuses_is_said_with_the_row(template, error):
    with pytest.raises(JloraError, match=rf"^x: the chat template refuses this chat: .*({error})"):
        write_chat(CHAT, None, byte_tokenizer(template=template), "x", answers=True)


def test_a_tokenizer_needs_a_template():
    require_template(byte_tokenizer())
    with pytest.raises(
        JloraError, match=r"^the model: expected a tokenizer with a chat template.*data\.chat_template="
    ):
        require_template(byte_tokenizer(template=None))


def test_a_file_gives_a_template_to_a_copy(tmp_path):
    bare = byte_tokenizer(template=None)
    (tmp_path / "chat.jinja").write_text(TAGGED)
    given = with_template(bare, str(tmp_path / "chat.jinja"))
    assert (given.chat_template, bare.chat_template) == (TAGGED, None)
    assert with_template(bare, None) is bare
    with pytest.raises(JloraError, match=r"chta\.jinja: no such file.*nearest: chat\.jinja"):
        with_template(bare, str(tmp_path / "chta.jinja"))
    with pytest.raises(JloraError, match=r"^data\.chat_template=.*: expected a Jinja file; found"):
        with_template(bare, str(tmp_path))
