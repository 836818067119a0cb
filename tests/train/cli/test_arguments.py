import argparse

import pytest

from train.cli.arguments import PARSERS, split_names, whole_number


def test_types():
    assert whole_number(2)("12") == 12
    assert split_names("query, value,") == ["query", "value"]
    wrong = [(whole_number(2), "1"), (whole_number(0), "-1"), (whole_number(0), "x"), (whole_number(0), "9" * 5000)]
    for read, text in (*wrong, (whole_number(0, 5), "5"), (split_names, " ,")):
        with pytest.raises(argparse.ArgumentTypeError, match="expected"):
            read(text)


@pytest.mark.parametrize("command", PARSERS)
def test_each_command_is_called_by_its_name(command, capsys):
    with pytest.raises(SystemExit) as ended:
        PARSERS[command]().parse_args(["--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: jlora {command} ")
