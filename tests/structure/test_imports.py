"""Imports run one way, from folder to folder as in pyproject.toml; no oracle in the product; few files on the disk."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ON_DISK = {
    "__main__", "closed_pipe",
    "files.atomic_folder", "files.bounded_json", "files.drop_oldest", "files.file_kind", "files.nearest_file",
    "files.path_checks", "files.replace_file", "files.run_folder", "files.safetensors_reader", "files.yaml12",
    "generation.open_model", "generation.stored_vocabulary",
    "gguf.adapter", "gguf.model", "gguf.reader",
    "peft.base_model", "peft.config_file", "peft.folder", "peft.key_errors", "peft.mlx", "peft.same_base",
    "peft.stored_tensors", "peft.unused_names",
    "pretrained.absent_weights", "pretrained.folder", "pretrained.load", "pretrained.locate", "pretrained.source",
    "pretrained.stored_config", "pretrained.stored_head", "pretrained.tokenizer",
    "pretrained.tokenizer_files", "pretrained.weights",
}  # fmt: skip
"""The library's files that may touch the disk."""
PRIVATE = {
    # The offsets of packed texts are cuDNN's, and no argument of jax.nn.dot_product_attention.
    "models.attention.cudnn": {"jax._src.cudnn", "jax._src.cudnn.fused_attention_stablehlo"},
}
"""What files import of JAX's private modules, and why."""
MOST_FILES = {"jlora/models/families": 24}
"""In a folder; in all others, 16."""
RUN_FROM_PYTHON = {ROOT / "train/classify", ROOT / "train/lm"}
"""Folders that have a function, `run`, which users call."""


def _files(package):
    return sorted((ROOT / package).rglob("*.py"))


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield str(node.module)
            yield from (f"{node.module}.{name.name}" for name in node.names)


def _is_in(name, packages):
    return name.split(".")[0] in packages


def _part(path):
    """The file by its place in its package: `errors`, `transform.rules.table`."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts[1:])


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("jlora", {"train", "serve", "tests", "benchmarks", "torch", "peft"}),
        ("train", {"serve", "tests", "benchmarks", "torch", "peft"}),
        ("serve", {"train", "tests", "benchmarks", "torch", "peft"}),
    ],
)
def test_packages_import_one_way(package, forbidden):
    for path in _files(package):
        assert [name for name in _imports(path) if _is_in(name, forbidden)] == [], path


def test_folders_import_one_way():
    pytest.importorskip("importlinter")
    # In a process of its own: it sets up logging, which disables the loggers that there are.
    script = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_only_the_transform_and_our_keys_import_jax_extend():
    users = {_part(path) for path in _files("jlora") if any(name.startswith("jax.extend") for name in _imports(path))}
    assert users == {"ops.dropout_key", "transform.interpreter"}


def test_nobody_imports_jaxs_private_modules():
    for package in ("jlora", "train", "serve"):
        for path in _files(package):
            found = {name for name in _imports(path) if name.startswith("jax._src")}
            assert found <= PRIVATE.get(_part(path), set()), path


@pytest.mark.parametrize("package", ["jlora", "train", "serve", "benchmarks"])
def test_folders_say_what_they_are_and_hold_no_code_of_their_own(package):
    for path in _files(package):
        if path.name == "__init__.py" and path.parent not in (ROOT / "jlora", ROOT / "train"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            assert ast.get_docstring(tree), path
            if path.parent not in RUN_FROM_PYTHON:
                assert len(tree.body) == 1, path
                continue
            *imports, run, meaning = tree.body[1:]
            assert all(isinstance(node, ast.ImportFrom) for node in imports), path
            assert ast.unparse(run).startswith("run = partial(from_python.run, "), path
            assert ast.unparse(meaning) == "run.__doc__ = from_python.run.__doc__", path


@pytest.mark.parametrize("package", ["jlora", "train", "serve", "benchmarks"])
def test_a_folder_is_seen_at_a_glance(package):
    for folder in {path.parent for path in _files(package)}:
        files = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        most = MOST_FILES.get(str(folder.relative_to(ROOT)), 16)
        assert len(files) <= most, folder
        assert (folder / "__init__.py").is_file(), folder


def test_few_files_touch_the_disk():
    disk = {"pathlib", "os", "io", "shutil", "tempfile", "safetensors", "huggingface_hub", "glob"}
    for path in _files("jlora"):
        calls = {
            node.id for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Name)
        }
        if any(_is_in(name, disk) for name in _imports(path)) or "open" in calls:
            assert _part(path) in ON_DISK, path


def test_every_test_file_is_at_the_path_of_its_source():
    for package in ("jlora", "train", "serve", "benchmarks"):
        for path in (ROOT / "tests" / package).rglob("test_*.py"):
            source = ROOT / path.parent.relative_to(ROOT / "tests") / path.stem.removeprefix("test_")
            assert source.is_dir() or source.with_suffix(".py").is_file(), path
