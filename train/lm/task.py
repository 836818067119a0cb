"""The training task of causal language models; the runner calls its methods."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from jlora.lora.adapted_model import Adapted
from jlora.pretrained.tokenizer import pad_id
from jlora.sharding.mesh import set_mesh
from train.artifacts import merge_for_export
from train.cli.exit_codes import show
from train.cli.log_slow_steps import working
from train.config.command import Flags
from train.data.bucketing import Places, PlannedBatch
from train.data.random_streams import Stream, stream_key
from train.devices.processes import is_first
from train.lm.config import LMConfig
from train.lm.data.batches import Batch, make_batch
from train.lm.data.load import prompts
from train.lm.dry_run_and_preview import dry_run, plan, preview_rows
from train.lm.memory_advice import offers, training_help
from train.lm.merged_folder import require_same_loss, write_merged_model
from train.lm.model import prepare_model
from train.lm.objective import causal_loss, loss_and_hits, split_metrics
from train.lm.open_texts import LanguageRun, Texts, open_texts
from train.lm.samples import write_samples
from train.loop.assemble import Training
from train.loop.evaluation import make_eval_step
from train.loop.step import TotalLoss
from train.task.evaluate import evaluate
from train.task.protocol import Found, Results, TrainingTask

logger = logging.getLogger(__name__)


class LanguageTask(TrainingTask[LMConfig, Texts]):
    """`jlora lm`."""

    unit = "tokens"
    records_best = True

    def describe(self, config: LMConfig, flags: Flags) -> None:
        """Prints a plan for other chips, the cost of a step on this machine, or rows as the model will see them."""
        if flags.mesh:
            plan(config, flags.mesh, flags.chip)
        elif flags.dry_run:
            dry_run(config, verbose=flags.verbose)
        else:
            preview_rows(config)

    def open(self, config: LMConfig, mesh: Mesh | None, *, resume: bool) -> Texts:
        """Reads tokenizer and texts."""
        return open_texts(config, mesh, resume=resume)

    def build(self, config: LMConfig, opened: Texts, mesh: Mesh | None) -> Adapted:
        """Loads the weights, quantized if the config says so; rows for added tokens are newly initialised."""
        return prepare_model(config, opened.source, mesh, opened.added)

    def loss(self, config: LMConfig, opened: Texts, model: Any) -> TotalLoss:
        """Returns the loss: cross-entropy of the next token."""
        return causal_loss(model, model_dropout=config.train.dropout)

    def batch(self, opened: Texts, split: str, planned: PlannedBatch, size: int, places: Places) -> Batch:
        """Makes a batch: padded token ids, the next token of each, and whether it is learnt."""
        return make_batch(opened.rows[split], planned, size, pad_id(opened.tokenizer), places)

    def forward(self, model: Any) -> Callable[[Any, Any, Any], Any]:
        """Returns the function that sums a batch's losses and its correctly predicted tokens."""
        return loss_and_hits(model)

    def metrics(self, opened: Texts, split: str, found: Found) -> dict[str, float]:
        """Computes mean loss, perplexity and token accuracy."""
        return split_metrics([sums for _, sums in found], int(opened.rows[split].learn.sum()))

    def memory_help(
        self, config: LMConfig, mesh: Mesh | None, adapted: Adapted | None = None, training: Training | None = None
    ) -> str:
        """Returns advice that lowers the memory, with the memory of a step if there is one."""
        if adapted is None or training is None:
            return offers(config, mesh)
        return training_help(config, adapted, training, mesh)

    def card(self, run: LanguageRun) -> dict[str, Any]:
        """Returns the model card's facts: whether it is used in chats, and how many tokens the base must have."""
        tokens = run.adapted.model.config.vocab_size if run.config.data.add_tokens else None
        return {"problem_type": None, "labels": (), "chat": run.opened.data.chats, "tokens": tokens}

    def optional_files(self, config: LMConfig) -> dict[str, bool]:
        """Returns {file: whether the config asks for it} of adapter.gguf and samples.jsonl."""
        return {"adapter.gguf": config.export.gguf_lora, "samples.jsonl": config.samples.count > 0}

    def write_files(self, run: LanguageRun, adapter: dict[str, Any], predicted: None) -> None:
        """Writes adapter.gguf, if the config asks for it."""
        if run.config.method == "lora" and run.config.export.gguf_lora:
            merge_for_export.write_gguf_lora(run.folder / "adapter.gguf", run.adapted, adapter)

    def write_merged(self, run: LanguageRun) -> None:
        """Merges into the weights as stored, not as rounded or quantized for training."""
        write_merged_model(run)

    def compare(self, run: LanguageRun, results: Results, predicted: None) -> dict[str, float]:
        """Returns the metrics of merged/ on the validation split; its loss must be that of the model in memory."""
        folder, dtype = run.folder / "merged", jnp.dtype(run.config.train.dtype)
        rows = len(run.opened.rows["validation"])
        with working(f"reading merged/ back and comparing {rows:,} validation rows"):
            model, base = merge_for_export.read_back(folder, dtype, run.mesh, param_dtype=dtype)
            found = evaluate(run, make_eval_step(run.task.forward(model), run.mesh), None, base, "validation")
        require_same_loss(run, results["validation"]["loss"], found["loss"])
        logger.info("merged/ read back: perplexity %.4f", found["perplexity"])
        return found

    def write_samples(self, run: LanguageRun) -> None:
        """Writes samples.jsonl: completions of validation prompts by the base and by the tuned model."""
        section = run.config.samples
        if not section.count:
            return
        key = stream_key(run.config.seed, Stream.COMPLETIONS)
        with working(f"completing {section.count} prompts"), set_mesh(run.mesh):
            wanted = prompts(run.opened.data.splits["validation"], section.count, section.prompt_tokens)
            file = run.folder / "samples.jsonl"
            shown = write_samples(file, wanted, run.adapted, run.adapter, run.opened.tokenizer, section, key)
        if is_first():
            show(shown)

    def report(self, run: LanguageRun, results: Results, compared: dict[str, float] | None) -> dict[str, Any]:
        """Returns the report's entries: rows, tokens, counts of rows that are too long, metrics of merged/."""
        data = run.opened.data
        return {
            "metrics": dict(results) if compared is None else {**results, "merged": compared},
            "rows": {name: len(rows) for name, rows in data.rows.items()},
            "tokens": {name: len(rows.ids) for name, rows in data.rows.items()},
            "learnt_tokens": {name: int(rows.learn.sum()) for name, rows in data.rows.items()},
            "counts": {name: examples.counts._asdict() for name, examples in data.splits.items()},
            "batch_lengths": list(run.lengths),
            "quantize": run.config.quantize,
        }

    def next_steps(self, config: LMConfig, opened: Texts) -> list[str]:
        """Returns log lines that say what opens the files and how to talk to the model."""
        lines, files = [], "  report.json  curves.png  metrics.jsonl  tensorboard/"
        if config.method == "lora":
            more = ", adapter.gguf with llama.cpp" * config.export.gguf_lora
            more += ", after the tokens are added to the base: see its README.md" * bool(config.data.add_tokens)
            lines.append(f"  adapter/     opens with PEFT{more}")
        if config.export.merged:
            lines.append("  merged/      opens with transformers: AutoModelForCausalLM.from_pretrained")
        how = "--chat" if opened.data.chats else "--prompt TEXT"
        return [
            *lines,
            files + "  samples.jsonl" * bool(config.samples.count),
            f"Talk to it: jlora generate --model {shlex.quote(config.output_dir)} {how}",
        ]


TASK: TrainingTask[LMConfig, Texts] = LanguageTask()
