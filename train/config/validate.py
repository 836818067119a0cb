"""Validates dotted keys and values: returns the config of a run, or a list of all problems."""

from __future__ import annotations

from collections import Counter
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from jlora.errors import JloraError, nearest
from train.config import dotted_keys
from train.config.key_problem import KeyProblem
from train.config.run_config import AnyConfig, RunConfig
from train.config.unknown_key import explain_unknown_key


def flatten(values: dict[Any, Any], schema: type[RunConfig]) -> dict[str, Any]:
    """Flattens sections, {"lora": {"r": 8}} to {"lora.r": 8}; mappings that are a key's value are not flattened.

    Sections are the keys of `schema` that contain keys; unknown keys, and a section whose value is no mapping, stay as
    they are. An empty section (`lora:` with nothing below it) gives no keys.

    Raises:
      JloraError: a key is given twice, nested and dotted.
    """
    pairs: list[tuple[str, Any]] = []
    for name, value in values.items():
        if name not in dotted_keys.sections(schema):
            pairs.append((str(name), value))
        elif isinstance(value, dict):
            pairs += [(f"{name}.{inner}", v) for inner, v in value.items()]
        elif value is not None:
            pairs.append((name, value))
    flat = dict(pairs)
    if twice := [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]:
        raise JloraError(f"{twice[0]}: given twice, once nested and once as a dotted key")
    return flat


def validate(flat: dict[str, Any], schema: type[AnyConfig]) -> tuple[AnyConfig | None, dict[str, str]]:
    """Returns (the config, {}), or (None, {key: what was expected, what was found}) if keys or values are wrong.

    `flat` is {dotted key: value}, as `flatten` returns it. All wrong keys are in the result, missing ones included:
    {"output_dir": "missing; expected text: the run folder itself"}. A check across several keys names only one of them.
    """
    known = dotted_keys.fields(schema)
    problems = {key: _unknown(key, value, schema) for key, value in flat.items() if key not in known}
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        if key not in problems:
            section, _, name = key.rpartition(".")
            (nested.setdefault(section, {}) if section else nested)[name] = value
    nested.setdefault("data", {})
    try:
        config = schema.model_validate(nested)
    except ValidationError as error:
        return None, problems | _translate(error, flat, known)
    return (None if problems else config), problems


def _unknown(key: str, value: Any, schema: type[RunConfig]) -> str:
    if key in dotted_keys.sections(schema):
        first = next(name for name in dotted_keys.fields(schema) if name.startswith(f"{key}."))
        return f"expected a mapping of keys such as {first}; found {_describe_value(value)}"
    return explain_unknown_key(key, schema)


def _translate(error: ValidationError, flat: dict[str, Any], known: dict[str, FieldInfo]) -> dict[str, str]:
    problems: dict[str, str] = {}
    for detail in error.errors():
        key = next((k for k in (".".join(map(str, detail["loc"][:n])) for n in (1, 2)) if k in known), "")
        if not key:  # a check across keys
            cause: KeyProblem = detail["ctx"]["error"]
            problems[cause.key] = cause.problem
        elif detail["type"] == "missing":
            meaning = (known[key].description or "").split(":")[0].split(";")[0]
            problems[key] = f"missing; expected {dotted_keys.describe_field(known[key])}: {meaning}"
        else:
            problems[key] = describe_mismatch(known[key], flat[key])
    return problems


def describe_mismatch(field: FieldInfo, value: Any) -> str:
    """Describes what a key accepts and what was given: `expected whole number >= 1; found the text 'one'`.

    For text that is almost one of the accepted values, the nearest one is added. A long value is cut at 60 characters.
    """
    expected = dotted_keys.describe_field(field)
    hint = nearest(value, expected.replace(" or ", ", ").split(", ")) if isinstance(value, str) else ""
    return f"expected {expected}; found {_describe_value(value)}{hint}"


def _describe_value(value: Any) -> str:
    """Describes a value for an error: its type in words and the value, cut at 60 characters."""
    words: dict[type, str] = {str: "the text ", list: "the list ", dict: "the mapping "}
    shown = (
        {True: "true", False: "false", None: "null"}[value] if value is None or isinstance(value, bool) else repr(value)
    )
    if value == "":
        return "empty text"
    return words.get(type(value), "") + (shown if len(shown) <= 60 else shown[:57] + "...")
