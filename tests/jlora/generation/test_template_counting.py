import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tests.jlora.generation.test_template_sandbox import rendered

EXPRESSIONS = [
    "1 < 2 < 3", "1 < 2 > 3", "3 == 3 != 4", "1 <= x >= 2", "'b' in 'abc'", "'b' not in 'abc'", "2 in [1, 2]",
    "'a' in {'a': 1}", "x is in [3]", "[1, 2] == [1, 2]", "(1, [2]) < (1, [3])", "none == missing", "missing in [1]",
    "'a' in missing", "{'a': [1]} == {'a': [1]}", "'x' in range(5) | map('string')", "2 in range(5) | select('even')",
    "x is odd and x is gt 2", "'ab' is lower", "range(6) | select('gt', 3) | list", "[3, 1] | sort | first",
    "['b', 'B', 'a'] | unique | list", "'a,b'.split(',')", "'{:>5}|{x}'.format(1, x='y')", "'{a}'.format_map({'a': 2})",
    "('<b>' | e) ~ '<'", "('<' | e) + '<'", "'%s' % ('<' | e)", "[[1], [2]] | sum(start=[])", "{'a': 1}.items() | list",
    "[1, 2, 3] | batch(2, 0) | list", "'a' ~ 1 ~ none", "'abc'[1:]", "[4, 5][-1]", "7 // 2 - 1 / 2 ** 1 % 3",
    "{2: 'a'}[2]", "[{'k': 1}, {'k': 0}] | map(attribute='k') | list",
    "[{'k': 2}] | selectattr('k', 'equalto', 2) | list", "' a '.strip() ~ ' a ' | trim", "'aXbX'.rsplit('X', 1)",
    "range(3) | reverse | list", "1.25 | round(1)",
]  # fmt: skip


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_what_is_counted_has_the_value_that_jinja_gives(expression):
    plain = ImmutableSandboxedEnvironment().from_string("{{ " + expression + " }}").render(x=3)
    assert rendered("{{ " + expression + " }}", x=3) == plain


LOOPS = [
    "{% for i in range(5) if i is odd %}{{ loop.index }}{{ i }}{% else %}none{% endfor %}",
    "{% for i in [] if i %}{% else %}none{% endfor %}",
    "{% for i in [1, [2, [3]]] recursive %}{{ loop(i) if i is sequence else i }}{% endfor %}",
    "{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{{ loop.changed(v) }}{{ loop.cycle('x', 'y') }}{% endfor %}",
    "{% macro f(a, b='c') %}{{ a }}{{ b }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ f(1, 2, 3, d=4) }}{{ f(*[5]) }}",
    "{% macro g() %}<{{ caller() }}>{% endmacro %}{% call g() %}x{% endcall %}",
    "{% block a %}{{ 1 }}{% endblock %}{{ self.a() }}",
    "{% set c = cycler('x', 'y') %}{{ c.next() }}{{ c.next() }}{% set j = joiner(', ') %}{{ j() }}a{{ j() }}b",
]


@pytest.mark.parametrize("template", LOOPS)
def test_loops_and_macros_write_what_jinja_writes(template):
    assert rendered(template) == ImmutableSandboxedEnvironment().from_string(template).render()
