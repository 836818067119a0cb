"""The benchmark of the characters on tiny ones: figures of every text and reader, and a page that has them."""

from __future__ import annotations

import json
import math

import pytest

from benchmarks.characters import __main__ as characters
from benchmarks.characters import answers
from benchmarks.characters.page import fill_page
from jlora.files import yaml12
from tests.support.training import tiny, tiny_lm
from train.sweep import __main__ as sweep

PAGE = tiny.ROOT / "docs" / "characters.md"
EMPTY = "".join(f"<!-- {name} -->\n<!-- end of {name} -->\n" for name in ("perplexity", "training", "answers"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two tiny characters, trained together: the folder of the sweep."""
    folder = tmp_path_factory.mktemp("characters")
    files = {"one": tiny_lm.chats_file(16), "two": tiny_lm.chats_file(12)}
    points = {name: {"data.train": str(file), "data.validation": str(file)} for name, file in files.items()}
    (folder / "together.yaml").write_text(yaml12.dump({"search": "points", "points": points}), encoding="utf-8")
    more = ["data.packing=true", "data.max_length=64", "data.completion_only_loss=true", "export.merged=false"]
    argv = tiny_lm.arguments(folder / "adapters", *more, "train.learning_rate=1e-2")
    assert tiny.call(sweep.main, [*argv, "--sweep", folder / "together.yaml"]) == 0
    return folder / "adapters"


def test_every_text_is_read_under_the_base_and_every_adapter(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(answers, "LONGEST", 20)  # the tiny model's context is 128
    page = tmp_path / "page.md"
    page.write_text(f"before\n{EMPTY}after\n", encoding="utf-8")
    assert tiny.call(characters.main, ["--adapters", trained, "--page", page]) == 0
    results = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
    assert {text: list(found) for text, found in results["perplexity"].items()} == {
        text: ["base", "one", "two"] for text in ("one", "two")
    }
    for name in ("one", "two"):  # what the training measured on the same rows
        expected = tiny.report(trained / name)["metrics"]["validation"]["perplexity"]
        assert results["perplexity"][name][name] == pytest.approx(expected, rel=1e-5)
        assert math.isfinite(results["perplexity"][name]["base"])
        assert results["perplexity"][name][name] != results["perplexity"][name]["base"]
    for name in ("one", "two", "base"):
        assert [one["question"] for one in results["answers"][name]] == list(answers.QUESTIONS)
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert f"| one | {results['tokens']['one']} |" in text
    assert tiny.call(characters.main, ["--page", page, "--render"]) == 0
    assert page.read_text(encoding="utf-8") == text


def test_the_page_shows_what_the_command_wrote():
    text = PAGE.read_text(encoding="utf-8")
    assert fill_page(text, json.loads(PAGE.with_suffix(".json").read_text(encoding="utf-8"))) == text


def test_each_character_reads_its_own_text_best():
    """The figures in docs/: clearly below the base's and the others'."""
    found = json.loads(PAGE.with_suffix(".json").read_text(encoding="utf-8"))["perplexity"]
    assert len(found) == 3
    for text, of_readers in found.items():
        own = of_readers.pop(text)
        assert own < 0.9 * min(of_readers.values()), text


def test_a_page_without_the_parts_is_refused():
    with pytest.raises(ValueError, match="<!-- perplexity -->"):
        fill_page("nothing", {"perplexity": {}, "training": {}, "answers": {}, "tokens": {}})
