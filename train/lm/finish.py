"""After the last step: the best step is exported, checked, described, shown and, where asked, pushed."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import jax
import jax.numpy as jnp

import jlora
from jlora.errors import JloraError
from jlora.pretrained.load import example_batch
from train.artifacts import adapter_and_merged, model_card
from train.cli.exit_codes import show
from train.cli.signs_of_life import working
from train.devices import placement
from train.devices.processes import first_alone, is_first
from train.lm.config import LMConfig
from train.lm.data.load import prompts
from train.lm.evaluate import Task, evaluated
from train.lm.objective import make_eval_step
from train.lm.samples import write_samples
from train.lm.vocabulary.grown_tables import load_grown
from train.planning.memory_advice import explain_out_of_memory, how_to_end
from train.run import curves
from train.run.recorder import Recorder
from train.sources.starting_adapter import Adapted
from train.task import report
from train.task.report import Results, base_name, conclude, drop_older, write_card

logger = logging.getLogger(__name__)

TOLERANCE = 1e-4
"""The largest relative difference of the loss, merged read back against in memory, that float32 may show."""


Run = report.Run[LMConfig, Task]


def finish(run: Run, recorder: Recorder) -> dict[str, Any]:
    """Writes adapter/, merged/, samples.jsonl, curves.png and, last, report.json, which it returns.

    Of several processes all take part, and the first one writes.
    """
    config = run.config
    logger.info("exporting the best step, %d", run.best.step)
    adapter = placement.put_adapter(run.task.mesh, jlora.combine(run.best.trainable, run.loop.frozen), config)
    with working(f"evaluating the best step on {len(run.task.data.rows['validation']):,} validation rows"):
        results = {"validation": run.best.metrics or evaluated(run.task, adapter, run.adapted.base, "validation")}
    recorder.log(run.best.step, results["validation"], "best")
    facts = _facts(run, results)
    small = placement.to_host(adapter) if config.method == "lora" else {}
    with first_alone("adapter") as writes:
        if writes:
            export = config.export
            exported = {
                "merged": export.merged,
                "adapter.gguf": export.gguf_lora,
                "samples.jsonl": config.samples.count > 0,
            }
            drop_older(run.folder, exported)
            _write_small(run, small, facts)
    if config.export.merged:
        with explain_out_of_memory(lambda: how_to_end(config, run.folder), " after the last step"):
            results["merged"] = _export_merged(run, adapter, facts)
        _require_same_loss(run, results)
    if config.samples.count:
        with working(f"completing {config.samples.count} prompts"):
            shown = _samples(run, adapter)
        if is_first():
            show(shown)
    return conclude(config, run.folder, _report(run, results))


def _write_small(run: Run, adapter: dict[str, Any], facts: model_card.Facts) -> None:
    """curves.png, adapter/ and adapter.gguf."""
    rows = len(run.task.data.rows["validation"])
    curves.plot(run.folder / "metrics.jsonl", run.folder / "curves.png", "perplexity", run.folder.name, rows)
    if run.config.method == "lora":
        folder = run.folder / "adapter"
        adapter_and_merged.write_adapter(folder, run.adapted, adapter, run.tokenizer, None, base_name(run.config))
        write_card(run, facts, "adapter")
        if run.config.export.gguf_lora:
            adapter_and_merged.write_gguf_lora(run.folder / "adapter.gguf", run.adapted, adapter)


def _samples(run: Run, adapter: dict[str, Any]) -> str:
    section, file = run.config.samples, run.folder / "samples.jsonl"
    wanted = prompts(run.task.data.splits["validation"], section.count, section.prompt_tokens)
    key = jax.random.fold_in(jax.random.key(run.config.seed), 2)
    with placement.set_mesh(run.task.mesh):
        return write_samples(file, wanted, run.adapted, adapter, run.tokenizer, section, key)


def _export_merged(run: Run, adapter: dict[str, Any], facts: model_card.Facts) -> dict[str, float]:
    """Writes merged/, reads it back, and returns its metrics on the validation split."""
    folder = run.folder / "merged"
    # The accelerator holds the base in training and may have no room for another one.
    with placement.on_cpu(), working("writing merged/"):
        whole, adapter = _unrounded(run, adapter)
        adapter_and_merged.write_merged(folder, whole, adapter, run.tokenizer, run.config.export.dtype)
    write_card(run, facts, "merged")
    mesh, dtype = run.task.mesh, jnp.dtype(run.config.train.dtype)
    with working(f"reading merged/ back and comparing {len(run.task.data.rows['validation']):,} validation rows"):
        model, base = adapter_and_merged.read_back(folder, dtype, mesh, param_dtype=dtype)
        task = dataclasses.replace(run.task, eval_step=make_eval_step(model, mesh))
        return evaluated(task, None, base, "validation")


def _unrounded(run: Run, adapter: dict[str, Any]) -> tuple[Adapted, dict[str, Any]]:
    """The model and adapter to merge: on the weights as they were read, not as they were rounded or quantized.

    LoftQ's adapter belongs to the quantized weights: it makes up for what quantization took.
    """
    config, adapted = run.config, run.adapted
    if config.lora.init_lora_weights == "loftq":
        logger.info("merged/: the quantized weights plus the adapter, which LoftQ started from what they lack")
        return _on_dequantized(adapted), adapter
    if config.quantize is None and all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(adapted.base)):
        return adapted, adapter
    try:
        mesh = run.task.mesh if jax.process_count() > 1 else None  # no process holds what several do
        base = load_grown(adapted.model, config.model, mesh=mesh)
    except JloraError as error:
        logger.warning("merged/: the weights as they were used in training, since they cannot be read again: %s", error)
        return _on_dequantized(adapted), adapter
    logger.info("merged/: %s read again in float32, the adapter is merged into these weights", config.model)
    # Read for this base, DoRA's norms are those of its weights.
    example = example_batch(adapted.model.config)
    adapter, _ = jlora.load_adapter(run.folder / "adapter", base, adapted.model.apply, example)
    return dataclasses.replace(adapted, base=base, initial=None), adapter


def _on_dequantized(adapted: Adapted) -> Adapted:
    return dataclasses.replace(adapted, base=jlora.dequantize(adapted.base, jnp.float32))


def _require_same_loss(run: Run, results: Results) -> None:
    """In float32 the merged model must be the one in memory; with a rounded or quantized base it is near it."""
    in_memory, merged = results["validation"]["loss"], results["merged"]["loss"]
    config = run.config
    exact = config.quantize is None and config.export.dtype == config.train.dtype == "float32"
    if exact and not abs(in_memory - merged) <= TOLERANCE * in_memory:
        raise JloraError(
            f"{run.folder / 'merged'}: read back, its validation loss is {merged}; expected {in_memory}, as in memory;"
            " the files must not be used"
        )
    logger.info("merged/ read back: perplexity %.4f", results["merged"]["perplexity"])


def _facts(run: Run, results: Results) -> model_card.Facts:
    tokens = run.adapted.model.config.vocab_size if run.config.data.add_tokens else None
    return report.facts(run, results, problem_type=None, labels=(), chat=run.task.data.chats, tokens=tokens)


def _report(run: Run, results: Results) -> dict[str, Any]:
    data = run.task.data
    return report.report(
        run,
        results,
        rows={name: len(rows) for name, rows in data.rows.items()},
        tokens={name: len(rows.ids) for name, rows in data.rows.items()},
        learnt_tokens={name: int(rows.learn.sum()) for name, rows in data.rows.items()},
        counts={name: examples.counts._asdict() for name, examples in data.splits.items()},
        batch_lengths=list(run.task.lengths),
        quantize=run.config.quantize,
    )
