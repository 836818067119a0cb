import time

import jinja2
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from jlora.errors import JloraError
from jlora.generation import template_limits
from jlora.generation.template_sandbox import compile_template
from tests.jlora.generation.test_template_sandbox import rendered
from tests.support.training.lm_data import CHAT, byte_tokenizer
from train.lm.text.chat_templates import chat_template
from train.lm.text.conversations import Conversation

AGAIN = "{{% set n = namespace(x='a') %}}{{% for i in range(99) %}}{}{{% endfor %}}"
LONG, LIST = "{% set s = 'a' * 300000 %}", "{% set l = [0] * 30000 %}{% set m = [0] * 30000 %}"
SAME = "{% set p = 2 ** 61 - 1 %}{% set d = dict.fromkeys(range(0, 1999 * p, p)) %}"  # their hashes are equal
NESTED = AGAIN.format("{% set n.x = [n.x] | batch(2, n.x) | list %}")


def _often(body, before=""):
    return before + "{% for i in range(100000) %}{% for j in range(100000) %}" + body + "{% endfor %}{% endfor %}"


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
    "count": _often("{% if s.count('ab') %}{% endif %}", LONG),
    "find": _often("{% if s.find('ab') %}{% endif %}", LONG),
    "in a text": _often("{% if 'ab' in s %}{% endif %}", LONG),
    "find from the end": "{% set s = 'a' * 400000 %}{{ s.rfind('b' ~ 'a' * 200000) }}",
    "strip": "{% set s = 'a' * 400000 %}{{ s.strip('b' * 200000 ~ 'a') }}",
    "equal texts": _often("{% if s == t %}{% endif %}", LONG + "{% set t = 'a' * 300000 %}"),
    "is equal": _often("{% if s is eq t %}{% endif %}", LONG + "{% set t = 'a' * 300000 %}"),
    "a key": _often("{% if d[t] %}{% endif %}", LONG + "{% set t = 'a' * 300000 %}{% set d = {s: 1} %}"),
    "upper": _often("{% if s | upper %}{% endif %}", LONG),
    "is lower": _often("{% if s is lower %}{% endif %}", LONG),
    "equal lists": _often("{% if l == m %}{% endif %}", LIST),
    "in a list": _often("{% if 1 in l %}{% endif %}", LIST),
    "in a generator": _often("{% if 'x' in range(100000) | select %}{% endif %}"),
    "list.count": _often("{% if l.count(1) %}{% endif %}", LIST),
    "selected": _often("{% if [l] | select('equalto', m) | list %}{% endif %}", LIST),
    "first of many": _often("{% if range(100000) | reject('integer') | first %}{% endif %}"),
    "sort": _often("{% if l | sort %}{% endif %}", LIST),
    "unique": _often("{% if l | unique | list %}{% endif %}", LIST),
    "sum": "{{ ([[0] * 10] * 20000) | sum(start=[]) | length }}",
    "split": "{% set s = 'a ' * 400000 %}{{ s.split() | length }}",
    "splitlines": "{% set s = '\x0b' * 400000 %}{{ s.splitlines() | length }}",
    "join of attributes": "{% set n = namespace(x='a' * 99999) %}{{ ([n] * 9999) | join(attribute='x') | length }}",
    "wordwrap": "{{ ('a' * 300000) | wordwrap(1) | length }}",
    "striptags": "{{ ('<!--' * 99999) | striptags | length }}",
    "punycode": "{{ ('\u00e9\u4e00' * 99999).encode('punycode') | length }}",
    "round": "{{ 1 | round(-10 ** 9) }}",
    "a number from bytes": "{{ (1).from_bytes(('a' * 99999).encode(), 'big') }}",
    "a width from a list": "{{ '{0:{1[0]}}'.format(1, [10 ** 10]) }}",
    "a width in other digits": "{{ '{:\u0661\u0660\u0660\u0660\u0660\u0660\u0660\u0660}'.format(1) }}",
    "many widths": "{{ (('%99999d' * 9999) | format(*[1] * 9999)) | length }}",
    "equal hashes": "{% set p = 2 ** 61 - 1 %}{{ range(0, 99999 * p, p) | unique | list | length }}",
    "equal hashes of keys": "{% set p = 2 ** 61 - 1 %}{{ {}.fromkeys(range(0, 99999 * p, p)) | length }}",
    "a key of equal hashes": _often("{% if d.get(-p) %}{% endif %}", SAME),
    "views": _often("{% if d.keys() - d.keys() %}{% endif %}", SAME),
    "a hidden doubling": NESTED + NESTED.replace("n.x", "m.x").replace("n =", "m =") + "{{ n.x == m.x }}",
    "a macro without output": "{% macro f(n) %}{% if n and f(n - 1) ~ f(n - 1) %}{% endif %}{% endmacro %}{{ f(60) }}",
    "a large condition": "{% for x in range(100000) if " + "(x and x) or " * 2000 + "x < 0 %}{% endfor %}",
    "many variables": "".join(f"{{% set v{i} = 1 %}}" for i in range(1000))
    + _often("{% block b scoped %}{% endblock %}"),
    "keywords": _often(
        "{% if f(**d) %}{% endif %}",
        "{% set d = dict.fromkeys(range(9999) | map('string')) %}{% macro f() %}{{ kwargs }}{% endmacro %}",
    ),
    "the day": "{{ strftime_now('%99999c' * 99999) }}",
}


@pytest.mark.parametrize("template", [pytest.param(source, id=name) for name, source in GREEDY.items()])
def test_a_template_that_takes_too_much_is_ended(template, monkeypatch):
    monkeypatch.setattr(template_limits, "MOST_TEMPLATE_WORK", 1_000_000)
    begin = time.process_time()
    with pytest.raises((jinja2.TemplateError, RecursionError)):
        rendered(template)
    assert time.process_time() - begin < 3


TOOLS = (
    "{%- if messages[0].role == 'system' %}{{- messages[0].content + '\n' }}{%- endif %}"
    "{% set ns = namespace(searching=true, last=messages|length - 1) %}"
    "{%- for m in messages[::-1] %}{%- set index = (messages|length - 1) - loop.index0 %}"
    "{%- if ns.searching and m.role == 'user' and not m.content.startswith('<tool>') %}"
    "{%- set ns.searching = false %}{%- set ns.last = index %}{%- endif %}{%- endfor %}"
    "{%- for m in messages %}{%- if m.content is string %}{%- set content = m.content %}{%- endif %}"
    "{%- if '</think>' in content %}{%- set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1] %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}"
    "{{- '<|im_start|>' + m.role + '\n' + content | trim + '<|im_end|>' }}"
    "{%- for call in m.tool_calls or [] %}{{- call.arguments | tojson }}{%- endfor %}"
    "{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '\n' }}{%- endif %}{%- endfor %}"
)


def test_a_long_chat_is_written():
    """A million characters in a thousand turns, with what the templates of Qwen, Llama and Hermes do."""
    turn = {
        "role": "assistant",
        "content": "<think>\nhm\n</think>\n" + "so " * 330,
        "tool_calls": [{"arguments": {"a": 1}}],
    }
    messages = [{"role": "user", "content": "why? " * 200}, turn] * 500
    plain = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(TOOLS)
    expected = plain.render(messages=messages).replace("&#34;", '"')
    assert rendered(TOOLS, messages=messages) == expected
    assert compile_template(TOOLS).template.environment.work < template_limits.MOST_TEMPLATE_WORK / 2


def test_the_error_names_the_template_and_what_to_do():
    given = chat_template(byte_tokenizer(template=GREEDY["times"]), "chat.jinja")
    with pytest.raises(JloraError, match=r"^x: the chat template of chat\.jinja refuses .*it takes too long.*Shorten"):
        given.write(Conversation(CHAT, 0, frozenset(), None, {}, "x"), CHAT)


def test_every_rendering_may_spend_the_same():
    template = "{% for i in range(1000) %}{{ i }}{% endfor %}"
    work = []
    for _ in range(2):
        rendered(template)
        work.append(compile_template(template).template.environment.work)
    assert work[0] == work[1] > 1000 * template_limits.STEP
