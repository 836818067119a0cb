import datetime
import time

import jinja2
import pytest

from jlora.errors import JloraError
from jlora.generation import template_limits
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


AGAIN = "{{% set n = namespace(x='a') %}}{{% for i in range(99) %}}{}{{% endfor %}}"
GREEDY = {
    "a loop": "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
    "a loop that skips": "{% for a in range(100000) %}{% for b in range(100000) if false %}{% endfor %}{% endfor %}",
    "a macro": "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    "a recursive loop": "{% for x in [0] recursive %}{{ loop([0]) }}{{ loop([0]) }}{% endfor %}",
    "times": "{{ 'a' * 10 ** 12 }}",
    "times a list": "{{ [0] * 10 ** 12 }}",
    "a power": "{{ 10 ** (10 ** 9) }}",
    "a product": "{% set n = namespace(x=9) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "plus": AGAIN.format("{% set n.x = n.x + n.x %}"),
    "joined": AGAIN.format("{% set n.x = n.x ~ n.x %}"),
    "a block": AGAIN.format("{% set n.x %}{{ n.x }}{{ n.x }}{% endset %}"),
    "lists in lists": AGAIN.format("{% set n.x = [n.x, n.x] %}"),
    "objects in objects": AGAIN.format("{% set n.x = dict(a=n.x, b=n.x) %}"),
    "center": "{{ 'a'.center(10 ** 12) }}",
    "the filter center": "{{ 'a' | center(10 ** 12) }}",
    "zfill": "{{ '1'.zfill(10 ** 12) }}",
    "indent": "{{ ('a\n' * 9999) | indent(99999) }}",
    "replace": "{{ ('a' * 99999).replace('a', 'b' * 99999) }}",
    "the filter replace": "{{ ('a' * 99999) | replace('a', 'b' * 99999) }}",
    "join": "{{ ('b' * 99999).join('a' * 99999) }}",
    "the filter join": "{{ range(99999) | map('string') | join('b' * 99999) }}",
    "a width": "{{ '%1000000000d' % 1 }}",
    "a width that is given": "{{ '%*d' % (10 ** 12, 1) }}",
    "a format": "{{ '{:1000000000}'.format(1) }}",
    "format_map": "{{ '{a:1000000000}'.format_map({'a': 1}) }}",
    "a filter's format": "{{ '%1000000000d' | format(1) }}",
    "slice": "{{ [1] | slice(10 ** 12) | list }}",
    "batch": "{{ [1] | batch(10 ** 12, 0) | list }}",
    "tojson": "{{ [[1], [2]] | tojson(indent=10 ** 12) }}",
    "bytes": "{{ (1).to_bytes(10 ** 12) }}",
    "expandtabs": "{{ ('\t' * 9999).expandtabs(99999) }}",
    "text": "{% for i in range(100000) %}" + "word " * 1000 + "{% endfor %}",
    "text in a block": "{% set x %}{% for i in range(100000) %}" + "word " * 1000 + "{% endfor %}{% endset %}",
}


@pytest.mark.parametrize("template", [pytest.param(source, id=name) for name, source in GREEDY.items()])
def test_a_template_that_takes_too_much_is_ended(template, monkeypatch):
    monkeypatch.setattr(template_limits, "MOST_STEPS", 100_000)
    monkeypatch.setattr(template_limits, "MOST_SIZE", 1_000_000)
    begin = time.process_time()
    with pytest.raises((jinja2.TemplateError, RecursionError)):
        rendered(template)
    assert time.process_time() - begin < 3


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
    "no template": "{% for",
    "deep": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "nested": "{% for a in messages %}" * 40 + "{% endfor %}" * 40,
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
    with pytest.raises(JloraError, match=r"^a\.jsonl, data row 1: .*the chat template of chat\.jinja "):
        given.write(chat, CHAT)
