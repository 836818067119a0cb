"""Imports run one way: the library's layers, library to trainer and server, and no oracle in the product."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS = [
    {"printable"},
    {"errors"},
    {"own_files"},
    {"finite", "json_file", "whole_folder", "patterns"},
    {"safetensors_file"},
    {"mesh"},
    {"quantization.nf4", "quantization.int8", "quantization.heads"},
    {"quantization.leaf"},
    {"paths", "names", "transform.compat", "dropout", "products"},
    {"config", "hash_key", "explicit_sharding"},
    {"targets", "adapter"},
    {"matrices", "dora", "tying"},
    {"transform.deferred"},
    {"transform.factored"},
    {"transform.moves", "transform.linear_maps", "transform.consume", "transform.tap"},
    {"transform.convolution", "transform.context"},
    {"transform.control_flow", "transform.rules"},
    {"transform.interpreter"},
    {"transform.adapt", "transform.moments"},
    {"base_uses"},
    {"token_rows"},
    {"abstract_adapter", "draws"},
    {"init_adapter", "algebra.merge"},
    {"residual", "eva", "quantization.tree"},
    {"loftq"},
    {"algebra.reduce", "algebra.stack"},
    {"algebra.weighted", "algebra.extract"},
    {"peft.keys", "peft.torch_paths"},
    {"peft.mlx"},
    {"peft.stored_tensors"},
    {"peft.config_file", "peft.fitted", "peft.copies", "peft.lora_bias", "gguf_lora"},
    {"peft.true_config", "peft.vllm"},
    {"peft.folder"},
    {"sharding", "generation"},
    {"__init__"},
    {"__main__"},
]
"""Files of the core, each of which imports from earlier layers alone."""
GGUF = {"gguf_reader", "gguf_architectures", "gguf_tokenizer", "gguf_file"}
MODELS = {"models", *GGUF, "stored_config", "stored_head", "checkpoint_files", "loading", "weights", "base"}
"""Models and their files, which know nothing of LoRA."""
BELOW_MODELS = {
    "errors",
    "finite",
    "json_file",
    "own_files",
    "safetensors_file",
    "whole_folder",
    "mesh",
    "paths",
    "names",
    "dropout",
    "products",
    "quantization.leaf",
    "quantization.heads",
}
"""What these may import of the rest."""
ON_DISK = {
    "own_files", "json_file", "safetensors_file", "whole_folder", "peft.config_file", "peft.stored_tensors", "peft.mlx",
    "peft.folder", "base", "weights", "stored_head", "checkpoint_files", "gguf_reader", "gguf_file", "gguf_lora",
    "__main__",
}  # fmt: skip
"""The library's files that may touch the disk."""
PRIVATE = {
    # The offsets of packed texts are cuDNN's, and no argument of jax.nn.dot_product_attention.
    "cudnn_attention.py": {"jax._src.cudnn", "jax._src.cudnn.fused_attention_stablehlo"},
}
"""What files import of JAX's private modules, and why."""
PACKAGES = {"transform", "algebra", "peft", "quantization"}
"""Folders of the core, whose own `__init__` says what they are and no more."""


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


def _own(path):
    """The files of jlora that `path` imports, as in LAYERS; of `from jlora import x` and models, the first name."""
    known = {_part(file) for file in _files("jlora")} - PACKAGES
    imported = [name.split(".")[1:] for name in _imports(path) if name.startswith("jlora.")]
    return {part for names in imported for part in (names[0], ".".join(names[:2])) if part in known}


def _part(path):
    """The file as LAYERS has it: `adapter`, `transform.rules`; `models` for all files of that folder."""
    parts = path.relative_to(ROOT / "jlora").with_suffix("").parts
    if parts[-1] == "__init__" and len(parts) > 1:
        parts = parts[:-1]
    return "models" if parts[0] == "models" else ".".join(parts)


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


def test_only_the_transform_and_our_keys_import_jax_extend():
    users = {_part(path) for path in _files("jlora") if any(name.startswith("jax.extend") for name in _imports(path))}
    assert users == {"hash_key", "transform.interpreter"}


def test_nobody_imports_jaxs_private_modules():
    for package in ("jlora", "train", "serve"):
        for path in _files(package):
            found = {name for name in _imports(path) if name.startswith("jax._src")}
            assert found <= PRIVATE.get(path.name, set()), path


def test_the_core_is_made_of_layers():
    below: set[str] = set()
    for layer in LAYERS:
        for name in layer:
            allowed = below | (MODELS if name in ("sharding", "generation", "__init__") else set())
            assert _own(ROOT / "jlora" / f"{name.replace('.', '/')}.py") <= allowed, name
        below |= layer


def test_models_and_their_files_know_nothing_of_lora():
    for path in _files("jlora"):
        if _part(path) in MODELS:
            assert _own(path) <= MODELS | BELOW_MODELS, path


def test_every_file_has_its_place():
    assert {_part(path) for path in _files("jlora")} == set().union(*LAYERS) | MODELS | PACKAGES


def test_folders_hold_no_code_of_their_own():
    for package in PACKAGES:
        tree = ast.parse((ROOT / "jlora" / package / "__init__.py").read_text(encoding="utf-8"))
        assert len(tree.body) == 1, package
        assert ast.get_docstring(tree), package


def test_few_files_touch_the_disk():
    disk = {"pathlib", "os", "io", "shutil", "tempfile", "safetensors", "huggingface_hub", "glob"}
    for path in _files("jlora"):
        calls = {
            node.id for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Name)
        }
        if any(_is_in(name, disk) for name in _imports(path)) or "open" in calls:
            assert _part(path) in ON_DISK, path
