"""What an error says about a key that no config has: the nearest keys, or those of its section."""

from __future__ import annotations

import difflib

from pydantic import BaseModel

from train.config import dotted_keys


def explain_unknown_key(key: str, schema: type[BaseModel]) -> str:
    """Returns the end of an error about an unknown key: the nearest keys, or those of its section.

    "train.lr" -> "unknown key; did you mean train.learning_rate?"
    "lora.zzz" -> "unknown key; known: lora.r, lora.lora_alpha, ..."
    "zzz" -> "unknown key; known: model, method, ..., data.*, lora.*, ..."
    """
    known = list(dotted_keys.fields(schema))
    if near := _likely(key, known):
        return f"unknown key; did you mean {' or '.join(near)}?"
    siblings = [name for name in known if name.startswith(f"{key.split('.')[0]}.")]
    if not siblings:
        siblings = [name for name in known if "." not in name] + [f"{name}.*" for name in dotted_keys.sections(schema)]
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
