"""Finds a model's files, loads its tokenizer, and reads the name of an adapter's base."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from jlora.errors import JloraError
from jlora.files.path_checks import as_path
from jlora.gguf.model import gguf_tokenizer, is_gguf
from jlora.peft.config_file import CONFIG, read_base_name
from jlora.pretrained.folder import fetch
from train.sources.locate import local_path
from train.sources.tokenizer_files import TOKENIZER_FILES, copy_tokenizer_files

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def model_folder(name: str) -> str:
    """Returns the folder of a local model, or a hub name unchanged."""
    folder = local_path(name)
    return name if folder is None else str(folder)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Loads the tokenizer in the model's folder or GGUF file; never runs a repository's code.

    Raises:
      JloraError: the folder or hub model has no tokenizer, or one without a vocabulary; `copy_tokenizer_files` refuses
        its files; or a GGUF file's tokenizer is not supported.
    """
    from transformers import AutoTokenizer

    folder = fetch(model_folder(name), None, TOKENIZER_FILES)
    if is_gguf(folder):
        return gguf_tokenizer(folder)
    with tempfile.TemporaryDirectory(prefix="jlora-tokenizer-") as plain:
        copy_tokenizer_files(folder, Path(plain))
        try:
            tokenizer = AutoTokenizer.from_pretrained(plain, trust_remote_code=False, local_files_only=True)
            tokenizer("a b\n")  # many errors in a file appear only when it is used
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # such files can cause any exception; a Rust panic is not an Exception
            found = str(error).replace(plain, str(folder))
            raise JloraError(f"{name}: expected a tokenizer with the model (tokenizer.json); found {found}") from None
    tokenizer.name_or_path = str(folder)
    # Without any file, transformers silently makes a tokenizer that has only the special tokens.
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise JloraError(f"{name}: expected a tokenizer with the model (tokenizer.json); found no words of one")
    return tokenizer


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Returns the id that pads rows; masks come from lengths, so it may be any token's id."""
    found = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((index for index in found if index is not None), 0)


def base_of(folder: Path) -> str:
    """Returns the base model that `adapter_config.json` names.

    Raises:
      JloraError: there is no such file, or it names no base, or one that is neither a local folder nor a hub name.
    """
    file = folder / CONFIG
    name = read_base_name(folder)
    if not name:
        raise JloraError(f"{file}: base_model_name_or_path: expected the base's name; found none. Give it with --base")
    if name.startswith("package:"):  # an untrusted file must not choose what the user installs
        raise JloraError(
            f"{file}: base_model_name_or_path: expected a folder or a name on the hub; found {name!r}. Give the base"
            " with --base"
        )
    if _is_path(name) and not _exists(name):
        raise JloraError(
            f"{file}: base_model_name_or_path: expected a folder or a name on the hub; found {name!r}, which is not on"
            " this machine (it may be a path of the machine where the adapter was trained). Give the base with --base:"
            " its folder, or its name on the hub"
        )
    return name


def _is_path(name: str) -> bool:
    """Returns whether the name cannot be a hub name, which is NAME or OWNER/NAME."""
    return name.startswith(("/", ".", "~")) or name.count("/") > 1 or "\\" in name or ":" in name


def _exists(name: str) -> bool:
    try:
        return as_path(name).exists()
    except JloraError:  # not a possible path
        return False
