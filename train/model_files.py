"""Where a model's files are, its tokenizer, and the base that an adapter names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jlora.checkpoint_files import fetch
from jlora.errors import JloraError
from jlora.gguf_file import gguf_tokenizer, is_gguf
from jlora.json_file import read_json
from jlora.models import family
from jlora.peft.config_file import CONFIG, read_base_name
from train.sources import local_path

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "config.json",
    "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model",
    "chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja", "tokenizer.*.json", "*.model",
    "*.tiktoken",
)  # fmt: skip
_LARGEST = 2**27
"""Bytes. The tokenizer.json of 250 000 tokens has 35 MB."""
_NAMES_OF_FILES = ("fast_tokenizer_files", "vocab", "merges")
_BESIDE = re.compile(r"tokenizer\.[\d.]+\.json")
_TOKENIZER_CLASS = re.compile(r"(?!Auto)\w*(Tokenizer|TokenizerFast|Backend)")


def model_folder(name: str) -> str:
    """The folder of a local model, or the hub's name as it is."""
    folder = local_path(name)
    return name if folder is None else str(folder)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer beside the model, or the one in its GGUF file; code that a repository may bring is never run.

    Raises:
      JloraError: the folder or hub model has none, or one that knows no words, that is too large, or whose class is
        the repository's own; a GGUF file's is not supported.
    """
    from transformers import AutoTokenizer

    folder = fetch(model_folder(name), None, _TOKENIZER_FILES)
    if is_gguf(folder):
        return gguf_tokenizer(folder)
    _require_plain(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        tokenizer("a b\n")  # much that is wrong in a file is found by its first use
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # whatever comes of such files; a panic of tokenizers, in Rust, is no Exception
        raise JloraError(f"{name}: expected a tokenizer beside the model (tokenizer.json); found {error}") from None
    # Without any file transformers makes a tokenizer of the special tokens alone, and says nothing.
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise JloraError(f"{name}: expected a tokenizer beside the model (tokenizer.json); found no words of one")
    return tokenizer


def _require_plain(folder: Path) -> None:
    """Raises JloraError where a file is larger than any tokenizer's, or names a class that is not a tokenizer's."""
    for file in (file for pattern in _TOKENIZER_FILES for file in folder.glob(pattern)):
        if file.stat().st_size > _LARGEST:
            raise JloraError(f"{file}: expected at most {_LARGEST} bytes; found {file.stat().st_size}")
    for file in (folder / "tokenizer_config.json", folder / "config.json"):
        stored = read_json(file) if file.is_file() else {}
        if not _is_tokenizer_class(found := stored.get("tokenizer_class")):
            raise JloraError(f"{file}: tokenizer_class: expected a class of tokenizers; found {found!r}")
        if file.name == "config.json" and file.is_file():
            family(stored.get("model_type"))  # which chooses the class where none is named
            continue
        if outside := [key for key in _NAMES_OF_FILES if not _is_beside(stored.get(key))]:
            raise JloraError(
                f"{file}: {outside[0]}: expected nothing, or names of files beside it; found {stored[outside[0]]!r}"
            )
        if stored.get("auto_map") is not None:
            raise JloraError(
                f"{file}: auto_map: expected no class of the repository's own, whose code is never run here;"
                f" found {stored['auto_map']!r}"
            )


def _is_beside(found: Any) -> bool:
    """Whether transformers, which opens files of these names, stays in the folder."""
    names = found if isinstance(found, list) else [] if found is None else [found]
    return all(isinstance(name, str) and _BESIDE.fullmatch(name) for name in names)


def _is_tokenizer_class(name: Any) -> bool:
    """Whether transformers, told this name, reads one tokenizer from the folder itself.

    It calls `from_pretrained` of whatever it has by the name, and some of that reads subfolders, and runs their code.
    """
    if name is None:
        return True
    if not isinstance(name, str) or not _TOKENIZER_CLASS.fullmatch(name):
        return False
    import transformers

    known = getattr(transformers, name, transformers.PreTrainedTokenizerBase)
    return isinstance(known, type) and issubclass(known, transformers.PreTrainedTokenizerBase)


def base_of(folder: Path) -> str:
    """The base model that `adapter_config.json` names.

    Raises:
      JloraError: there is no such file, or it names none that could be found here.
    """
    file = folder / CONFIG
    name = read_base_name(folder)
    if not name:
        raise JloraError(f"{file}: base_model_name_or_path: expected the base's name; give it by --base")
    if name.startswith("package:"):  # a stranger's file is not to choose what the user installs
        raise JloraError(
            f"{file}: base_model_name_or_path: expected a folder or a name on the hub; found {name!r}; give the base"
            " by --base"
        )
    if _is_path(name) and not _exists(name):
        raise JloraError(
            f"{file}: base_model_name_or_path: found {name!r}, and no such folder here; it may be one of the machine"
            " that the adapter was trained on. Give the base by --base (its folder, or its name on the hub)"
        )
    return name


def _is_path(name: str) -> bool:
    """Whether the name can be no hub's, which is NAME or OWNER/NAME."""
    return name.startswith(("/", ".", "~")) or name.count("/") > 1 or "\\" in name or ":" in name


def _exists(name: str) -> bool:
    try:
        return Path(name).expanduser().exists()
    except (OSError, RuntimeError):  # a name that is too long; no such user as in ~user
        return False
