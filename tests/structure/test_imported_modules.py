"""What is imported, and what is not yet, is counted: seconds of a user's that no test of behaviour sees."""

from __future__ import annotations

import ast
import json
import pickle
import subprocess
import sys

import pytest

import jlora
from tests.support.training import tiny, tiny_lm
from train.console import COMMANDS

ARRAYS = {"numpy", "jax", "flax", "optax", "orbax"}
HUGGING_FACE = {"transformers", "tokenizers", "huggingface_hub", "datasets"}
AT_THE_END = {"sklearn", "scipy", "matplotlib", "pandas", "pyarrow"}
"""What metrics and pictures are made with, and what hub sets and Parquet files are read with."""
RECORDS = {"tensorboardX", "wandb", "trackio"}

_COMMAND = """
import json, runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
except SystemExit as end:
    print("\\n" + json.dumps([end.code, sorted(sys.modules)]))
"""


def _after(program, *arguments):
    """Names of the packages that a process has imported which ran the program, and its exit code."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, cwd=tiny.ROOT, env=tiny.environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    code, modules = json.loads(done.stdout.splitlines()[-1])
    assert not code, done.stderr
    return {name.partition(".")[0] for name in modules}


def _after_statement(statement):
    return _after(f"{statement}\nimport json, sys; print(json.dumps([0, sorted(sys.modules)]))")


def test_import_jlora_imports_nothing_else():
    found = _after_statement("import jlora")
    assert found & {*ARRAYS, *HUGGING_FACE, *AT_THE_END, "torch", "gguf", "safetensors"} == set()


def test_all_names_of_jlora_take_neither_transformers_nor_torch():
    found = _after_statement("from jlora import *")
    assert {"jax", "flax"} <= found
    assert found & {*HUGGING_FACE, *AT_THE_END, "torch", "orbax"} == set()


@pytest.mark.parametrize("command", [("train.classify",), *(("jlora", name) for name in COMMANDS)])
def test_the_help_takes_no_arrays(command):
    found = _after(_COMMAND, *command, "--help")
    assert {"train", "serve"} & found
    assert found & {*ARRAYS, *HUGGING_FACE, *AT_THE_END, *RECORDS, "torch", "gguf", "jinja2"} == set()


def test_what_is_wrong_on_the_command_line_is_said_without_arrays():
    program = _COMMAND.replace("end.code", "end.code - 2")
    found = _after(program, "train.classify", "--no-such-flag")
    assert found & {*ARRAYS, *HUGGING_FACE, "torch"} == set()


def test_a_model_is_ready_to_train_before_what_its_end_needs_is_imported(tmp_path):
    found = _after(_COMMAND, "train.classify", *tiny.arguments(tmp_path / "run"), "--dry-run")
    assert {"transformers", "orbax"} <= found
    assert found & {*AT_THE_END, *RECORDS, "datasets", "torch"} == set()


def test_a_classifiers_run_never_imports_torch(tmp_path):
    """Whole: merged/, its logits compared, predictions, the model card and the picture; torch is installed here."""
    found = _after(_COMMAND, "train.classify", *tiny.arguments(tmp_path / "run"))
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"adapter", "merged", "predictions.csv", "report.json", "curves.png", "tensorboard"} <= left
    assert "tensorboardX" in found
    assert found & {"torch", "datasets"} == set()


def test_a_language_models_run_never_imports_torch(tmp_path):
    samples = ["samples.count=1", "samples.prompt_tokens=8", "samples.max_length=24"]
    arguments = tiny_lm.arguments(tmp_path / "run", *samples)
    found = _after(_COMMAND, "train.lm", *arguments, f"data.train={tiny_lm.chats_file()}", "data.max_length=64")
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"adapter", "merged", "report.json", "samples.jsonl", "curves.png"} <= left
    assert found & {"torch", "datasets"} == set()


def test_what_a_finished_run_is_used_for_never_imports_torch(tmp_path):
    run, table = tiny.finished_run(), tmp_path / "texts.csv"
    table.write_text("text\nthe film was good\n")
    found = _after(_COMMAND, "train.predict", "--model", run, "--input", table, "--output", tmp_path / "out.csv")
    assert (tmp_path / "out.csv").exists()
    assert "torch" not in found


def test_the_type_checker_reads_the_names_that_are_imported_when_they_are_used():
    tree = ast.parse((tiny.ROOT / "jlora" / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    read = {node.module: tuple(name.name for name in node.names) for node in block.body}
    assert read == {f"jlora.{file}": names for file, names in jlora._FILES.items()}
    assert sorted(name for names in read.values() for name in names) == jlora.__all__


def test_every_name_is_found_listed_and_kept():
    assert set(jlora.__all__) <= set(dir(jlora))
    for name in jlora.__all__:
        assert getattr(jlora, name) is getattr(jlora, name)
        assert name in vars(jlora)
    assert pickle.loads(pickle.dumps(jlora.init)) is jlora.init
    assert isinstance(pickle.loads(pickle.dumps(jlora.LoraConfig(r=3))), jlora.LoraConfig)


def test_no_file_of_jlora_has_the_name_of_a_function():
    """Python binds a file to its package when it is imported, and the function would be gone."""
    files = {path.stem for path in (tiny.ROOT / "jlora").iterdir() if path.suffix in ("", ".py")}
    assert files & set(jlora.__all__) == set()


def test_a_file_is_an_attribute_and_nothing_else_is():
    assert jlora.errors.__name__ == "jlora.errors"
    with pytest.raises(AttributeError, match="module 'jlora' has no attribute 'adpat'"):
        _ = jlora.adpat
    with pytest.raises(ImportError, match="cannot import name 'adpat' from 'jlora'"):
        exec("from jlora import adpat")
