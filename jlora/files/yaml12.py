"""Reads and writes YAML with the numbers and booleans of YAML 1.2, and refuses duplicate keys.

PyYAML by itself reads YAML 1.1, where `1e-3` is text and `no` is a boolean.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from jlora.errors import JloraError
from jlora.files.limits import LARGEST_YAML, MOST_YAML_VALUES
from jlora.files.nearest_file import nearest_file

_SCALARS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?(0|[1-9][0-9_]*)", list("-+0123456789")),
    "float": (
        r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (declared so by PyYAML)

    def get_single_node(self) -> yaml.Node | None:
        """Parses the text into nodes; raises if its aliases expand to more values than any config has."""
        node = super().get_single_node()
        if node is not None:
            _count(node, {})
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Makes the value of a node, adding the place to PyYAML's errors about values that do not fit a tag."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            cause = f" ({error})" if isinstance(error, ValueError) else ""
            problem = f"expected a value that fits {node.tag.rpartition(':')[2]}{cause}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        first: dict[tuple[str, str], int] = {}
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key, yaml.ScalarNode):
                continue
            if (key.tag, key.value) in first:
                problem = f"the key {key.value!r} is given twice, first in line {first[key.tag, key.value]}"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            first[key.tag, key.value] = key.start_mark.line + 1
        return super().construct_mapping(node, deep)


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """Counts the values of a node. `known`: counts by node, 0 while a node is being counted."""
    if (count := known.get(id(node))) == 0:
        raise yaml.constructor.ConstructorError(None, None, "an alias inside its own value", node.start_mark)
    if count is None:
        known[id(node)], inner = 0, [] if isinstance(node, yaml.ScalarNode) else node.value
        parts = [part for pair in inner for part in pair] if isinstance(node, yaml.MappingNode) else inner
        count = known[id(node)] = 1 + sum(_count(part, known) for part in parts)
    if count > MOST_YAML_VALUES:
        problem = f"expected at most {MOST_YAML_VALUES} values after aliases are expanded; found more"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
    return count


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (declared so by PyYAML)


for _tag, (_pattern, _starts) in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), _starts)


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # PyYAML writes Unicode's line breaks unescaped, and reads them as a space or a newline, except in "..." text.
    style = '"' if re.search("[\r\x85\u2028\u2029]", text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def read_file(path: Path, advice: str = "") -> dict[str, Any]:
    """Reads the mapping in a YAML file; an empty file is an empty mapping.

    Args:
      advice: the end of the error about a missing file.

    Raises:
      JloraError: no such file (the nearest one is named), larger than 1 MiB, not UTF-8, not YAML (line and column
        named), a duplicate key, or something other than a mapping.
    """
    if path.is_dir():
        inside = f": give {path / 'config.yaml'}" if (path / "config.yaml").is_file() else "; give a file"
        raise JloraError(f"--config {path}: expected a YAML file, found a folder{inside}")
    if not path.is_file():
        raise JloraError(f"--config {path}: expected a YAML file, found no such file{nearest_file(path)}{advice}")
    if path.stat().st_size > LARGEST_YAML:
        raise JloraError(f"{path}: expected at most {LARGEST_YAML} bytes of YAML; found {path.stat().st_size}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise JloraError(
            f"{path}: expected UTF-8, found byte {error.object[error.start]:#04x} at {error.start}"
        ) from None
    values = parse(text, str(path))
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise JloraError(f"{path}: expected `key: value` lines, found {text.strip().splitlines()[0][:60]!r}")
    return values


def parse(text: str, source: str) -> Any:
    """Parses YAML text; `source` names it in errors. Empty text is None.

        "a: no\\nb: 1e-3\\nc: true" -> {"a": "no", "b": 0.001, "c": True}

    Raises:
      JloraError: the text is not YAML (line and column are named), a key is given twice, or there are more than 20,000
        values after aliases are expanded.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        line = f"\n  {text.splitlines()[mark.line][:200]}" if mark and mark.line < len(text.splitlines()) else ""
        raise JloraError(f"{source}{place}: not valid YAML: {error.problem or error.context}{line}") from None
    except yaml.YAMLError as error:
        raise JloraError(f"{source}: not valid YAML: {error}") from None
    except RecursionError:
        raise JloraError(f"{source}: not valid YAML: lists or mappings nested too deeply") from None


def dump(values: dict[str, Any]) -> str:
    """Writes YAML text that `parse` reads back to equal values, with the keys in the same order."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
