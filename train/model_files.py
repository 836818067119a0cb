"""Where a model's files are, its tokenizer, and the base that an adapter names."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from jlora.checkpoint_files import fetch
from jlora.errors import JloraError
from jlora.gguf_file import gguf_tokenizer, is_gguf
from jlora.own_files import as_path
from jlora.peft.config_file import CONFIG, read_base_name
from train.sources import local_path
from train.tokenizer_files import TOKENIZER_FILES, copy_tokenizer_files

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def model_folder(name: str) -> str:
    """The folder of a local model, or the hub's name as it is."""
    folder = local_path(name)
    return name if folder is None else str(folder)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer beside the model, or the one in its GGUF file; code that a repository may bring is never run.

    Raises:
      JloraError: the folder or hub model has none, or one that knows no words; whatever `copy_tokenizer_files`
        refuses; a GGUF file's is not supported.
    """
    from transformers import AutoTokenizer

    folder = fetch(model_folder(name), None, TOKENIZER_FILES)
    if is_gguf(folder):
        return gguf_tokenizer(folder)
    with tempfile.TemporaryDirectory(prefix="jlora-tokenizer-") as plain:
        copy_tokenizer_files(folder, Path(plain))
        try:
            tokenizer = AutoTokenizer.from_pretrained(plain, trust_remote_code=False, local_files_only=True)
            tokenizer("a b\n")  # much that is wrong in a file is found by its first use
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # whatever comes of such files; a panic of tokenizers, in Rust, is no Exception
            found = str(error).replace(plain, str(folder))
            raise JloraError(f"{name}: expected a tokenizer beside the model (tokenizer.json); found {found}") from None
    tokenizer.name_or_path = str(folder)
    # Without any file transformers makes a tokenizer of the special tokens alone, and says nothing.
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise JloraError(f"{name}: expected a tokenizer beside the model (tokenizer.json); found no words of one")
    return tokenizer


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """What fills rows up; masks come from lengths, so it may be any token's id."""
    found = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((index for index in found if index is not None), 0)


def base_of(folder: Path) -> str:
    """The base model that `adapter_config.json` names.

    Raises:
      JloraError: there is no such file, or it names none that could be found here.
    """
    file = folder / CONFIG
    name = read_base_name(folder)
    if not name:
        raise JloraError(f"{file}: base_model_name_or_path: expected the base's name; found none. Give it with --base")
    if name.startswith("package:"):  # a stranger's file is not to choose what the user installs
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
    """Whether the name can be no hub's, which is NAME or OWNER/NAME."""
    return name.startswith(("/", ".", "~")) or name.count("/") > 1 or "\\" in name or ":" in name


def _exists(name: str) -> bool:
    try:
        return as_path(name).exists()
    except JloraError:  # no path at all
        return False
