"""The program `jlora`: as it is installed, and as it is started in a folder that has a `train` of the user's own."""

import importlib
import subprocess
import sys
import tomllib

import pytest

import jlora
from tests.support.training import tiny
from train import console
from train.cli.commands import TRAINING

_SCRIPT = "import sys\nfrom jlora.__main__ import main\nsys.exit(main())\n"
"""What an installer writes for the entry of pyproject.toml."""


def _called(*argv):
    return console.main(argv)


@pytest.fixture(params=["train.py", "train/__init__.py", "train/__init__.py train/console.py train/classify.py"])
def project(request, tmp_path):
    """A folder with scripts of the user's own."""
    for name in request.param.split():
        file = tmp_path / "project" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("print('my own script')\n")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "jlora").write_text(_SCRIPT)
    return tmp_path / "project"


@pytest.mark.parametrize("start", ["bin/jlora", "-m jlora"])
def test_a_foreign_train_in_the_current_folder_is_not_run(start, project):
    program = start.split() if start[0] == "-" else [str(project.parent / start)]
    environment = tiny.environment() | {"PYTHONPATH": f".:{tiny.ROOT}"}
    command = [sys.executable, *program, "classify", "--help"]
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)
    assert done.stdout.startswith("usage: jlora classify --config FILE"), done.stderr
    assert "my own script" not in done.stdout
    assert done.returncode == 0


def test_the_installer_is_told_of_it():
    with (tiny.ROOT / "pyproject.toml").open("rb") as file:
        module, _, function = tomllib.load(file)["project"]["scripts"]["jlora"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_version_and_help(capsys):
    assert _called("--version") == 0
    assert capsys.readouterr().out == f"jlora {jlora.__version__}\n"
    for argv in ([], ["--help"]):
        assert _called(*argv) == 0
        shown = capsys.readouterr().out
        assert all(name in shown for name in console.COMMANDS)


def test_an_unknown_command_is_named_with_the_nearest(capsys):
    assert _called("clasify") == 2
    assert "error: jlora clasify: no such command; nearest: classify" in capsys.readouterr().err


@pytest.mark.parametrize("name", console.COMMANDS)
def test_each_command_is_there(name):
    package = "serve.__main__" if name == "serve" else f"train.{name}"
    module = f"{package}.__main__" if name in TRAINING else package
    assert callable(importlib.import_module(module).main)
