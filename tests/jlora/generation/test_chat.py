import pytest

from jlora.errors import JloraError
from jlora.generation.chat import chat_ids
from tests.support.training.lm_data import CHAT, TEMPLATE, byte_tokenizer


def test_the_prompt_ends_where_the_models_turn_begins():
    tokenizer = byte_tokenizer(template=TEMPLATE)
    expected = tokenizer.apply_chat_template(CHAT[:1], add_generation_prompt=True, return_dict=False)
    assert chat_ids(tokenizer, CHAT[:1]) == expected


def test_tools_are_given_to_the_template():
    tokenizer = byte_tokenizer(template="{{ tools[0].name }}{{ messages | length }}")
    assert tokenizer.decode(chat_ids(tokenizer, CHAT, tools=[{"name": "add"}])) == f"add{len(CHAT)}"


def test_what_cannot_be_written_is_refused():
    with pytest.raises(JloraError, match=r"^messages: expected a tokenizer with a chat template, found none"):
        chat_ids(byte_tokenizer(template=None), CHAT)
    with pytest.raises(JloraError, match=r"^--chat: the chat template of the model refuses this chat: no tools here"):
        chat_ids(byte_tokenizer(template="{{ raise_exception('no tools here') }}"), CHAT, where="--chat")


@pytest.mark.parametrize(
    ("template", "mistake"),
    [
        ("hello\n{% if %}", r"line 2: Expected an expression"),
        ("{{ messages|nofilter }}", r"line 1: No filter named 'nofilter'"),
        ("{{ messages }", r"line 1: unexpected '}'"),
    ],
)
def test_a_template_that_is_not_jinja_is_called_that(template, mistake):
    expected = rf"^--chat: the model: expected a chat template in Jinja, found a mistake in it: {mistake}.* Correct the"
    with pytest.raises(JloraError, match=expected):
        chat_ids(byte_tokenizer(template=template), CHAT, where="--chat")
