"""Where a model's files are, its tokenizer, and the base that an adapter names."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from jlora.checkpoint_files import read_json
from jlora.errors import JloraError
from jlora.gguf_file import gguf_tokenizer, is_gguf
from train.sources import local_path


def model_folder(name: str) -> str:
    """The folder of a local model, or the hub's name as it is."""
    folder = local_path(name)
    return name if folder is None else str(folder)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer beside the model, or the one in its GGUF file.

    Raises:
      JloraError: the folder or hub model has none, or one that knows no words; a GGUF file's is not supported.
    """
    folder = model_folder(name)
    if is_gguf(folder):
        return gguf_tokenizer(Path(folder))
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise JloraError(f"{name}: expected a tokenizer beside the model (tokenizer.json); found {error}") from None
    # Without any file transformers makes a tokenizer of the special tokens alone, and says nothing.
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise JloraError(f"{name}: expected a tokenizer beside the model (tokenizer.json); found no words of one")
    return tokenizer


def base_of(folder: Path) -> str:
    """The base model that `adapter_config.json` names.

    Raises:
      JloraError: there is no such file, or it names none.
    """
    file = folder / "adapter_config.json"
    name = read_json(file).get("base_model_name_or_path")
    if not name:
        raise JloraError(f"{file}: base_model_name_or_path: expected the base's name; give it by --base")
    return str(name)
