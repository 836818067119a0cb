from __future__ import annotations

from jlora.errors import nearest


def test_nearest_names_are_few_and_different():
    names = ["query", "query", "queries", "value", "quary", "query_"]
    assert nearest("qury", names).count("query,") == 1
    assert len(nearest("qury", names).removeprefix("; nearest: ").split(", ")) == 3
    assert nearest("xyz", names) == ""
