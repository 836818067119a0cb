"""A pretrained model at one place. Its config, tensors and tokenizer are read when they are first used, and once."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jlora.gguf.model import GgufTensor, is_gguf
from jlora.models.registry import family
from jlora.pretrained.folder import GENERATION_FILE, WEIGHT_PATTERNS, fetch, find_downloaded, open_tensors
from jlora.pretrained.locate import model_folder
from jlora.pretrained.stored_config import make_config, read_stored_config
from jlora.pretrained.stored_head import holds_own_head
from jlora.pretrained.tokenizer import read_tokenizer
from jlora.pretrained.tokenizer_files import TOKENIZER_FILES

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from jlora.files.safetensors_reader import StoredTensor


class PretrainedSource:
    """A model folder, a GGUF file or a hub model.

    Nothing is read or downloaded before its first use, so a missing folder is refused then. What has been read stays
    the same even if the files change; a new source reads them again.

    Attributes:
      name: the name that was given: a folder, a GGUF file, `package:PKG/inner/path` or a hub id.
      revision: the hub's branch, tag or commit.
    """

    def __init__(self, name: str | Path, revision: str | None = None) -> None:
        self.name, self.revision = str(name), revision
        self._weights: Path | None = None

    @cached_property
    def place(self) -> str:
        """The path of a local model, or the hub id."""
        return model_folder(self.name)

    @cached_property
    def config(self) -> PreTrainedConfig:
        """The stored config, as `config_with` makes it; copy it before changing it."""
        return self.config_with()

    def config_with(self, **overrides: Any) -> PreTrainedConfig:
        """Makes a config of the stored one; never runs code from a repository.

        Args:
          overrides: config keys to replace, such as `num_labels`, `id2label`, `label2id`, `problem_type`.

        Raises:
          FileError: no such folder, or a value that the config class does not accept.
          HubError: no such model on the hub.
          UnsupportedModelError: an unsupported `model_type`.
          JloraError: an override that the config class does not have, or labels that contradict `num_labels`.
        """
        return make_config(*self._stored_config, overrides)

    @cached_property
    def _stored_config(self) -> tuple[Path, dict[str, Any]]:
        return read_stored_config(fetch(self.place, self.revision, ["config.json", GENERATION_FILE]))

    def fetch_weights(self) -> Path:
        """Returns the folder or GGUF file with the weights; those of a hub model are downloaded at the first call.

        Raises:
          FileError, HubError: as for `fetch`.
        """
        if self._weights is None:
            self._weights = fetch(self.place, self.revision, WEIGHT_PATTERNS)
        return self._weights

    @cached_property
    def tensors(self) -> Mapping[str, StoredTensor | GgufTensor]:
        """The stored weights, {key: tensor}; only headers are read. Raises as `fetch_weights` and `open_tensors` do."""
        return open_tensors(self.fetch_weights())

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, which whoever changes it changes for all. Raises as `read_tokenizer` does."""
        return read_tokenizer(fetch(self.place, self.revision, TOKENIZER_FILES), self.name)

    def with_stored_head(self, config: PreTrainedConfig) -> PreTrainedConfig:
        """Sets `tie_word_embeddings` to false if the files hold a head that differs from the embedding.

        It downloads nothing: if no weights are on this disk, the config is not changed.

        Args:
          config: from `config_with`.

        Raises:
          JloraError: as for `open_tensors`.
        """
        # A GGUF file has no second table, or its config is not tied.
        may_untie = family(config.model_type).task == "CAUSAL_LM" and config.tie_word_embeddings
        if not may_untie or is_gguf(self.place) or not self._find_weights() or not self._holds_own_head:
            return config
        config = copy(config)
        config.tie_word_embeddings = False
        return config

    def _find_weights(self) -> Path | None:
        """Returns what `fetch_weights` does if there are weights on this disk, else None."""
        found = find_downloaded(self.place, self.revision, WEIGHT_PATTERNS)
        self._weights = self._weights or found
        return found

    @cached_property
    def _holds_own_head(self) -> bool:
        return holds_own_head(family(self.config.model_type), self.tensors)
