"""The command: what is wrong is said in a line before anything is loaded; a signal ends a running server gracefully."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.request

import pytest

from serve.__main__ import main
from tests.support.serve.engines import adapter_folder
from tests.support.training import tiny, tiny_lm
from tests.support.training.processes import free_port

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
        (["--config", CONFIG, "--adapter", f"smollm2={ADAPTER}"], "the base is called 'smollm2' too"),
        (["--config", CONFIG, "--host", "0.0.0.0"], "needs a `token`"),
        (["--config", CONFIG, "--model", "runs/nothing/at/all"], "runs/nothing/at/all"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_code_2(arguments, message, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert "Traceback" not in error


def test_a_signal_ends_a_running_server(tmp_path):
    port = free_port()
    config = tmp_path / "serve.yaml"
    folder = adapter_folder(0).parent
    config.write_text(f"model: {tiny_lm.model_folder()}\nname: tiny\nslots: 1\nrows: 1\ncontext: 64\nport: {port}\n")
    command = [sys.executable, "-m", "serve", "--config", config, "--adapter", f"a0={adapter_folder(0)}"]
    process = subprocess.Popen(command, cwd=tiny.ROOT, env=tiny.environment(), stderr=subprocess.PIPE, text=True)
    try:
        assert _ask(port, process)["choices"][0]["finish_reason"] in ("length", "stop")
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode in (0, -signal.SIGTERM)
    assert f"tiny and 1 adapters at http://127.0.0.1:{port}" in errors
    assert "Traceback" not in errors
    assert folder.is_dir()


def _ask(port, process):
    """The server's answer, once it has compiled."""
    body = json.dumps({"model": "a0", "prompt": "the sea", "max_tokens": 3}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions", body, {"Content-Type": "application/json"}
    )
    end = time.monotonic() + 240
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(request) as answer:
                return json.loads(answer.read())
        except ConnectionError:
            time.sleep(0.2)
        except urllib.error.URLError:
            time.sleep(0.2)
    raise AssertionError(process.stderr.read())
