"""Says which other files a folder has in place of the weights that are read, and what to do with them."""

from __future__ import annotations

from pathlib import Path

from jlora.errors import FileError
from jlora.files.bounded_json import read_json
from jlora.files.file_kind import kind_of_file

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
_OTHER_FRAMEWORKS = ("*.h5", "*.keras", "*.msgpack", "*.onnx", "*.tflite", "*.pb")


def say_what_is_instead(folder: Path) -> str:
    """Returns the end of an error about a folder without safetensors files that are read: what it has, what to do."""
    if pickles := _names(folder, _PICKLES):
        return (
            f"{pickles}, which may run code and is never opened here; if you trust it, convert it with PyTorch:"
            f" {_class_in(folder)}.from_pretrained(folder).save_pretrained(folder)"
        )
    if shards := _names(folder, ("model-*.safetensors",)):
        return (
            f"parts of the weights alone ({shards}). Copy or download the file model.safetensors.index.json too, which"
            " names their keys"
        )
    if others := _names(folder, ("*.safetensors",)):
        return f"{others}. If that is the model, rename it to model.safetensors"
    if quantized := sorted(folder.glob("*.gguf")):
        return f"neither, but {quantized[0].name}. Give that file: {quantized[0]}"
    if parts := [*folder.glob("*.distcp"), *folder.glob("global_step*")]:
        return (
            f"neither, but a checkpoint in parts ({parts[0].name}). Join them first: accelerate merge-weights for FSDP,"
            " zero_to_fp32.py --safe_serialization for DeepSpeed"
        )
    if foreign := _names(folder, _OTHER_FRAMEWORKS):
        return (
            f"{foreign}, which is not read: it is another program's. Download the model's safetensors files, or have"
            " the program that wrote it save them"
        )
    return "neither. Copy or download the weights, too"


def say_what_the_file_is(file: Path) -> str:
    """Returns what an existing file is that was given in place of a model's folder, and what to do."""
    if file.suffix == ".safetensors" or (file.parent / "config.json").is_file():
        return f"a file. Give the folder that it is in: {file.parent}"
    if file.suffix == ".onnx":
        return "an ONNX file. Give the folder of the model that it was made from"
    if kind := kind_of_file(file):
        return f"{kind}, and give their folder" if "safetensors" in kind else kind
    return "a file that is not GGUF. Give the folder of the model's files"


def _names(folder: Path, patterns: tuple[str, ...]) -> str:
    found = sorted(file.name for pattern in patterns for file in folder.glob(pattern))
    return ", ".join(found[:5]) + f" and {len(found) - 5} more" * (len(found) > 5)


def _class_in(folder: Path) -> str:
    """Returns the class that the folder's config names; AutoModel would save a causal model without its head."""
    try:
        names = read_json(folder / "config.json").get("architectures")
    except FileError:
        names = None
    name = names[0] if isinstance(names, list) and names else None
    return name if isinstance(name, str) and name.isidentifier() else "AutoModelForCausalLM"
