"""Trains from Python: `train.classify.run` and `train.lm.run`."""

from __future__ import annotations

import copy
import importlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jlora.errors import JloraError, RunFolderError
from train.cli.parse import Request
from train.cli.progress import configure_logging
from train.cli.signals import Stopped
from train.config.command import Command, Flags
from train.config.run_config import RunConfig, length_key
from train.config.shipped import read_config_file
from train.config.validate import flatten

if TYPE_CHECKING:
    from train.loop.step import TotalLoss
    from train.task.protocol import Finished, Found, TrainingTask

_GIVEN = "given to run"


def run(
    folder: str,
    config: RunConfig | Mapping[str, Any] | str | Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    loss: Callable[[Any, Any, Any], TotalLoss] | None = None,
    metrics: Callable[[Any, str, Found], Mapping[str, float]] | None = None,
    on_step: Callable[[int, Mapping[str, float]], None] | None = None,
    wrap_model: Callable[[Any], Any] | None = None,
) -> Finished:
    """Trains as the command does, and returns the results of the run.

        finished = train.classify.run("configs/sst2.yaml", {"lora.r": 4, "output_dir": "runs/r4"})
        finished.report["metrics"]["validation"]["accuracy"]

    Progress is logged, to stderr if logging is not set up. With several processes, each must call
    `jax.distributed.initialize` first.

    Args:
      folder: the package of the training, `train.classify` or `train.lm`; its `run` sets it.
      config: a YAML file, a mapping of its keys (nested or dotted), or a config of the command's own class.
      overrides: {key: value} that replace values of the config, like `key=value` on the command line:
        {"train.max_steps": 10}.
      resume, overwrite: the same as --resume and --overwrite.
      loss: loss(config, opened, model), used instead of `TrainingTask.loss`; see there for what it returns.
      metrics: metrics(opened, split, found), whose result {metric: value} is added to that of `TrainingTask.metrics`.
      on_step: on_step(step, {"loss", "grad_norm"}), called after each step, counted from 1; its result is ignored.
      wrap_model: wrap_model(model) returns the object that training and evaluation use instead of the module. It has
        the module's `config` and a function `apply` with the same arguments as the module's. The exported files are
        still those of the module.

    Raises:
      RunFolderError: the folder is in use, or holds the finished run or another one.
      JloraError: another error that would end the command, or a signal or train.max_hours has stopped the training.
      OSError: a file cannot be read or written.
    """
    if not logging.getLogger().handlers:
        configure_logging()
    from train.cli.offline import choose  # these import JAX, which `import train.classify` does not
    from train.devices.platform import settle_dtype
    from train.loop.loop import nothing
    from train.task import runner

    command = importlib.import_module(f"{folder}.config").COMMAND
    request = _request(command, config, overrides or {}, Flags(resume=resume, overwrite=overwrite))
    task = _replace_methods(importlib.import_module(f"{folder}.task").TASK, loss, metrics, wrap_model)
    resolved, is_offline = choose(request)
    try:
        finished = runner.run_task(
            task, settle_dtype(resolved), request.flags, is_offline=is_offline, on_step=on_step or nothing
        )
    except Stopped as stop:
        raise JloraError(f"{resolved.output_dir}: stopped ({stop}); resume=True goes on from there") from stop
    if finished is None:
        raise RunFolderError(
            f"{resolved.output_dir}: this run is finished, nothing to do. A larger {length_key(resolved)} trains it"
            " longer, overwrite=True replaces it"
        )
    return finished


def _request(command: Command, config: Any, overrides: Mapping[str, Any], flags: Flags) -> Request:
    """Makes the same request as the command line would."""
    file: Path | str = _GIVEN
    if isinstance(config, RunConfig):
        if not isinstance(config, command.schema):
            expected, found = command.schema, type(config)
            raise JloraError(f"config: expected {expected.__module__}.{expected.__name__}, found {found.__module__}")
        values = config.model_dump(by_alias=True)
    elif isinstance(config, Mapping):
        values = _plain(config)
    else:
        file = Path(config)
        values = read_config_file(file)
    return Request(command, file, values, flatten(_plain(overrides), command.schema), flags, "overrides")


def _plain(value: Any) -> Any:
    """Converts a value to the types that YAML has: paths to text, tuples to lists."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value


def _replace_methods(
    task: TrainingTask,
    loss: Callable | None,
    metrics: Callable | None,
    wrap_model: Callable[[Any], Any] | None,
) -> TrainingTask:
    """Copies the task, with the caller's functions instead of its own methods or in addition to them."""
    changed, wrap = copy.copy(task), wrap_model or (lambda model: model)
    own_loss = loss or task.loss
    vars(changed).update(
        loss=lambda config, opened, model: own_loss(config, opened, wrap(model)),
        forward=lambda model: task.forward(wrap(model)),
    )
    if metrics is not None:
        own = task.metrics
        vars(changed)["metrics"] = lambda *given: {**own(*given), **metrics(*given)}
    return changed
