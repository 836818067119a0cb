"""The server's configuration: one YAML file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator

from jlora.errors import FileError
from jlora.files import yaml12

ADAPTER_NAME = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}"
"""An adapter's name as a regular expression."""
EXPECTED_NAME = "1 to 128 letters, digits, '.', '_' and '-', the first of them neither '.' nor '-'"

_LOCAL = ("127.0.0.1", "::1", "localhost")

Name = Annotated[str, StringConstraints(pattern=f"^{ADAPTER_NAME}$")]


class ServeMesh(BaseModel):
    """The devices that share the base.

    Attributes:
      tensor: how many they are; each has a part of every weight, and of the keys and values of every row.
    """

    model_config = ConfigDict(extra="forbid")

    tensor: Annotated[int, Field(ge=1)] = 1


class ServeConfig(BaseModel):
    """The keys of the file; a relative path is one from the folder in which the server is started.

    Attributes:
      model: the base: a folder, a GGUF file, a hub model, or package:PACKAGE/PATH.
      name: what requests call the base; by default the last part of `model`.
      adapters: {name: folder in PEFT's format, or a run folder of `jlora lm` or `jlora classify`}.
      adapter_folders: each folder in them that holds an adapter can be asked for under its own name; the admin routes
        load adapters from these folders alone.
      slots: how many adapters are in memory at the same time.
      max_rank: the largest rank of an adapter.
      target_modules: the modules that adapters may adapt, as in LoraConfig.
      labels: the most classes of an adapter, where the model is an encoder that classifies.
      rows: how many answers get tokens at the same time.
      context: the most tokens of prompt and answer; None is the model's own number, at most 4096.
      prefixes: how many prompts' keys and values are kept for prompts that begin alike; 0 keeps none.
      waiting: how many answers, or rows to classify, may wait before others are refused.
      dtype, quantize: of the computation, and how the base is stored.
      mesh: the devices that share the base; adapters are on each of them.
      host, port: where the server listens.
      token: requests to /v1 and /metrics must carry it as `Authorization: Bearer TOKEN`; needed unless the host is this
        machine's own.
      admin_token: the admin routes' own token; without one they are off.
      seconds_to_finish: how long answers may go on after SIGTERM.
    """

    model_config = ConfigDict(extra="forbid")

    model: str
    name: Name | None = None
    adapters: dict[Name, Path] = Field(default_factory=dict)
    adapter_folders: list[Path] = Field(default_factory=list)
    slots: Annotated[int, Field(ge=1, le=4096)] = 16
    max_rank: Annotated[int, Field(ge=1, le=1024)] = 16
    target_modules: str | list[str] = "all-linear"
    labels: Annotated[int, Field(ge=1, le=65536)] = 32
    rows: Annotated[int, Field(ge=1, le=1024)] = 16
    context: Annotated[int, Field(ge=64)] | None = None
    prefixes: Annotated[int, Field(ge=0)] = 8
    waiting: Annotated[int, Field(ge=1)] = 256
    dtype: Literal["float32", "bfloat16"] = "float32"
    quantize: Literal["int8", "nf4"] | None = None
    mesh: ServeMesh = ServeMesh()
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    token: str | None = None
    admin_token: str | None = None
    seconds_to_finish: Annotated[float, Field(ge=0)] = 30

    @field_validator("token", "admin_token")
    @classmethod
    def _require_length(cls, token: str | None) -> str | None:
        if token is not None and len(token) < 8:
            raise ValueError("expected at least 8 characters")
        return token

    @model_validator(mode="after")
    def _require_token(self) -> ServeConfig:
        if self.host not in _LOCAL and self.token is None:
            raise ValueError(f"host: {self.host!r} can be reached from other machines, which needs a `token`")
        return self

    @property
    def base_name(self) -> str:
        """What requests call the base."""
        if self.name is not None:
            return self.name
        last = re.sub(r"[^A-Za-z0-9._-]", "-", self.model.rstrip("/").rsplit("/", 1)[-1])
        return last.removesuffix(".gguf").lstrip(".-") or "base"


def read_serve_config(file: str | Path, changes: dict[str, Any]) -> ServeConfig:
    """Reads the YAML file, in which `changes` {key: value} replace keys.

    Raises:
      JloraError: as `jlora.files.yaml12.read_file`; a FileError for a key that is unknown or has a wrong value.
    """
    path = Path(file)
    content = yaml12.read_file(path)
    try:
        return ServeConfig.model_validate(content | changes)
    except ValidationError as error:
        raise FileError(_problems(path, error)) from error


def _problems(path: Path, error: ValidationError) -> str:
    """Returns a line for each problem: file, key, what was expected, what was found."""
    lines = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"]) or "the file"
        if problem["type"] == "extra_forbidden":
            lines.append(f"{path}: {key}: unknown key; known are {', '.join(ServeConfig.model_fields)}")
        else:
            lines.append(f"{path}: {key}: {problem['msg']}" + _found(problem))
    return "\n".join(lines)


def _found(problem: Any) -> str:
    if problem["type"] in ("missing", "value_error") or "token" in problem["loc"]:
        return ""
    return f", found {problem['input']!r:.200}"
