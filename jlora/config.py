"""LoraConfig: PEFT's field names with PEFT's meaning."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from jlora.errors import JloraError

HEAD_NAMES = ("classifier", "score")
"""What PEFT adds to `modules_to_save` for sequence classification."""


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """How to adapt a model, in the words of PEFT's `LoraConfig`.

    Attributes:
      r: rank of the update B A.
      lora_alpha: the update is scaled by lora_alpha / r (by lora_alpha / sqrt(r) with `use_rslora`).
      lora_dropout: probability with which the input of A is dropped while training.
      target_modules: "all-linear"; a string, which is a regular expression that must match a module's whole
        dotted name; or a list of names, each the whole name or its last components.
      exclude_modules: the same, for modules to leave out.
      modules_to_save: modules trained whole beside the adapter, by the end of their name. None is the
        classification head where task_type is "SEQ_CLS"; an empty list freezes that too.
      rank_pattern, alpha_pattern: {regular expression on the end of the name: r or lora_alpha}.
      layers_to_transform: numbers of the layers to adapt (with a list of target_modules); None is all.
      use_rslora: scale by lora_alpha / sqrt(r) (Kalajdzievski 2023).
      init_lora_weights: True is PEFT's default (A Kaiming uniform, B zero); "gaussian" draws A with standard
        deviation 1 / r; False draws B too, so that the adapter starts away from the base.
      task_type: PEFT's, "SEQ_CLS" for sequence classification, or None.

    Raises:
      JloraError: an impossible value, naming the field.
    """

    r: int = 8
    lora_alpha: float = 8
    lora_dropout: float = 0.0
    target_modules: str | Sequence[str] | None = None
    exclude_modules: str | Sequence[str] | None = None
    modules_to_save: Sequence[str] | None = None
    rank_pattern: Mapping[str, int] = dataclasses.field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = dataclasses.field(default_factory=dict)
    layers_to_transform: int | Sequence[int] | None = None
    use_rslora: bool = False
    init_lora_weights: bool | Literal["gaussian"] = True
    task_type: str | None = None

    def __post_init__(self) -> None:
        for key, rank in {"r": self.r, **_entries("rank_pattern", self.rank_pattern)}.items():
            _require(isinstance(rank, int) and rank >= 1, key, "an integer of at least 1", rank)
        for key, alpha in {"lora_alpha": self.lora_alpha, **_entries("alpha_pattern", self.alpha_pattern)}.items():
            _require(isinstance(alpha, (int, float)), key, "a number", alpha)
        probability = isinstance(self.lora_dropout, (int, float)) and 0 <= self.lora_dropout < 1
        _require(probability, "lora_dropout", "a number in [0, 1)", self.lora_dropout)
        known = self.init_lora_weights in (True, False, "gaussian")
        _require(known, "init_lora_weights", "true, false or gaussian", self.init_lora_weights)
        _require(not isinstance(self.modules_to_save, str), "modules_to_save", "a list of names", self.modules_to_save)
        for key, pattern in self._regular_expressions():
            _require(_compiles(pattern), key, "a regular expression", pattern)
        layered = self.layers_to_transform is None or not isinstance(self.target_modules, str)
        expected = "null where target_modules is a string (PEFT's rule): a list of names, or the layers in the regex"
        _require(layered, "layers_to_transform", expected, self.layers_to_transform)

    def _regular_expressions(self) -> Iterator[tuple[str, str]]:
        for field in ("target_modules", "exclude_modules"):
            if isinstance(getattr(self, field), str):
                yield field, getattr(self, field)
        for field in ("rank_pattern", "alpha_pattern"):
            yield from ((field, pattern) for pattern in getattr(self, field))

    @property
    def trained_whole(self) -> tuple[str, ...]:
        """Ends of the names of the modules that are trained whole, defaults of the task included."""
        if self.modules_to_save is None:
            return HEAD_NAMES if self.task_type == "SEQ_CLS" else ()
        return tuple(self.modules_to_save)


def write_config(folder: Path, config: LoraConfig, base_model: str | None, targets: Sequence[str]) -> None:
    """Writes PEFT's `adapter_config.json` (sorted keys) into an existing folder.

    Args:
      base_model: name or folder of the base, PEFT's `base_model_name_or_path`.
      targets: names of the adapted modules, written where `target_modules` does not list names itself.
    """
    fields = dataclasses.asdict(config)
    if config.target_modules is None or config.target_modules == "all-linear":
        fields["target_modules"] = list(targets)
    if config.task_type == "SEQ_CLS" and config.modules_to_save is None:
        fields["modules_to_save"] = list(HEAD_NAMES)
    if config.task_type == "SEQ_CLS" and not set(HEAD_NAMES) & set(config.trained_whole):
        fields["task_type"] = None  # told of a classifier, PEFT would look for its weights in the adapter's file
    fields |= {
        "peft_type": "LORA",
        "base_model_name_or_path": base_model,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    in_order = dict(sorted(fields.items()))  # but patterns as given: the first that matches a name counts
    (folder / "adapter_config.json").write_text(json.dumps(in_order, indent=2, default=sorted) + "\n")


# Fields of PEFT's config that say nothing about the function the adapter computes.
_NEUTRAL = {
    "peft_type", "base_model_name_or_path", "peft_version", "auto_mapping", "revision", "inference_mode",
    "fan_in_fan_out", "megatron_core", "loftq_config", "qalora_group_size",
}  # fmt: skip
_OFF: tuple[Any, ...] = (None, False, "none", [], {})


def read_config(folder: Path) -> LoraConfig:
    """Reads PEFT's `adapter_config.json`.

    Raises:
      JloraError: no such file, not JSON, not LoRA, or a feature that is not supported here, each named.
    """
    path = folder / "adapter_config.json"
    if not path.is_file():
        raise JloraError(f"{path}: expected PEFT's configuration, found no such file")
    try:
        raw: Any = json.loads(path.read_text())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise JloraError(f"{path}: expected JSON, found {error}") from None
    if not isinstance(raw, dict) or raw.get("peft_type") != "LORA":
        found = raw.get("peft_type") if isinstance(raw, dict) else raw
        raise JloraError(f"{path}: peft_type: expected LORA, found {found!r}")
    names = {field.name for field in dataclasses.fields(LoraConfig)}
    for key in sorted(set(raw) - names - _NEUTRAL):
        if raw[key] not in _OFF:
            raise JloraError(f"{path}: {key}: expected it off or absent (not supported), found {raw[key]!r}")
    try:
        return LoraConfig(**{key: value for key, value in raw.items() if key in names})
    except JloraError as error:
        raise JloraError(f"{path}: {error}") from None


def _entries(field: str, patterns: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{field}.{pattern}": value for pattern, value in patterns.items()}


def _compiles(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True


def _require(holds: bool, key: str, expected: str, found: Any) -> None:
    if not holds:
        raise JloraError(f"LoraConfig.{key}: expected {expected}, found {found!r}")
