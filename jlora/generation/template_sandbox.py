"""The Jinja environment of chat templates: transformers' sandbox with limits and a fixed day.

Its filters and functions are those of `PreTrainedTokenizer.apply_chat_template`, except that `strftime_now` gives
midnight of the run's day: the same chat must have the same tokens when a run is resumed.
"""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jinja2
import jinja2.ext
from jinja2 import nodes

from jlora.files.limits import LONGEST_TEMPLATE
from jlora.generation.template_limits import STEP, LimitedEnvironment
from jlora.generation.template_sizes import estimate_hashing

Span = tuple[int, int]
"""(index of the first character, index after the last)."""


class Rendered(NamedTuple):
    """A rendered text.

    Attributes:
      text: the text.
      generated: the spans in it between `{% generation %}` and `{% endgeneration %}`, in order.
    """

    text: str
    generated: tuple[Span, ...]


class Compiled(NamedTuple):
    """A compiled template.

    Attributes:
      template: what `render` takes.
      names: the names in it: variables, attributes, keywords and text constants: `{{ user.name }}` has "user" and
        "name".
    """

    template: jinja2.Template
    names: frozenset[str]


@functools.lru_cache(maxsize=8)
def compile_template(source: str) -> Compiled:
    """Compiles the text of a Jinja template, in which `{% generation %}` is a tag too.

    Raises:
      jinja2.TemplateSyntaxError: `source` is not a template, or has more than 100,000 characters. Python's compiler may
        raise exceptions of other types.
    """
    if len(source) > LONGEST_TEMPLATE:
        raise jinja2.TemplateSyntaxError(f"it has {len(source):,} characters; expected at most {LONGEST_TEMPLATE:,}", 1)
    environment = _Environment()
    tree = environment.parse(source)
    names = {node.name for node in tree.find_all(nodes.Name)} | {node.attr for node in tree.find_all(nodes.Getattr)}
    names |= {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)}
    names |= {node.key for node in tree.find_all(nodes.Keyword)}
    return Compiled(environment.from_string(tree), frozenset(names))


def render(template: jinja2.Template, variables: Mapping[str, Any], day: datetime.date) -> Rendered:
    """Renders the template.

    Args:
      template: `compile_template(source).template`.
      variables: {name: value} that it can read.
      day: what `strftime_now(format)` in the template formats, at midnight.

    Raises:
      jinja2.TemplateError: the template calls `raise_exception`, or takes more work than `template_limits.MOST_WORK`.
        Its expressions may raise exceptions of any other type.
    """
    environment: Any = template.environment
    environment.begin(day)
    for piece in template.generate(**variables):
        environment.pieces.append(piece)
        environment.length += len(piece)
        environment.spend(STEP + len(piece))
    return Rendered("".join(environment.pieces), tuple(environment.generated))


class _Environment(LimitedEnvironment):
    """The environment of one template; `begin` starts a rendering."""

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
        self.filters["tojson"] = self.count_filter("tojson", _tojson)
        self.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": lambda form: _format_day(self.day, form),
            "dict": _Dict(self.spend),
            "namespace": _Namespace,
        }
        self.begin(datetime.date.min)

    def begin(self, day: datetime.date) -> None:
        self.restart()
        self.day = day
        self.pieces: list[str] = []
        self.length = 0
        self.generated: list[Span] = []


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`: marks the text of the assistant."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: jinja2.parser.Parser) -> nodes.CallBlock:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_mark"), [], [], body, lineno=line)

    def _mark(self, caller: Callable[[], str]) -> str:
        text, environment = caller(), self.environment
        environment.generated.append((environment.length, environment.length + len(text)))  # type: ignore[attr-defined]
        return text


class _Dict:
    """`dict` without the attributes of the type."""

    def __init__(self, spend: Callable[[int], None]) -> None:
        self._spend = spend

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        self._spend(sum(map(estimate_hashing, args)))
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        self._spend(sum(map(estimate_hashing, args[:1])))
        return dict.fromkeys(*args)


class _Namespace(jinja2.utils.Namespace):
    """`namespace` without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # a template may call `namespace(self=...)`
        self, given = args[0], dict(*args[1:], **kwargs)
        for name in given:
            _require_plain(name)
        jinja2.utils.Namespace.__init__(self, given)

    def __setitem__(self, name: str, value: Any) -> None:
        _require_plain(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<namespace>"  # it may contain itself


def _require_plain(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace has no names with a leading underscore, such as {name!r}")


def _format_day(day: datetime.date, form: str) -> str:
    if len(form) > 1000:  # C's function may need hundreds of times its length
        raise jinja2.TemplateError("it formats the day with more than 1,000 characters")
    return datetime.datetime.combine(day, datetime.time()).strftime(form)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Writes JSON without the HTML escapes of Jinja's own filter."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
