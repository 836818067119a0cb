"""Lists the dotted keys of a schema, and describes their types in words."""

from __future__ import annotations

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
    """Returns the plain types that an annotation accepts: {str, list, NoneType} for `str | list[str] | None`.

    A Literal gives the types of its values, Annotated those of what it annotates, and `dict[str, int]` is {dict}.
    """
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
