"""--help: every key with its type, default and meaning."""

import pytest

import train.classify.config
import train.lm.config
from train.cli.parse import parse_command_line
from train.config import dotted_keys


@pytest.mark.parametrize("command", [train.classify.config.COMMAND, train.lm.config.COMMAND], ids=lambda c: c.program)
@pytest.mark.parametrize("columns", [40, 80, 200])
def test_help_lists_every_key_with_type_default_and_meaning(capsys, monkeypatch, columns, command):
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit) as ended:
        parse_command_line(["--help"], command)
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    table, _, examples = printed.partition("examples:")
    assert all(len(line) <= max(70, min(110, columns)) for line in printed.splitlines())
    words = " ".join(table.split())
    for key, field in dotted_keys.fields(command.schema).items():
        meaning = f"{key} {field.description} ({dotted_keys.describe_field(field)};"
        assert meaning in words
        assert f"{meaning} required)" in words or f"{meaning} default " in words
    assert "(whole number >= 1 and <= 65536; default 8)" in words
    assert f"{command.program} --config {command.config}" in examples
    for name, flag in command.flags.items():
        assert f"  --{name.replace('_', '-')} {flag.metavar or ''}" in table
        assert flag.meaning in words
