"""What `pip install` puts on a machine: a wheel that works beside a user's own `train`."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.support.training import tiny
from tests.support.training.shipped import SHIPPED
from train.classify.config import COMMAND as CLASSIFY
from train.config import dotted_keys
from train.lm.config import COMMAND as LM

FOREIGN = "raise SystemExit('my own script')\n"


def _run(*command, folder, **environment):
    """The finished process, after it has ended well."""
    given = {name: value for name, value in tiny.environment(**environment).items() if name != "PYTHONSAFEPATH"}
    done = subprocess.run([str(part) for part in command], cwd=folder, env=given, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done


def _wheel_of(sources, target):
    flags = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--wheel-dir", target]
    _run(sys.executable, "-m", "pip", "wheel", sources, *flags, folder=target)
    (wheel,) = target.glob("jlora-*.whl")
    return wheel


def _contents(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return _wheel_of(tiny.ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The folder of programs of an environment that has the wheel, and our dependencies, but not this checkout.

    A .pth file makes the packages beside pytest importable. An editable install among them stays out of sight: Python
    executes no .pth files of a folder that a .pth file names.
    """
    folder = tmp_path_factory.mktemp("environment")
    _run(sys.executable, "-m", "venv", "--without-pip", folder, folder=folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    flags = ["--no-deps", "--no-index", "--quiet", "--disable-pip-version-check"]
    _run(sys.executable, "-m", "pip", "--python", folder, "install", *flags, wheel, folder=folder)
    return folder / "bin"


@pytest.fixture
def project(tmp_path):
    """A folder with a module and a package of the user's own, both called `train`."""
    (tmp_path / "train").mkdir()
    for name in ("train.py", "train/__init__.py", "train/classify.py", "train/console.py"):
        (tmp_path / name).write_text(FOREIGN)
    return tmp_path


def _jlora(installed, project, *arguments):
    """Runs the installed program, with the project before everything else on the path."""
    return _run(installed / "jlora", *arguments, folder=project, PYTHONPATH=str(project))


def test_the_wheel_has_three_packages_and_the_configs(wheel):
    found = _contents(wheel)
    top = {name.partition("/")[0] for name in found}
    assert {name for name in top if not name.endswith(".dist-info")} == {"jlora", "jlora_serve", "jlora_train"}
    (listed,) = (text for name, text in found.items() if name.endswith("top_level.txt"))
    assert listed.decode().split() == ["jlora", "jlora_serve", "jlora_train"]
    assert {Path(name).name: text for name, text in found.items() if name.endswith(".yaml")} == {
        file.name: file.read_bytes() for file in (*SHIPPED, *(tiny.ROOT / "configs" / "sweeps").glob("*.yaml"))
    }
    assert "jlora/py.typed" in found
    assert "jlora_serve/http/page/index.html" in found


def test_the_wheel_has_every_file_of_the_packages(wheel):
    sources = {
        path.relative_to(tiny.ROOT).as_posix()
        for name in ("jlora", "train", "serve")
        for path in (tiny.ROOT / name).rglob("*.py")
    }
    assert {name for name in _contents(wheel) if name.endswith(".py")} == {
        f"jlora_{name}" if name.startswith(("train/", "serve/")) else name for name in sources
    }


def test_no_file_of_the_wheel_names_the_checkouts_package(wheel):
    """Neither in an import nor, as `train.lm`, in a text."""
    found = _contents(wheel)
    own = ("train", "serve")
    modules = {f"{name}.{path.stem}" for name in own for path in (tiny.ROOT / name).iterdir() if path.stem[0] != "_"}
    for name, text in found.items():
        if not name.endswith(".py"):
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom):
                assert str(node.module).partition(".")[0] not in own, name
            elif isinstance(node, ast.Import):
                assert not {*own} & {alias.name.partition(".")[0] for alias in node.names}, name
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                words = node.value.replace("`", " ").replace('"', " ").split()
                named = {".".join(word.split(".")[:2]).rstrip(":,()") for word in words}
                assert named & modules == set(), name


def test_no_key_of_a_config_is_called_as_a_module_is():
    """The wheel's build takes `train.NAME` for the module where there is one."""
    keys = {*dotted_keys.fields(CLASSIFY.schema), *dotted_keys.fields(LM.schema)}
    modules = {f"train.{path.stem}" for path in (tiny.ROOT / "train").iterdir()}
    assert {".".join(key.split(".")[:2]) for key in keys} & modules == set()


def test_the_sdist_builds_the_same_wheel(wheel, tmp_path):
    program = (
        "import sys; sys.path.insert(0, 'build_backend'); import jlora_build; jlora_build.build_sdist(sys.argv[1])"
    )
    sources = tmp_path / "sources"  # setuptools leaves a jlora.egg-info beside them
    sources.mkdir()
    for name in ("jlora", "train", "serve", "configs", "build_backend"):
        shutil.copytree(tiny.ROOT / name, sources / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(tiny.ROOT / name, sources)
    _run(sys.executable, "-c", program, tmp_path, folder=sources)
    (sdist,) = tmp_path.glob("jlora-*.tar.gz")
    shutil.unpack_archive(sdist, tmp_path)
    again = _wheel_of(tmp_path / sdist.name.removesuffix(".tar.gz"), tmp_path)
    assert _contents(again) == _contents(wheel)


@pytest.mark.parametrize("start", ["jlora", "python -m jlora"])
def test_the_help_beside_a_foreign_train(installed, project, start):
    program, *rest = start.split()
    for arguments in (["--help"], ["classify", "--help"]):
        done = _run(installed / program, *rest, *arguments, folder=project, PYTHONPATH=str(project))
        assert done.stdout.startswith("usage: jlora")
        assert "my own script" not in done.stdout + done.stderr


def test_the_configs_beside_a_foreign_train(installed, project):
    listed = _jlora(installed, project, "configs").stdout
    assert all(f"{file.stem} " in listed for file in SHIPPED)
    assert "wrote sst2.yaml" in _jlora(installed, project, "configs", "sst2", "--copy").stdout
    assert (project / "sst2.yaml").read_bytes() == (tiny.ROOT / "configs" / "sst2.yaml").read_bytes()


def test_a_training_beside_a_foreign_train(installed, project):
    """A plan, then two steps, whose log says what is being done: the levels of our own loggers are set."""
    arguments = ["classify", *tiny.arguments(project / "run")]
    assert "trainable" in _jlora(installed, project, *arguments, "--dry-run").stdout
    assert "step 2/2  loss" in _jlora(installed, project, *arguments).stderr
    assert tiny.report(project / "run")["best"]["step"] in (1, 2)
    assert (project / "run/adapter/adapter_model.safetensors").is_file()


def test_the_trainers_are_imported_beside_a_foreign_train(installed, project):
    program = """
import sys
import jlora_train.classify, jlora_train.lm
assert callable(jlora_train.classify.run) and callable(jlora_train.lm.run)
assert "jlora_train.classify.run(" in jlora_train.classify.run.__doc__
assert "train" not in sys.modules
try:
    import train
except SystemExit as end:
    print(end)
"""
    assert _run(installed / "python", "-c", program, folder=project).stdout == "my own script\n"


def test_this_checkout_is_out_of_sight(installed, tmp_path):
    """What the tests above prove depends on it."""
    program = "import importlib.util, jlora; print(jlora.__file__, importlib.util.find_spec('train'))"
    file, spec = _run(installed / "python", "-c", program, folder=tmp_path, PYTHONPATH="").stdout.split()
    assert Path(file).is_relative_to(installed.parent)
    assert spec == "None"
