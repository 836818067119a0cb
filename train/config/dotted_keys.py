"""Lists the dotted keys of a schema, and describes their types in words."""

from __future__ import annotations

import difflib
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from jlora.files.type_in_words import type_in_words


def sections(schema: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """Returns {key: model} of the keys that contain keys, such as `lora`: those annotated with a pydantic model."""
    fields = schema.model_fields.items()
    return {
        name: f.annotation
        for name, f in fields
        if isinstance(f.annotation, type) and issubclass(f.annotation, BaseModel)
    }


def fields(schema: type[BaseModel]) -> dict[str, FieldInfo]:
    """Returns {dotted key: field} of all values, in the order of the schema; those outside of sections come first.

    In a section a field's alias is its key: `lora.from`.
    """
    inner = sections(schema)
    found = {name: field for name, field in schema.model_fields.items() if name not in inner}
    for section, model in inner.items():
        found |= {f"{section}.{field.alias or name}": field for name, field in model.model_fields.items()}
    return found


def defaults(schema: type[BaseModel]) -> dict[str, Any]:
    """Returns {dotted key: default}, without required keys, in the order of `fields`."""
    found = {key: field.get_default(call_default_factory=True) for key, field in fields(schema).items()}
    return {key: value for key, value in found.items() if value is not PydanticUndefined}


def kinds(annotation: Any) -> set[Any]:
    """Returns the plain types that an annotation accepts: {str, list, NoneType} for `str | list[str] | None`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return set().union(*map(kinds, arguments))
    if origin is Annotated:
        return kinds(arguments[0])
    if origin is Literal:
        return {type(value) for value in arguments}
    return {origin or annotation}


def describe_field(field: FieldInfo) -> str:
    """Describes the type of a field in words, such as `whole number >= 1 or null`."""
    return type_in_words(field.annotation, field.metadata)


def unknown(key: str, schema: type[BaseModel]) -> str:
    """Returns the end of an error about an unknown key: the nearest keys, or those of its section."""
    known = list(fields(schema))
    if near := _likely(key, known):
        return f"unknown key; did you mean {' or '.join(near)}?"
    siblings = [name for name in known if name.startswith(f"{key.split('.')[0]}.")]
    if not siblings:
        siblings = [name for name in known if "." not in name] + [f"{name}.*" for name in sections(schema)]
    return f"unknown key; known: {', '.join(siblings)}"


def _likely(key: str, known: list[str]) -> list[str]:
    """Returns the nearest keys of the same section, or the key of another section with the same last component.

    Only if there is no such section, it searches all sections for the nearest key.
    """
    section, _, leaf = key.rpartition(".")
    inside = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == section}
    elsewhere = {name.rpartition(".")[2]: name for name in reversed(known)}
    if near := _near(leaf, inside):
        return near
    if leaf in elsewhere:
        return [elsewhere[leaf]]
    if section and inside:
        return []
    return _near(leaf, elsewhere) or difflib.get_close_matches(key, known, n=1)


def _near(leaf: str, names: dict[str, str]) -> list[str]:
    """Returns the names that `leaf` probably means.

    These are names with almost the same spelling or the same end; else those with the same beginning or initials; else
    the most similar one.
    """
    ending = [name for name in names if name.endswith(f"_{leaf}")]
    alike = [
        name
        for name in names
        if name.startswith(leaf) or leaf.startswith(name) or leaf == "".join(word[:1] for word in name.split("_"))
    ]
    found = (
        difflib.get_close_matches(leaf, names, n=1, cutoff=0.8)
        or (ending if len(ending) == 1 else alike)
        or difflib.get_close_matches(leaf, names, n=1)
    )
    return [names[name] for name in found]
