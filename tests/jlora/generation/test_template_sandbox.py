import datetime

import pytest

from jlora.errors import JloraError
from jlora.generation.template_sandbox import compile_template, render
from tests.support.training.lm_data import CHAT, TAGGED, TEMPLATE, byte_tokenizer
from tests.train.lm.text.test_chat_templates import LONG, WITHOUT_OLD_THOUGHTS
from train.lm.text.chat_templates import chat_template
from train.lm.text.conversations import Conversation

DAY = datetime.date(2026, 11, 29)
FEATURES = (
    "{%- set ns = namespace(seen=false, text='') %}"
    "{% macro shown(x, function='f') %}<{{ x | trim | upper }}>{% endmacro %}"
    "{% for turn in messages[1:] if turn.role != 'tool' %}{% if loop.first %}{% set ns.seen = true %}{% endif %}"
    "{{ loop.index0 }}{{ shown(turn.content, function=1) }}{% set ns.text = ns.text ~ turn.role + '/' %}"
    "{% if loop.index > 5 %}{% break %}{% endif %}{% endfor %}{{ ns.text }}{{ ns.seen }}"
    "{{ messages | tojson }}{{ {'a': [1, none], 'b': (2, 'x' * 3)} | tojson(indent=2) }}{{ '%05d|%s' % (3, 'y') }}"
    "{{ 'a{}b'.format(1) }}{{ messages | map(attribute='role') | join(', ') }}{{ ', '.join(['p', 'q']) }}"
    "{% set block %}{{ bos_token }}{{ 2 ** 3 }}{% endset %}{{ block }}{{ 'abc'[::-1] }}{{ dict(a=1).a }}"
    "{{ messages[0].content.replace('e', 'EE').split('E') }}{{ range(3) | list }}{{ missing }}{{ none }}"
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ 7 // 2 }}{{ tools is none }}"
)


def rendered(source, **variables):
    return render(compile_template(source).template, {"messages": CHAT, **variables}, DAY).text


@pytest.mark.parametrize("template", [TEMPLATE, TAGGED, WITHOUT_OLD_THOUGHTS, FEATURES])
@pytest.mark.parametrize("call", [False, True])
def test_a_template_writes_what_transformers_writes(template, call):
    tokenizer = byte_tokenizer(template=template)
    turns = [turn | {"reasoning": "hm"} if turn["role"] == "assistant" else turn for turn in LONG]
    chat = Conversation(turns, 0, frozenset(), None, {}, "x")
    expected = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=call)
    assert chat_template(tokenizer).write(chat, turns, call=call).text == expected


def test_the_clock_stands_at_the_day_of_the_run():
    assert rendered("{{ strftime_now('%d %B %Y %H:%M:%S') }}") == "29 November 2026 00:00:00"


def test_the_names_of_a_template():
    names = compile_template("{{ a.b['c'] }}{% if 'd' in e.get('f') %}{{ g(h=1) }}{% endif %}i").names
    assert names >= set("abcdefgh")
    assert "i" not in names


WRONG = {
    "nothing": "{{ 1 / 0 }}",
    "range": "{{ range(10 ** 9) | list }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "an encoding": "{{ 'a'.encode('no such') }}",
    "a float": "{{ 10.0 ** 999 }}",
    "slices": "{{ [1] | slice(0) | list }}",
    "cycler": "{{ cycler() }}",
    "an index": "{{ '{}'.format_map({}) }}",
    "a key": "{{ '{a}'.format_map({}) }}",
    "half a character": "{{ '\\ud83d' }}",
    "raised": "{{ raise_exception('no system here') }}",
    "undefined": "{{ a.b.c }}",
    "a type": "{{ messages[0].content + 1 }}",
    "a template": "{% include 'x' %}",
    "private": "{{ messages.__class__ .mro() }}",
    "a namespace": "{% set n = namespace(_x=1) %}",
}


@pytest.mark.parametrize("template", [pytest.param(source, id=name) for name, source in WRONG.items()])
def test_whatever_a_template_raises_is_one_error_with_its_source(template):
    given = chat_template(byte_tokenizer(template=template), "chat.jinja")
    chat = Conversation(CHAT, 0, frozenset(), None, {}, "a.jsonl, data row 1")
    expected = r"^a\.jsonl, data row 1: .*the chat template of chat\.jinja "
    with pytest.raises(JloraError, match=expected):
        given.write(chat, CHAT)


NOT_COMPILED = {
    "no template": "{% for",
    "deep": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "nested": "{% for a in messages %}" * 40 + "{% endfor %}" * 40,
    "long": "{# " + "a" * 100_000 + " #}",
}


@pytest.mark.parametrize("template", [pytest.param(source, id=name) for name, source in NOT_COMPILED.items()])
def test_what_is_no_template_is_refused_before_a_row_is_read(template):
    expected = r"^chat\.jinja: expected a chat template in Jinja, found a mistake in it: .*\. Correct the template"
    with pytest.raises(JloraError, match=expected):
        chat_template(byte_tokenizer(template=template), "chat.jinja")
