"""Jinja's sandbox with a limit of work, since a chat template is an untrusted program.

Each operation is estimated from its operands before it is done (see `template_work`): `"a" * 10**12` is never computed.
The sum is the same on every machine, so that a chat that is written on one is written on all.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from jinja2 import nodes
from jinja2.runtime import BlockReference, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedEscapeFormatter, SandboxedFormatter
from markupsafe import Markup

from jlora.files.limits import MOST_TEMPLATE_WORK
from jlora.generation import template_sizes as sizes
from jlora.generation import template_work as work
from jlora.generation.template_counting import CountingCalls

STEP = 20
_CALL = 100
_MACRO = 150
_FILTER = 60
_OPERATION = 30
_LOOK_UP = 70
_ADDED_BY_JINJA = {"_loop_vars", "_block_vars"}
_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "lteq": operator.le, "gt": operator.gt,
    "gteq": operator.ge, "in": lambda left, right: left in right, "notin": lambda left, right: left not in right,
}  # fmt: skip
_COMPARING_TESTS = {
    "in", "==", "eq", "equalto", "!=", "ne", ">", "gt", "greaterthan", "ge", ">=", "<", "lt", "lessthan", "<=", "le",
}  # fmt: skip
_READS_ALL = {*work.SORTING_FILTERS, "join", "urlencode"}
_READS_SOME = {"batch", "first", "list", "map", "reject", "rejectattr", "reverse", "select", "selectattr", "slice"}


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """Raises jinja2.TemplateError if the work of a template exceeds MOST_TEMPLATE_WORK.

    Call `restart` before each rendering: it sets `work`, the sum so far, to 0. `spend(units)` adds to it.
    """

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self, **options: Any) -> None:
        super().__init__(finalize=self.count_output, **options)
        self.restart()
        self.filters = {name: self.count_filter(name, function) for name, function in self.filters.items()}
        self.tests = {name: self._count_test(name, function) for name, function in self._tests()}
        self.globals.pop("lipsum")  # makes random text of any length

    def _tests(self) -> Any:
        return self.tests.items()

    def restart(self) -> None:
        self.work = 0

    @property
    def left(self) -> int:
        """The units that the template may still spend."""
        return MOST_TEMPLATE_WORK - self.work

    def spend(self, units: int) -> None:
        self.work += units
        if self.work > MOST_TEMPLATE_WORK:
            sizes.raise_too_much()

    def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        method = getattr(function, "__wrapped__", function)
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if owner is self:
            return function(*args)
        if isinstance(function, Macro | LoopContext | BlockReference):
            self.spend(_MACRO + len(args) + sizes.ENTRY * len(kwargs))
        elif isinstance(function, type):
            self.spend(_CALL + sum(sizes.measure_shallow(arg) for arg in [args, *args]) + sizes.ENTRY * len(kwargs))
        else:
            args = tuple(list(self.each(arg)) if _is_iterator(arg) else arg for arg in args)
            given = [*args, *(kwargs[name] for name in kwargs if name not in _ADDED_BY_JINJA)]
            self.spend(_CALL + len(given) + work.estimate_method(name, owner, given, self.left))
        result = super().call(context, function, *args, **kwargs)
        self._count_result(result)
        return result

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        self.spend(STEP + work.estimate_operator(operator, left, right, self.left))
        return super().call_binop(context, operator, left, right)

    def getattr(self, obj: Any, attribute: str) -> Any:
        self.spend(_LOOK_UP)
        return self._count_missing(super().getattr(obj, attribute))

    def getitem(self, obj: Any, argument: Any) -> Any:
        self.spend(_LOOK_UP + work.estimate_key(obj, argument, self.left))
        value = self._count_missing(super().getitem(obj, argument))
        if not isinstance(obj, dict | list | tuple | str):
            self.spend(sizes.measure(value, self.left))  # such as loop["previtem"], which no estimate has seen
        return value

    def wrap_str_format(self, value: Any) -> Any:
        """Returns `str.format` and `str.format_map` with each field counted; returns None for any other value."""
        if super().wrap_str_format(value) is None:
            return None
        text, is_map = value.__self__, value.__name__ == "format_map"
        formatter: Any = _EscapeFormatter(self, escape=text.escape) if isinstance(text, Markup) else _Formatter(self)

        def run(*args: Any, **kwargs: Any) -> str:
            if is_map:
                (kwargs,), args = args, ()
            return type(text)(formatter.vformat(text, args, kwargs))

        return functools.update_wrapper(run, value)

    def concat(self, parts: Iterable[str]) -> str:
        """Joins and counts the output of a macro or a block."""
        pieces = list(parts)
        self.spend(sum(map(len, pieces)))
        return "".join(pieces)

    def step(self, nodes: int) -> bool:
        """Counts one run through the body of a loop or macro, which has that many nodes. Returns True."""
        self.spend(STEP + (nodes >> 2))
        return True

    def each(self, values: Any) -> Any:
        """Returns the values of a loop, and counts their number."""
        if hasattr(values, "__len__"):
            self.spend(STEP + len(values))
            return values
        return self._one_by_one(values)

    def compare(self, names: tuple[str, ...], *values: Any) -> Any:
        """Computes and counts `a < b`, or `a < b < c`: names ("lt", "lt"), values a, b and c."""
        result: Any = True
        for left, name, right in zip(values, names, values[1:], strict=False):
            right = self._one_by_one(right) if _is_iterator(right) else right
            self.spend(_OPERATION + work.estimate_comparison(name, left, right, self.left))
            result = _COMPARISONS[name](left, right)
            if not result:
                break
        return result

    def join(self, *values: Any) -> str:
        """Computes and counts `a ~ b`."""
        self.spend(_OPERATION + sum(sizes.measure(value, self.left) for value in values))
        return "".join(map(str, values))

    def slice(self, value: Any, start: Any, stop: Any, step: Any) -> Any:
        """Computes and counts `a[1:2]`."""
        part = value[start:stop:step]
        self.spend(STEP + sizes.measure_shallow(part))
        return part

    def count_literal(self, value: Any) -> Any:
        """Counts a list or object literal."""
        self.spend(STEP + sizes.measure(value, self.left))
        return value

    def count_output(self, value: Any) -> Any:
        """Counts the output of `{{ value }}`."""
        self.spend(STEP + sizes.measure(value, self.left))
        return value

    def count_filter(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Returns the filter of this name with its work counted."""
        first = 1 if hasattr(function, "jinja_pass_arg") else 0

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            value = args[first] if len(args) > first else ""
            if name in _READS_ALL | _READS_SOME and _is_iterator(value):
                value = list(self.each(value)) if name in _READS_ALL else self._one_by_one(value)
            rest = args[first + 1 :]
            self.spend(_FILTER + work.estimate_filter(name, value, [*rest, *kwargs.values()], self.left))
            result = function(*args[:first], value, *rest, **kwargs) if len(args) > first else function(*args, **kwargs)
            self._count_result(result)
            return result

        return run

    def _count_test(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        first = 1 if hasattr(function, "jinja_pass_arg") else 0

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            operands = [*args[first:], *kwargs.values()]
            units = 0
            if name in _COMPARING_TESTS and len(operands) == 2:
                args = (args[0], self._one_by_one(args[1])) if _is_iterator(args[-1]) else args
                units = work.estimate_comparison(name, operands[0], operands[1], self.left)
            elif name in ("lower", "upper"):
                units = sum(sizes.measure(operand, self.left) for operand in operands)
            self.spend(_OPERATION + units)
            return function(*args, **kwargs)

        return run

    def _count_missing(self, value: Any) -> Any:
        if isinstance(value, Undefined):
            self.spend(_OPERATION)  # Jinja has raised and caught exceptions
        return value

    def _count_result(self, result: Any) -> None:
        if isinstance(result, int):
            work.require_few_bits(result.bit_length())
        self.spend(sizes.measure_shallow(result))

    def _one_by_one(self, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self.spend(STEP)
            yield value

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        return CountingCalls(tree).visit(tree)


class _Formatter(SandboxedFormatter):
    def format_field(self, value: Any, format_spec: str) -> Any:
        environment: Any = self._env
        environment.spend(work.estimate_field(value, format_spec, environment.left))
        return super().format_field(value, format_spec)


class _EscapeFormatter(_Formatter, SandboxedEscapeFormatter):
    pass


def _is_iterator(value: Any) -> bool:
    return hasattr(value, "__next__") and hasattr(value, "__iter__") and not isinstance(value, LoopContext)
