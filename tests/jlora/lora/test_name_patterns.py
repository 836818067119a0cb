"""Regular expressions on names of modules: what `re` and PEFT say, and an end to those that would have none."""

from __future__ import annotations

import re
import time

import pytest

from jlora.errors import JloraError
from jlora.lora import name_patterns
from jlora.lora.config import LoraConfig
from jlora.lora.name_patterns import find_mistake, is_end, is_whole, layer_number, require_quick
from jlora.lora.targets import require_quick_patterns

NAMES = [
    f"model.layers.{i}.{end}" for i in (0, 1, 11) for end in ("self_attn.q_proj", "mlp.down_proj", "mlp.experts.3.up")
]
NAMES += ["lm_head", "transformer.h", "model.embed_tokens", "model.visual.blocks.1.q_proj"]
EXPRESSIONS = [
    r".*\.(q_proj|down_proj)",
    r"model\.layers\.1\..*",
    r"^(?!.*visual).*(?:q_proj|v_proj).*",  # LLaMA-Factory's
    r"(?:.*?(?:language|text).*?(?:self_attn|mlp).*?)|(?:\bmodel\.layers\.[\d]{1,}\.(?:mlp)\.(?:(?:down_proj)))",
    "q_proj",  # the one before is like Unsloth's
    "layers.1.*",
    "",
    r"^model\.layers\.0\.mlp\.down_proj",
    "Q_PROJ",
]  # fmt: skip


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_they_match_as_pefts(expression):
    for name in NAMES:
        assert is_whole(expression, name) == bool(re.fullmatch(expression, name))
        assert is_end(expression, name) == bool(re.match(rf"(.*\.)?({expression})$", name))


@pytest.mark.parametrize("lists", [["layers"], ["h", "layers"], ["blocks"], ["experts"], ["la.*s"], ["h|layers"]])
def test_the_number_of_a_layer_is_pefts(lists):
    for name in NAMES:
        matches = (re.match(rf"(?:^|.*?\.){pattern}\.(?P<idx>\d+)\.", name) for pattern in lists)
        found = next((match["idx"] for match in matches if match), None)
        assert layer_number(lists, name) == (None if found is None else int(found))
    assert [layer_number([], name) for name in NAMES[:4]] == [0, 0, 0, 1]


@pytest.mark.parametrize("text", ["(", "*", "[a", r"\p{L}", "(?|a|b)", "(a){e<=1}"])
def test_what_re_does_not_read_is_no_expression(text):
    """The last is text to `re`, and one with a mistake to `regex`: the two must not differ."""
    assert find_mistake(text)
    expected = (
        rf"^LoraConfig\.target_modules: expected a regular expression, found .*: {re.escape(find_mistake(text))}; c"
    )
    with pytest.raises(JloraError, match=expected):
        LoraConfig(target_modules=text)


def test_the_mistake_of_an_expression_comes_with_its_place():
    assert find_mistake("a.(b") == "missing ), unterminated subpattern at position 2"
    assert find_mistake("q{e}") == "a brace without a number at position 1"
    assert find_mistake(r"layers\.\d+\.q{2}") == ""


@pytest.mark.parametrize(
    "field", ["target_modules", "exclude_modules", "rank_pattern", "alpha_pattern", "layers_pattern"]
)
def test_one_that_takes_forever_is_refused(field, monkeypatch):
    monkeypatch.setattr(name_patterns, "PATTERN_SECONDS", 0.1)
    bomb = r"(([a-z_.\d]|[a-z])+)+\s\s"
    given = {field: {bomb: 1} if field.endswith("k_pattern") or field == "alpha_pattern" else bomb}
    config = LoraConfig(**{"layers_to_transform": [0]} if field == "layers_pattern" else {}, **given)
    begin = time.process_time()
    with pytest.raises(JloraError, match=r"^file: expected regular expressions that match within 0\.1 seconds"):
        require_quick_patterns(config, NAMES, "file")
    assert time.process_time() - begin < 10


def test_many_usual_ones_are_quick():
    names = [f"model.layers.{i}.self_attn.{part}_proj" for i in range(80) for part in "qkvo"]
    ends = [f"^{re.escape(name)}" for name in names]
    assert require_quick(EXPRESSIONS, ends, ["layers"], names, "file") is None
