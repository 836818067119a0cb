"""Functions are named by verbs, and a public name means one thing in the whole product."""

from __future__ import annotations

import ast
import re
from collections import Counter, defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("jlora", "train", "serve")
MOST_PARTICIPLES = 0.04
"""Of all names of functions. Some are the field's terms: `ragged_dot`, `squared_norm`."""
IRREGULAR = {
    "begun", "built", "chosen", "cut", "drawn", "found", "given", "held", "hidden", "kept", "known", "laid", "left",
    "made", "seen", "sent", "shown", "spread", "taken", "written",
}  # fmt: skip
VERBS = {"embed", "exceed", "proceed", "speed"}
MOST_USED_ONCE = 0.25
"""Of all names of functions: private, and used at one place. A short one that names no idea belongs in its caller."""
REPEATED = {
    "main": "each command's entry point",
    "decode": "int8 and nf4: two encodings, the same pair of functions",
    "encode": "int8 and nf4: two encodings, the same pair of functions",
    **dict.fromkeys(
        ("Batch", "Data", "Method", "abstract_model", "build_model", "make_batch", "prepare_model"),
        "classify and lm: each task's own",
    ),
}
"""Public names that several files define, and why they mean the same."""


def _is_participle(name):
    first = name.lstrip("_").partition("_")[0]
    return first in IRREGULAR or (len(first) > 4 and first.endswith("ed") and first not in VERBS)


def _texts():
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")


def _trees():
    for path, text in _texts():
        yield path, ast.parse(text)


def _functions(tree):
    return [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def _used_once(texts):
    """Returns (the private functions defined once whose name occurs once more in all texts, the names of all)."""
    defined = Counter(name for text in texts for name in _functions(ast.parse(text)))
    words = Counter(word for text in texts for word in re.findall(r"\w+", text))
    private = (name for name in defined if name.startswith("_") and not name.startswith("__"))
    return {name for name in private if defined[name] == 1 and words[name] == 2}, set(defined)


def _public_names(tree):
    """Functions, classes and aliases of types; a type variable is only a letter of its file."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node.name
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            is_type_variable = isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == "TypeVar"
            if re.fullmatch(r"[A-Z]+[a-z]\w*", node.targets[0].id) and not is_type_variable:
                yield node.targets[0].id


def test_few_functions_are_named_by_a_participle():
    names = set().union(*(_functions(tree) for _, tree in _trees()))
    participles = sorted(filter(_is_participle, names))
    assert len(participles) <= MOST_PARTICIPLES * len(names), participles


def test_a_participle_is_told_from_a_verb():
    assert all(map(_is_participle, ("opened", "_moved_later", "kept", "written_to")))
    assert not any(map(_is_participle, ("open_cache", "_embed", "need", "feed", "is_kept", "keep", "split")))


def test_few_private_functions_are_used_once():
    once, names = _used_once([text for _, text in _texts()])
    assert len(once) <= MOST_USED_ONCE * len(names), sorted(once)


def test_uses_are_counted_over_all_files():
    first = (
        "def _once(): ...\ndef _twice(): ...\ndef _two(): ...\ndef public(): _once(), _twice(), _elsewhere(), _two()"
    )
    second = "class A:\n    def _elsewhere(self): return _twice()\n    def _two(self): ...\n    def __len__(self): ..."
    every = {"_once", "_twice", "public", "_two", "_elsewhere", "__len__"}
    assert _used_once([first, second]) == ({"_once", "_elsewhere"}, every)


def test_no_public_name_has_two_meanings():
    files = defaultdict(list)
    for path, tree in _trees():
        for name in set(_public_names(tree)):
            files[name].append(path)
    several = {name: paths for name, paths in files.items() if len(paths) > 1}
    assert {name: paths for name, paths in several.items() if name not in REPEATED} == {}
    assert sorted(REPEATED.keys() - several) == []
