"""The type that a file's value must have, in words, for errors."""

from __future__ import annotations

import types
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Union, get_args, get_origin

_WORDS = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    type(None): "null",
    Any: "value",
}
_BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


def _alternatives(annotation: Any, metadata: Iterable[Any] = ()) -> list[str]:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        words = [word for argument in arguments for word in _alternatives(argument)]
        # `number ...` includes `whole number ...`
        included = {f"whole {word}" for word in words}
        return [word for word in dict.fromkeys(words) if word not in included]
    if origin is Annotated:
        return _alternatives(arguments[0], [part for info in arguments[1:] for part in info.metadata])
    if origin is Literal:
        return [str(value) for value in arguments]
    if origin is list:
        return [f"list of {type_in_words(arguments[0])}"]
    if origin is dict:
        return [f"mapping {{{type_in_words(arguments[0])}: {type_in_words(arguments[1])}}}"]
    bounds = [f"{sign} {getattr(m, name)}" for m in metadata for name, sign in _BOUNDS.items() if hasattr(m, name)]
    return [" ".join([_WORDS[annotation], " and ".join(bounds)]).strip()]


def type_in_words(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """Returns the words for a type: `int | None` gives "whole number or null".

    More examples: `str` "text", `float | bool` "number or true or false"; `int | float` "number";
    `Literal["a", "b", "c"]` "a, b or c"; `list[str]` "list of text"; `dict[str, int]` "mapping {text: whole number}";
    `Annotated[int, Field(ge=1)] | None`, with pydantic's Field, "whole number >= 1 or null".

    Args:
      annotation: one of these types, or `Any` ("value").
      metadata: bounds of a type that is not a union: annotated_types' `[Ge(1), Le(3)]` gives ">= 1 and <= 3".
    """
    words = _alternatives(annotation, metadata)
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
