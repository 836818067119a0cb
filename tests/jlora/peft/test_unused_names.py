"""Fields and names of a stored configuration that have no effect are said, once each."""

from __future__ import annotations

import json

import pytest

from tests.support.adapters.small_adapter import load, save

CONFIG = "adapter_config.json"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"shiny_new": 3, "other": True, "off": None},
            ["does not know and ignores: other, shiny_new. If a newer PEFT"],
        ),
        ({"rank_pattern": {"value": 4}}, ["rank_pattern: 'value' matches no adapted module"]),
        ({"alpha_pattern": {"value": 4, "query": 2}}, ["alpha_pattern: 'value' matches no adapted module"]),
        ({"modules_to_save": ["head", "score"]}, ["modules_to_save: 'score' matches no module of the base"]),
        ({}, []),
    ],
)
def test_what_has_no_effect_is_said_once(fields, expected, tmp_path, caplog):
    file = save(tmp_path) / CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    load(tmp_path)
    warnings = [record.getMessage() for record in caplog.records if CONFIG in record.getMessage()]
    assert len(warnings) == len(expected)
    assert all(part in warning for part, warning in zip(expected, warnings, strict=True))
