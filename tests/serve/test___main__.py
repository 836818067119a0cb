"""The command: what is wrong is said in a line before anything is loaded; a signal ends a running server gracefully."""

from __future__ import annotations

import re
import signal
import subprocess
import sys

import httpx
import pytest

from serve import __main__ as main_module
from serve.__main__ import main
from serve.listening.server import bind
from tests.support.serve.engines import adapter_folder
from tests.support.serve.running import is_listening, wait_until
from tests.support.training import tiny, tiny_lm

CONFIG = "configs/serve.yaml"
ADAPTER = adapter_folder(0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "nothing.yaml"], "nothing.yaml"),
        (["--config", CONFIG, "--adapter", "alice"], "--adapter: expected NAME=FOLDER, found 'alice'"),
        (
            ["--config", CONFIG, "--adapter", "a=nowhere"],
            "nowhere: expected an adapter folder or a run folder, found no",
        ),
        (["--config", CONFIG, "--adapter", f"my adapter={ADAPTER}"], "found 'my adapter'"),
        (
            ["--config", CONFIG, "--adapter", f"a={ADAPTER}", "--adapter", "a=b"],
            "--adapter: expected one folder for 'a', found ",
        ),
        (["--config", CONFIG, "--adapter", f"smollm2={ADAPTER}"], "the base is called 'smollm2' too"),
        (["--config", CONFIG, "--host", "0.0.0.0"], "needs a `token`"),
        (["--config", CONFIG, "--model", "runs/nothing/at/all", "--port", "0"], "runs/nothing/at/all"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_code_2(arguments, message, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert "Traceback" not in error


def test_a_missing_extra_is_one_line_too(monkeypatch, capsys):
    monkeypatch.setattr(main_module, "_EXTRA", ("starlette", "no_such_package"))
    assert main(["--config", CONFIG]) == 2
    assert "found no no_such_package; install them: pip install" in capsys.readouterr().err


def test_a_taken_address_is_said_before_anything_is_loaded(capsys):
    with bind("127.0.0.1", 0) as listener:
        listener.listen()
        port = listener.getsockname()[1]
        assert main(["--config", CONFIG, "--model", str(tiny_lm.model_folder()), "--port", str(port)]) == 2
    assert f"found '127.0.0.1', {port}: Address already in use" in capsys.readouterr().err


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_a_server_says_its_port_and_is_ended_by_a_signal(tmp_path, ending):
    config = tmp_path / "serve.yaml"
    config.write_text(f"model: {tiny_lm.model_folder()}\nname: tiny\nslots: 1\nrows: 1\ncontext: 64\n")
    flags = ["--config", config, "--adapter", f"a0={adapter_folder(0)}", "--port", "0"]
    command = [sys.executable, "-m", "serve", *flags]
    with subprocess.Popen(command, cwd=tiny.ROOT, env=tiny.environment(), stderr=subprocess.PIPE, text=True) as process:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r"tiny and 1 adapters at (http://127\.0\.0\.1:[1-9]\d*) \(a page\)", line):
                break
        try:
            answer = _ask(found[1])
            process.send_signal(ending)
            lines.append(process.communicate(timeout=60)[1])
        finally:
            process.kill()
    assert answer["choices"][0]["finish_reason"] in ("length", "stop")
    assert process.returncode == 0
    said = "".join(lines)
    assert "Traceback" not in said
    assert "PyTorch" not in said
    assert said.rstrip().endswith("ended")


def _ask(address):
    """The server's answer, once it listens."""
    wait_until(lambda: is_listening(address))
    body = {"model": "a0", "prompt": "the sea", "max_tokens": 3}
    return httpx.post(f"{address}/v1/completions", json=body, timeout=60).json()
