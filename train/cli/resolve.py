"""Makes the config of a run from a request: the file, then the offline block, then the command line."""

from __future__ import annotations

from typing import Any

from jlora.errors import JloraError
from train.cli.parse import Request
from train.config import dotted_keys
from train.config.run_config import AnyConfig, RunConfig
from train.config.validate import flatten, validate
from train.sources.hub_names import data_hub_names, model_hub_names

_OF_ITS_SOURCE = (
    "validation", "test", "config", "revision", "encoding", "separator", "label_names", "drop_other_labels", "format",
    "sample_by",
)  # fmt: skip
_LINES_OF_A_SCREEN = 20


def resolve(request: Request[AnyConfig], use_offline: bool) -> AnyConfig:
    """Makes the config of the run: the file, then the offline block if `use_offline`, then the command line.

    Each layer replaces values key by key. A layer that sets `data.train` replaces the whole data source: keys of lower
    layers that describe their source are dropped (validation and test splits, config, revision, encoding, separator,
    label_names, drop_other_labels, format, sample_by), while columns and sizes are kept unless they are given. So
    `data.train=my.tsv` reads the columns that the config file names. On the command line it also discards the offline
    block's `data`, which describes another corpus.

    The offline block is checked even if it is not used, and is not needed if nothing comes from a hub.

    Raises:
      JloraError: all unknown keys, wrong types and values out of range at once; or there is no offline block although
        one is needed.
    """
    schema = request.command.schema
    file, block, given = _layers(request)
    online, problems = validate(_over(file, given, schema), schema)
    lines = [_line(key, text, request) for key, text in problems.items()]
    offline = None
    if block is not None:
        offline, problems = validate(_over(_over(file, block, schema), given, schema), schema)
        for key, text in problems.items():
            shown = f"offline.{key}" if _gives(block, key) and not _gives(given, key) else key
            lines.append(_line(shown, text, request))
    if lines or online is None:
        raise JloraError(_report(list(dict.fromkeys(lines)), request))
    if not use_offline:
        return online
    return offline or _already_local(online, request)


def _layers(request: Request) -> tuple[dict[str, Any], dict[str, Any] | None, dict[str, Any]]:
    """Returns the dotted keys of the file, of its offline block (None if there is none), and of the command line."""
    schema = request.command.schema
    file, given = flatten(request.values, schema), dict(request.overrides)
    block = given.pop("offline", file.pop("offline", None))
    in_block = {key: given.pop(key) for key in request.overrides if key.startswith("offline.")}
    if block is None and not in_block:
        return file, None, given
    if not isinstance(block or {}, dict):
        raise JloraError(f"{request.file}: offline: expected a mapping of keys to replace; found {block!r}")
    over = {key.removeprefix("offline."): value for key, value in in_block.items()}
    block = _over(flatten(block or {}, schema), over, schema)
    if "offline" in block:
        raise JloraError(f"{request.file}: offline.offline: expected one offline block, found another one inside it")
    if "data.train" in given:
        block = {key: value for key, value in block.items() if not key.startswith("data.")}
    return file, block, given


def _over(lower: dict[str, Any], upper: dict[str, Any], schema: type[RunConfig]) -> dict[str, Any]:
    """Lays `upper` over `lower`, key by key; `train.learning_rate.full` sets one entry of a mapping."""
    merged = dict(lower)
    if "data.train" in upper:
        for name in _OF_ITS_SOURCE:
            merged.pop(f"data.{name}", None)
    mappings = [
        name for name, field in dotted_keys.fields(schema).items() if dict in dotted_keys.kinds(field.annotation)
    ]
    for key, value in upper.items():
        if mapping := next((name for name in mappings if key.startswith(f"{name}.")), None):
            entries = merged.get(mapping)
            value = {**(entries if isinstance(entries, dict) else {}), key.removeprefix(f"{mapping}."): value}
        merged[mapping or key] = value
    return merged


def _gives(layer: dict[str, Any], key: str) -> bool:
    return any(given == key or given.startswith(f"{key}.") for given in layer)


def _line(key: str, text: str, request: Request) -> str:
    is_override = request.file is not None and _gives(request.overrides, key)
    return f"  {key}{f' ({request.given_by})' if is_override else ''}: {text}"


def _report(lines: list[str], request: Request) -> str:
    count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
    more = [f"  and {len(lines) - _LINES_OF_A_SCREEN} more"] if len(lines) > _LINES_OF_A_SCREEN else []
    hint = [f"--config FILE reads a config, such as {request.command.config}"] if request.file is None else []
    shown = [line if len(line) <= 400 else f"{line[:397]}..." for line in lines[:_LINES_OF_A_SCREEN]]
    head = f"{request.file or 'command line (no --config)'}: {count}; --help lists every key"
    return "\n".join([head, *shown, *more, *hint])


def _already_local(config: AnyConfig, request: Request[AnyConfig]) -> AnyConfig:
    models = model_hub_names(config)
    data = [] if request.flags.dry_run else data_hub_names(config)  # a dry run reads none
    if not models and not data:
        return config
    downloads = [f"hf download {name}" for name in models]
    for name in data:
        arguments = ", ".join(repr(part) for part in (name, config.data.config) if part)
        downloads.append(f'python -c "import datasets; datasets.load_dataset({arguments})"')
    here = ["model=FOLDER"] * bool(models) + ["data.train=FILE"] * bool(data)
    lines = [
        f"{request.file or 'command line'}: no `offline:` block, and --offline is given or no hub answers.",
        f"From the hub it needs {', '.join([*models, *data])}. Do one of these:",
        "  - fill the cache where there is a network, copy ~/.cache/huggingface here, run without --offline:",
        *(f"      {command}" for command in downloads),
        f"  - name what is on this machine: {' '.join(here)}",
        f"  - add an `offline:` block with `model` and `data` to the config, as {request.command.config} has",
    ]
    raise JloraError("\n".join(lines))
