import json
import shlex
import subprocess
import sys

import jax

from train.run import environment


def test_describe_is_json_and_names_this_machine():
    described = json.loads(json.dumps(environment.collect()))
    assert described["jax"] == {
        "backend": jax.default_backend(),
        "devices": [device.device_kind for device in jax.devices()],
    }
    assert described["versions"]["jax"] == jax.__version__
    assert described["python"] == sys.version.split()[0]
    assert described["cpu_count"] >= 1


def test_the_command_can_be_run_again(tmp_path):
    script = tmp_path / "with space.py"
    script.write_text("from train.run import environment; print(environment.command())")
    arguments = [str(script), "data.train=a b.tsv", "lora.r=4"]
    result = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True, env=_path())
    assert shlex.split(result.stdout)[1:] == arguments


def _path():
    return {"PYTHONPATH": ":".join(path for path in [".", *sys.path] if path)}


def _git(folder, *arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def test_git_knows_commit_and_dirt_of_a_checkout(tmp_path):
    assert environment._git(tmp_path) is None
    source = tmp_path / "package"
    source.mkdir()
    (source / "file.py").write_text("1")
    _git(tmp_path, "init")
    assert environment._git(source) is None
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "-m", "first")
    clean = environment._git(source)
    assert clean is not None
    assert len(clean["commit"]) == 40
    assert clean["dirty"] is False
    (source / "file.py").write_text("2")
    assert environment._git(source) == {"commit": clean["commit"], "dirty": True}


def test_an_installed_copy_in_somebody_elses_checkout_is_not_that_checkout(tmp_path):
    _git(tmp_path, "init")
    (tmp_path / "theirs").write_text("1")
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "-m", "first")
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "jlora.py").write_text("1")
    assert environment._git(tmp_path / "site-packages") is None
