"""Prints what --dry-run and --preview show of a language model's run; needs no weights."""

from __future__ import annotations

import logging
import math

from jlora.errors import JloraError
from jlora.pretrained.source import PretrainedSource
from jlora.sharding.mesh import AXES
from train.cli.exit_codes import show
from train.devices import placement
from train.lm.config import LMConfig
from train.lm.data.preview import preview
from train.lm.model import abstract_model
from train.lm.objective import causal_loss
from train.lm.open_texts import open_tokenizer, read_texts
from train.lm.step_arguments import arguments
from train.lm.step_plan import plan_step
from train.loop.assemble import training_of
from train.planning.chips import chip_named
from train.planning.dry_run import describe_run
from train.planning.flops import matrix_rate
from train.planning.parameter_table import parameters
from train.planning.plan_report import plan_text
from train.planning.virtual_mesh import force_devices, mesh_sizes

logger = logging.getLogger(__name__)

PREVIEWED = 3
"""How many rows --preview prints."""


def dry_run(config: LMConfig, *, verbose: bool) -> None:
    """Prints parameters, memory, work and time of a step on one device.

    Raises:
      JloraError: the config's mesh asks for more devices; the message has the --mesh to add.
    """
    if config.mesh.fsdp * config.mesh.tensor > 1 or config.mesh.data > 1:
        sizes = ",".join(f"{axis}={max(1, getattr(config.mesh, axis))}" for axis in AXES)
        raise JloraError(f"--dry-run: plans one device, and mesh asks for more: add --mesh {sizes}")
    source = PretrainedSource(config.model)
    adapted, steps = abstract_model(config, source, _find_added_tokens(config, source)), config.train.max_steps
    show(parameters(adapted.base, adapted.adapter, verbose=verbose) + "\n")
    loss = causal_loss(adapted.model, model_dropout=config.train.dropout)
    training = training_of(config, loss, steps or 1)
    inputs, words = arguments(config, adapted, training.tx), adapted.model.config.vocab_size
    rate = matrix_rate(config.train.dtype)
    show(describe_run(training.step, inputs, vocab_size=words, steps=steps, rate=rate))
    _say_what_was_read(config)


def plan(config: LMConfig, mesh: str, chip: str | None) -> None:
    """Prints the memory, collectives and time of a step on chips that this machine need not have.

    Args:
      config: of `train.cli.resolve.resolve`, in which no key is "auto" any more.
      mesh: the value of --mesh, such as `data=2,fsdp=4`.
      chip: the name of a known chip; None leaves the time out.

    Raises:
      JloraError: an unknown chip or axis, or a batch that the mesh cannot split evenly.
    """
    known = None if chip is None else chip_named(chip)
    sizes = mesh_sizes(mesh)
    placement.require_shared(config.train.batch_size, sizes)
    force_devices(math.prod(sizes.values()))
    show(plan_text(plan_step(config, sizes, _find_added_tokens(config, PretrainedSource(config.model))), known))
    _say_what_was_read(config)


def preview_rows(config: LMConfig) -> None:
    """Prints the first three training rows as the model will see them."""
    tokenizer, _ = open_tokenizer(config, PretrainedSource(config.model))
    show(preview(read_texts(config, tokenizer).rows["train"], tokenizer, PREVIEWED))


def _find_added_tokens(config: LMConfig, source: PretrainedSource) -> tuple[int, ...]:
    """Returns the ids of added tokens; without any, a plan does not need the tokenizer."""
    return open_tokenizer(config, source)[1] if config.data.add_tokens else ()


def _say_what_was_read(config: LMConfig) -> None:
    files = "config.json and tokenizer were" if config.data.add_tokens else "config.json was"
    logger.info("dry run: only the model's %s read, and nothing was written", files)
