"""jlora completion: the shells themselves complete by its scripts."""

import shlex
import shutil
import subprocess

import pytest

from tests.support.training import tiny
from train import completion
from train.classify.config import COMMAND as CLASSIFY
from train.cli.arguments import PARSERS, SHELLS
from train.cli.commands import COMMANDS, SERVING, TRAINING
from train.config import dotted_keys
from train.lm.config import COMMAND as LM

_ZSH = """
_describe() { print -rl -- ${(P)2%%:*} }
_files() { print -- FILES }
compset() {}
compdef() {}
"""
"""The functions of zsh's completion system, which prints here what it would offer."""


def _run(shell, text, folder):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    flag = {"bash": "--norc", "zsh": "-f", "fish": "--no-config"}[shell]
    done = subprocess.run([shell, flag, "-c", text], cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    return done.stdout


def _bash(script, words, folder):
    last = len(words) - 1
    asked = f"COMP_WORDS=({shlex.join(words)}); COMP_CWORD={last}; _jlora; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    return set(_run("bash", f"{script}\n{asked}", folder).split())


def _zsh(script, words, folder):
    prefix = shlex.quote(words[-1])
    asked = f"words=({shlex.join(words)}); CURRENT={len(words)}; PREFIX={prefix}; _jlora"
    offered = _run("zsh", f"{_ZSH}\n{script}\n{asked}", folder).split()
    return {word for word in offered if word.startswith(words[-1]) or word == "FILES"}


def _fish(script, words, folder):
    asked = f"complete -C {shlex.quote(' '.join(words))}"
    return {line.partition("\t")[0] for line in _run("fish", f"{script}\n{asked}", folder).splitlines()}


COMPLETED = {"bash": _bash, "zsh": _zsh, "fish": _fish}


@pytest.fixture(params=SHELLS)
def completed(request, tmp_path):
    """completed(line): what the shell offers for the last word of it, in an empty folder."""
    script = completion.script(request.param)
    return lambda line: COMPLETED[request.param](script, line.split(" "), tmp_path)


def test_the_commands(completed):
    assert completed("jlora ") >= set(COMMANDS)
    assert completed("jlora cl") == {"classify"}


def test_the_flags_and_keys_of_a_training(completed):
    assert completed("jlora classify --res") == {"--resume"}
    assert completed("jlora lm --pre") == {"--preview"}
    assert completed("jlora classify --config mine.yaml lora.r") == {"lora.r=", "lora.rank_pattern="}
    assert completed("jlora classify train.learning") == {"train.learning_rate="}


def test_the_flags_of_the_other_commands(completed):
    assert completed("jlora generate --top") == {"--top-p", "--top-k"}
    assert completed("jlora export --gg") == {"--gguf-lora"}
    assert completed("jlora configs sst") == {"sst2", "sst2_query_output"}
    assert completed("jlora completion z") == {"zsh"}


def test_values_are_left_to_the_shell_which_offers_files(completed):
    assert completed("jlora classify --config none") <= {"FILES"}


def test_bash_takes_a_key_and_its_value_apart(tmp_path):
    script = completion.script("bash")
    assert _bash(script, ["jlora", "classify", "data.train", "=", ""], tmp_path) == set()
    assert _bash(script, ["jlora", "classify", "data.train", "="], tmp_path) == set()


@pytest.mark.parametrize("shell", SHELLS)
def test_every_word_of_every_command_is_in_the_script(shell, capsys):
    assert tiny.call(completion.main, [shell]) == 0
    script = capsys.readouterr().out
    for command in (CLASSIFY, LM):
        assert all(f"{key}=" in script for key in dotted_keys.fields(command.schema))
        for flag in command.flags:
            assert flag.replace("_", "-") in script
    for make_parser in PARSERS.values():
        for action in make_parser()._actions:
            assert all(flag.removeprefix("--") in script for flag in action.option_strings[-1:])
    assert set(COMMANDS) == {*TRAINING, *SERVING, *PARSERS}
