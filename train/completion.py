"""Print what a shell completes the command lines of jlora with: jlora completion bash (or zsh, fish)."""

from __future__ import annotations

import argparse
import importlib
import shlex
import sys
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from jlora.__main__ import load_package
from jlora.closed_pipe import end_quietly
from train.cli import arguments
from train.cli.commands import COMMANDS, SERVING, TRAINING
from train.cli.exit_codes import exit_code, show
from train.config import dotted_keys
from train.config.command import Command

_LONGEST = 70
"""The most characters of a word's meaning that are shown."""


class _Word(NamedTuple):
    """A word of a command line, such as `--config`, `lora.r=` or `sst2`; a value, often a file, may come after it."""

    text: str
    meaning: str
    takes_value: bool = False


def main(argv: Sequence[str]) -> int:
    """Prints the completion script of the shell that `argv` names, such as ["zsh"], to stdout, and returns 0.

    argparse ends the program with exit code 2 for another argument.
    """
    return exit_code(lambda: show(script(arguments.make_completion_parser().parse_args(argv).shell)))


def script(shell: str) -> str:
    """Returns the script from which a shell completes `jlora`: its commands, their flags and the config's keys.

    Args:
      shell: "bash", "zsh" or "fish".
    """
    words = {name: _of_training(name) if name in TRAINING else _of_parser(_parser_of(name)) for name in COMMANDS}
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](words)


def _of_training(name: str) -> list[_Word]:
    command: Command = importlib.import_module(f"{__package__}.{name}.config").COMMAND
    flags = [
        _Word(f"--{name.replace('_', '-')}", flag.meaning, flag.metavar is not None)
        for name, flag in command.flags.items()
    ]
    fields = dotted_keys.fields(command.schema).items()
    keys = [_Word(f"{key}=", field.description or "") for key, field in fields]
    return [_Word("--config", "the config", True), _Word("--help", "list every key"), *flags, *keys]


def _parser_of(name: str) -> argparse.ArgumentParser:
    if name in SERVING:  # a package that imports `jlora` alone, and is not imported here otherwise
        return importlib.import_module(f"{load_package(name)}.__main__").make_serve_parser()
    return arguments.PARSERS[name]()


def _of_parser(parser: argparse.ArgumentParser) -> list[_Word]:
    words = []
    for action in parser._actions:
        for flag in action.option_strings[-1:]:  # the long form
            words.append(_Word(flag, action.help or "", action.nargs != 0))
        if not action.option_strings:
            words += [_Word(str(choice), "") for choice in action.choices or ()]
    return words


def _bash(words: dict[str, list[_Word]]) -> str:
    cases = [
        f"            {name}) words={shlex.quote(' '.join(word.text for word in of_command))}\n"
        f"                case $previous in {_valued(of_command)}) return ;; esac ;;"
        for name, of_command in words.items()
    ]
    return "\n".join(
        [
            "_jlora() {",
            '    local current="${COMP_WORDS[COMP_CWORD]}" previous="${COMP_WORDS[COMP_CWORD-1]}" words=""',
            "    COMPREPLY=()  # bash completes names of files where this stays empty",
            f"    if [[ $COMP_CWORD -eq 1 ]]; then words={shlex.quote(' '.join([*words, '--help', '--version']))}",
            "    else",
            '        case "${COMP_WORDS[1]}" in',
            *cases,
            "        esac",
            "    fi",
            '    if [[ $current == "=" || $previous == "=" ]]; then return; fi  # bash takes key=value for three words',
            '    COMPREPLY=($(compgen -W "$words" -- "$current"))',
            "    if [[ ${COMPREPLY[0]} == *= ]]; then compopt -o nospace 2>/dev/null; fi",
            "}",
            "complete -o default -F _jlora jlora",
        ]
    )


def _zsh(words: dict[str, list[_Word]]) -> str:
    cases = []
    for name, of_command in words.items():
        keys = [word for word in of_command if word.text.endswith("=")]
        others = [word for word in of_command if word not in keys]
        cases.append(
            f"        {name})\n"
            f"            if [[ $words[CURRENT-1] == ({_valued(of_command)}) ]]; then _files; return; fi\n"
            f"            others=({_described(others)})\n            keys=({_described(keys)}) ;;"
        )
    commands = _described([_Word(name, meaning) for name, meaning in COMMANDS.items()])
    return "\n".join(
        [
            "#compdef jlora",
            "_jlora() {",
            "    local -a commands others keys",
            f"    commands=({commands})",
            "    if (( CURRENT == 2 )); then _describe command commands; return; fi",
            "    if [[ $PREFIX == [^-]*=* ]]; then compset -P '*='; _files; return; fi",
            "    case $words[2] in",
            *cases,
            "    esac",
            "    _describe argument others",
            "    _describe key keys -S ''",
            "}",
            'if [[ $funcstack[1] == _jlora ]]; then _jlora "$@"; else compdef _jlora jlora; fi',
        ]
    )


def _fish(words: dict[str, list[_Word]]) -> str:
    lines = [
        f"complete -c jlora -n __fish_use_subcommand -f -a {name} -d {_quoted_for_fish(meaning)}"
        for name, meaning in COMMANDS.items()
    ]
    for name, of_command in words.items():
        for word in of_command:
            given = f"-l {word.text[2:]}" if word.text.startswith("--") else f"-a {word.text}"
            value = " -r" if word.takes_value else ""
            start = f"complete -c jlora -n '__fish_seen_subcommand_from {name}' {given}{value}"
            lines.append(f"{start} -d {_quoted_for_fish(word.meaning)}")
    return "\n".join(lines)


def _valued(words: list[_Word]) -> str:
    """The flags with a value, as a pattern of bash and zsh; one that matches nothing where there are none."""
    return "|".join(word.text for word in words if word.takes_value) or "--"


def _described(words: list[_Word]) -> str:
    """The words for zsh's `_describe`: 'word:meaning' each."""
    return " ".join(shlex.quote(f"{word.text}:{_short(word.meaning)}") for word in words)


def _quoted_for_fish(meaning: str) -> str:
    escaped = _short(meaning).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _short(meaning: str) -> str:
    return textwrap.shorten(meaning, _LONGEST, placeholder=" ...")


if __name__ == "__main__":
    sys.exit(end_quietly(lambda: main(sys.argv[1:])))
