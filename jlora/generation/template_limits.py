"""Jinja's sandbox with limits of steps and size, since a chat template is an untrusted program.

A step is an iteration of a loop, a call, a filter or an operator. The size counts the characters and entries of each
step's result. It is checked in advance if the result may be larger than the input: `"a" * 10**12` is never computed.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MOST_STEPS = 5_000_000
MOST_SIZE = 50_000_000
_MOST_BITS = 10_000
_LONG_NUMBER = re.compile(r"[0-9]{6}")
_PADS = {"center", "ljust", "rjust", "zfill", "to_bytes", "batch", "slice", "truncate"}
_MAKES_TEXT = {
    "capitalize", "center", "e", "escape", "forceescape", "format", "indent", "join", "lower", "pprint", "replace",
    "safe", "string", "striptags", "title", "tojson", "trim", "truncate", "upper", "urlencode", "urlize", "wordcount",
    "wordwrap", "xmlattr",
}  # fmt: skip
"""Filters that read a whole list or object at once, not entry by entry."""


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """Raises jinja2.TemplateError if a template exceeds the limits MOST_STEPS and MOST_SIZE.

    Call `restart` before each rendering: it sets `steps` and `size`, the sums so far, to 0. `spend(steps, size)` adds
    to them.
    """

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, **options: Any) -> None:
        super().__init__(finalize=self.count_output, **options)
        self.restart()
        self.filters = {name: self._count_calls(name, function) for name, function in self.filters.items()}
        self.globals.pop("lipsum")  # makes random text of any length

    def restart(self) -> None:
        self.steps = self.size = 0

    def spend(self, steps: int = 0, size: int = 0) -> None:
        self.steps += steps
        self.size += size
        if self.steps > MOST_STEPS:
            raise jinja2.TemplateError(f"it takes more than {MOST_STEPS:,} steps")
        if self.size > MOST_SIZE:
            raise jinja2.TemplateError(f"it makes more than {MOST_SIZE:,} characters")

    def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        method = getattr(function, "__wrapped__", function)
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if owner is self:
            return function(*args)  # Jinja adds names of its own to kwargs
        if name == "join" and isinstance(owner, str | bytes) and args:
            args = (list(self.each(args[0])), *args[1:])
        self.spend(1, _growth(name, owner, [*args, *kwargs.values()]))
        result = super().call(context, function, *args, **kwargs)
        self.spend(size=_size(result) if isinstance(result, str | bytes | list | dict) else 0)
        return result

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        numbers = isinstance(left, int) and isinstance(right, int)
        size = 0
        if operator == "**" and numbers:
            _require_few_bits(left.bit_length() * max(right, 0))
        elif operator == "*" and numbers:
            _require_few_bits(left.bit_length() + right.bit_length())
        elif operator == "*":
            number, value = (left, right) if isinstance(left, int) else (right, left)
            size = _length(value) * number if isinstance(number, int) else 0
        elif operator == "%" and isinstance(left, str | bytes):
            size = _growth("format", left, list(right) if isinstance(right, tuple) else [right])
        elif operator == "+":
            size = _length(left) + _length(right)
        self.spend(1, max(size, 0))
        return super().call_binop(context, operator, left, right)

    def concat(self, parts: Iterable[str]) -> str:
        """Joins and counts the output of a macro or a block."""
        pieces = list(parts)
        self.spend(size=sum(map(len, pieces)))
        return "".join(pieces)

    def step(self) -> None:
        """Counts an iteration of a loop, or a call of a macro."""
        self.spend(1)

    def each(self, values: Any) -> Any:
        """Returns the values of a loop, and counts their number."""
        if hasattr(values, "__len__"):
            self.spend(len(values))
            return values
        return self._one_by_one(values)

    def join(self, *values: Any) -> str:
        """Computes and counts `a ~ b`."""
        self.spend(1, sum(map(_size, values)))
        return "".join(map(str, values))

    def slice(self, value: Any, start: Any, stop: Any, step: Any) -> Any:
        """Computes and counts `a[1:2]`."""
        part = value[start:stop:step]
        self.spend(1, _length(part))
        return part

    def count_literal(self, value: Any) -> Any:
        """Counts a list or object literal."""
        self.spend(1, _size(value))
        return value

    def count_output(self, value: Any) -> Any:
        """Counts the output of `{{ value }}`."""
        self.spend(1, _size(value))
        return value

    def _one_by_one(self, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self.spend(1)
            yield value

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return _Counting().visit(super()._parse(source, name, filename))

    def _count_calls(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        first = 1 if hasattr(function, "jinja_pass_arg") else 0

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            if name == "join" and len(args) > first:
                args = (*args[:first], list(self.each(args[first])), *args[first + 1 :])
            value, rest = args[first] if len(args) > first else "", [*args[first + 1 :], *kwargs.values()]
            size = _size(value) if name in _MAKES_TEXT else 0
            self.spend(1, size + _growth(name, value, rest))
            result = function(*args, **kwargs)
            self.spend(size=_length(result))
            return result

        return run


class _Counting(NodeTransformer):
    """Wraps what Jinja compiles to plain Python in the environment's counting functions."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _call("each", node.iter)
        return _with_step(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return _with_step(self.generic_visit(node))

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call("join", *node.nodes)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        edges = (node.arg.start, node.arg.stop, node.arg.step)
        return _call("slice", node.node, *(edge or nodes.Const(None) for edge in edges))

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return node if all(isinstance(item, nodes.Const) for item in node.items) else _call("count_literal", node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        is_plain = node.ctx != "load" or all(isinstance(item, nodes.Const) for item in node.items)
        return node if is_plain else _call("count_literal", node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return _call("count_literal", node)


def _call(name: str, *args: Any) -> nodes.Call:
    line = args[0].lineno if args else 1
    return nodes.Call(nodes.EnvironmentAttribute(name), list(args), [], None, None, lineno=line)


def _with_step(node: Any) -> nodes.Node:
    node.body.insert(0, nodes.ExprStmt(_call("step"), lineno=node.lineno))
    return node


def _require_few_bits(bits: int) -> None:
    if bits > _MOST_BITS:
        raise jinja2.TemplateError(f"it computes a number of more than {_MOST_BITS:,} bits")


def _growth(name: str, value: Any, args: list[Any]) -> int:
    """Returns an upper bound of how much larger the result of a filter or method is than its input."""
    numbers = sum(abs(arg) for arg in args if isinstance(arg, int))
    words = [arg for arg in args if isinstance(arg, str | bytes)]
    if name in _PADS:
        return numbers
    if name in ("indent", "expandtabs", "wordwrap"):
        breaks = _length(value) if name != "indent" else _count(value, "\n") + 1
        return breaks * (sum(map(len, words)) + (numbers if name != "wordwrap" else 0))
    if name == "tojson" and (numbers or words):
        return _size(value) * (numbers + sum(map(len, words)))
    if name == "replace" and len(words) > 1:
        return _count(value, words[0]) * len(words[1])
    if name == "translate":
        return _length(value) * sum(map(_size, args))
    if name == "join":
        parts, between = (args[0], value) if isinstance(value, str | bytes) and args else (value, (words or [""])[0])
        return sum(map(_size, parts)) + len(between) * _length(parts)
    if name in ("format", "format_map"):
        if _LONG_NUMBER.search(value if isinstance(value, str) else ascii(value)):
            raise jinja2.TemplateError("it formats with a width of more than five digits")
        fields = _count(value, "%") + _count(value, "{")
        return numbers + fields * sum(map(_size, args))
    return 0


def _count(value: Any, part: Any) -> int:
    """Counts how often the part is in the text."""
    if isinstance(value, bytes) and isinstance(part, str):
        part = part.encode()
    is_countable = isinstance(value, str | bytes) and isinstance(part, type(value))
    return value.count(part) if is_countable else _length(value)


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str | bytes | list | tuple | dict) else 0


def _size(value: Any, known: dict[int, int] | None = None) -> int:
    """Estimates the characters of the written value; a shared part counts each time that it appears."""
    if isinstance(value, str | bytes):
        return len(value)
    if not isinstance(value, list | tuple | dict):
        return 8
    known = {} if known is None else known
    if id(value) not in known:
        parts = value if not isinstance(value, dict) else [*value, *value.values()]
        known[id(value)] = 2 + sum(_size(part, known) + 2 for part in parts)
    return known[id(value)]
