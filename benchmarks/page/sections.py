"""The sections of docs/benchmarks.md: each says what is compared, shows it, and ends with the command for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks import roofline
from benchmarks.growth import exponent
from benchmarks.page.cells import digits, gigabytes, median, ratio, seconds_of, table, three
from benchmarks.page.pieces import ENCODERS

NAMES = {
    "lora": "jlora, LoRA", "full": "jlora, `method: full`", "peft": "PEFT", "compiled": "PEFT, `torch.compile`",
    "torch full": "PyTorch, full fine-tuning", "qwix": "Qwix, LoRA", "dense": "JAX, W + AB formed",
    "by hand": "JAX, LoRA by hand", "lora:float32": "jlora in float32", "jlora": "jlora",
    "jlora:bfloat16": "jlora in bfloat16",
    "transformers": "transformers",
    "cold": "jlora, nothing cached", "cached": "jlora, programs cached",
}  # fmt: skip


def encoder(found: dict[str, Any], pieces: dict[str, Any], drawn: Sequence[str]) -> list[str]:
    """The centre with all sides, then its neighbours with two."""
    lines = ["## An encoder's step", ""]
    lines += _one_step(
        found, "encoder-centre", "All-MiniLM-L6-v2, 32 x 64 tokens, r 8 on all linears, float32, dropout off"
    )
    lines += _one_step(found, "encoder-dropout", "The same with dropout on, of model and adapter")
    lines += ["### One axis at a time", "", "jlora and PEFT, dropout off; the centre is the table above.", ""]
    lines += _beside_peft(found, ["encoder-centre", *ENCODERS], "ms", 1000)
    lines += _picture("steps", drawn, "time of a step over PEFT's")
    return lines + _again(pieces, ["encoder-centre", "encoder-dropout", *ENCODERS])


def epoch(found: dict[str, Any], pieces: dict[str, Any], drawn: Sequence[str]) -> list[str]:
    """SST-2 from process start to the merged model."""
    lines = [
        "## An epoch, from process start to the merged model", "",
        "6,920 sentences, batches of 32, at most 64 tokens, r 8 on all linears, an evaluation on 872 rows, adapter and",
        "merged model written. `jlora classify` with nothing cached (programs, tokens), compared with a script as",
        "PEFT's users write it, `benchmarks/classify/peft_script.py`; float32 unless the table names another dtype.",
        "One round: what takes minutes is not repeated in the hour.", "",
    ]  # fmt: skip
    rows = []
    for name, label in (("epoch", "off"), ("epoch-dropout", "on")):
        if name in found:
            sides = found[name]["sides"]
            for side, runs in sides.items():
                first = digits(median([run["first_step"] for run in runs]))
                times = [run["seconds"] for run in runs]
                against = ratio(times, [run["seconds"] for run in sides["peft"]]) if side != "peft" else ""
                peak = gigabytes(max(run["peak_bytes"] for run in runs))
                cpu = digits(median([run["cpu_seconds"] for run in runs]))
                rows.append([label, NAMES[side], three(times), against, first, cpu, peak])
    head = ["dropout", "", "seconds", "ratio", "seconds to the first step", "CPU seconds", "peak GB"]
    return lines + table(head, rows) + _again(pieces, ["epoch", "epoch-dropout"])


def language_model(found: dict[str, Any], pieces: dict[str, Any], drawn: Sequence[str]) -> list[str]:
    """SmolLM2's step in all shapes and dtypes."""
    lines = ["## A language model's step", ""]
    shapes = {"lm-4x256": "4 x 256", "lm-2x1024": "2 x 1024", "lm-1x2048": "1 x 2048", "lm-1x8192": "1 x 8192"}
    for name, label in shapes.items():
        lines += _one_step(found, name, f"SmolLM2-135M, {label} tokens, r 8 on q, k, v and o, float32, no remat")
    lines += _one_step(found, "lm-compiled-4x256", "4 x 256 tokens, compared with PEFT through `torch.compile`")
    lines += _one_step(found, "lm-full-4x256", "4 x 256 tokens, all weights trained")
    lines += _one_step(found, "lm-bf16-4x256", "4 x 256 tokens, bfloat16")
    lines += _one_step(found, "lm-bf16-1x2048", "1 x 2048 tokens, bfloat16")
    lines += _one_step(found, "lm-nf4-4x256", "4 x 256 tokens, the base in NF4 (PEFT's by bitsandbytes)")
    names = [*shapes, "lm-compiled-4x256", "lm-full-4x256", "lm-bf16-4x256", "lm-bf16-1x2048", "lm-nf4-4x256"]
    return lines + _again(pieces, names)


def generation(found: dict[str, Any], pieces: dict[str, Any], drawn: Sequence[str]) -> list[str]:
    """Compares completions with those of transformers."""
    names = [f"generation-{rows}-{dtype}" for dtype in ("float32", "bfloat16") for rows in (1, 8)]
    lines = [
        "## Generation", "",
        "SmolLM2-135M, 128 new tokens after prompts of 512, greedy, without an adapter; seconds of a call, its prompt",
        "included. Of transformers' dynamic and static cache the faster one (of one call each) takes part.", "",
    ]  # fmt: skip
    rows = []
    for name in names:
        if name not in found:
            continue
        result = found[name]
        sides, tokens = result["sides"], result["rows"] * result["new"]
        for side, figures in sides.items():
            times = seconds_of(figures)
            against = ratio(times, seconds_of(sides["transformers"])) if side != "peft" else ""
            label = NAMES[side] + (f", {result['cache']} cache" if side == "transformers" else "")
            rate = digits(tokens / median(times))
            share = _share(result["must"], found, result["dtype"], median(times))
            what = f"{result['rows']}, {result['dtype']}"
            rows.append([what, label, three(times), rate, against, gigabytes(figures["peak_bytes"]), share])
    head = ["rows", "", "seconds", "tokens/s", "ratio", "peak GB", "share"]
    return lines + table(head, rows) + _again(pieces, names)


def first_step(found: dict[str, Any], pieces: dict[str, Any], drawn: Sequence[str]) -> list[str]:
    """Seconds from process start to the first step."""
    lines = [
        "## Time to the first step", "",
        "From process start to the first training step's end: `jlora classify` on SST-2 (MiniLM, dropout on),",
        "`jlora lm` on SmolLM2 (`configs/smollm2.yaml --offline`). *Cached*: an earlier run left programs and",
        "tokens.", "",
    ]  # fmt: skip
    rows = []
    for name in ("first-step-classify", "first-step-lm"):
        for side, figures in found.get(name, {"sides": {}})["sides"].items():
            cpu = digits(median(figures["cpu_seconds"]))
            rows.append([name.removeprefix("first-step-"), NAMES[side], three(figures["seconds"]), cpu])
    head = ["command", "", "seconds", "CPU seconds"]
    return lines + table(head, rows) + _again(pieces, ["first-step-classify", "first-step-lm"])


def merging(found: dict[str, Any], pieces: dict[str, Any], drawn: Sequence[str]) -> list[str]:
    """Merge and export of a 1B shape."""
    lines = [
        "## Merge and export", "",
        "Llama 3.2 1B's shape in bfloat16, r 8 on q, k, v and o: `jlora export` and PEFT's `merge_and_unload` with",
        "`save_pretrained`, from process start to process end. Two rounds; ours holds the base in float32.", "",
    ]  # fmt: skip
    if "merging" in found:
        sides, rows = found["merging"]["sides"], []
        for side, runs in sides.items():
            times = [run["seconds"] for run in runs]
            against = ratio(times, [run["seconds"] for run in sides["peft"]]) if side != "peft" else ""
            cpu = digits(median([run["cpu_seconds"] for run in runs]))
            peak = gigabytes(max(run["peak_bytes"] for run in runs))
            rows.append([NAMES[side], three(times), against, cpu, peak])
        lines += table(["", "seconds", "ratio", "CPU seconds", "peak GB"], rows)
    return lines + _again(pieces, ["merging"])


def growth(found: dict[str, Any], pieces: dict[str, Any], drawn: Sequence[str]) -> list[str]:
    """Fitted exponents and their plots."""
    names = [f"growth-{axis}" for axis in ("temporaries", "tokens", "layers", "ranks")]
    lines = [
        "## Growth", "",
        "The exponent p of c x^p, fitted to the logarithms. *Temporaries*: what SmolLM2's compiled LoRA step needs",
        "in addition to its arguments, for one row whose number of tokens grows. The other steps are of a model of",
        "SmolLM2's width: 6 layers on one row whose number of tokens grows; a growing number of layers, and a",
        "growing rank, on 1 x 512 tokens.",
        "Seconds are medians.", "",
    ]  # fmt: skip
    rows = []
    if "growth-temporaries" in found:
        result = found["growth-temporaries"]
        sizes = " / ".join(map(gigabytes, result["bytes"]))
        rows.append(
            ["tokens", "jlora, temporaries, GB", _numbers(result["x"]), sizes, _exponent(result["x"], result["bytes"])]
        )
    for name in names[1:]:
        for side, figures in found.get(name, {"sides": {}})["sides"].items():
            xs, times = found[name]["x"], list(map(median, figures["seconds"]))
            axis, label = name.removeprefix("growth-"), NAMES[side]
            rows.append([axis, f"{label}, seconds", _numbers(xs), " / ".join(map(digits, times)), _exponent(xs, times)])
            if axis == "tokens":
                peaks = figures["peak_bytes"]
                sizes = " / ".join(map(gigabytes, peaks))
                rows.append([axis, f"{label}, peak GB", _numbers(xs), sizes, _exponent(xs, peaks)])
            elif axis == "layers":
                spent = figures["compile_seconds"]
                compiled = " / ".join(map(digits, spent))
                rows.append([axis, f"{label}, seconds to compile", _numbers(xs), compiled, _exponent(xs, spent)])
    lines += table(["grows", "what", "at", "found", "exponent"], rows)
    lines += _picture("growth", drawn, "seconds and temporaries against tokens, layers and rank, both axes logarithmic")
    return lines + _again(pieces, names)


def roofline_rates(found: dict[str, Any], pieces: dict[str, Any], drawn: Sequence[str]) -> list[str]:
    """What the shares are of."""
    lines = [
        "## The machine's rates",
        "",
        "Square products of 2,048, and a copy of 256 MiB (each byte read and written).",
        "",
    ]
    if "machine" in found:
        rates = found["machine"]
        rows = [
            [name, f"{digits(value / 1e9)} {'GB/s' if name == 'copy' else 'GFLOP/s'}"] for name, value in rates.items()
        ]
        lines += table(["", "rate"], rows)
    return lines + _again(pieces, ["machine"])


def ci(found: dict[str, Any], pieces: dict[str, Any], drawn: Sequence[str]) -> list[str]:
    """How far the ratio that CI judges is from its bound."""
    lines = [
        "## What CI holds", "",
        "`make bench-short`: a step of BERT (4 layers of 384, 10 x 32 tokens) through `jlora.adapt` over the same step",
        "with LoRA written by hand in the model, in CPU time of the process; the median of 25 rounds. One attempt of",
        "three has to keep the bound. *Slowed*: `adapt` does a fifth more work, and",
        "`python -m benchmarks.short --slowed` must fail.", "",
    ]  # fmt: skip
    if "ci" in found:
        result = found["ci"]
        names = [name for name in result if name != "bound"]
        rows = [[name, three(result[name]), str(len(result[name])), str(result["bound"])] for name in names]
        lines += table(["`adapt`", "ratio", "attempts", "bound"], rows)
    return lines + _again(pieces, ["ci"])


SECTIONS = (encoder, epoch, language_model, generation, first_step, merging, growth, ci, roofline_rates)


def _one_step(found: dict[str, Any], name: str, what: str) -> list[str]:
    """A table of all sides of a piece of `benchmarks.steps`."""
    if name not in found:
        return []
    result = found[name]
    work, sides = result["work"], result["sides"]
    ours, tokens, rows = sides["lora"], work["rows"] * work["length"], []
    for side, figures in sides.items():
        label = NAMES[side]
        if "failed" in figures:
            rows.append([label, f"failed: {figures['failed']}", *[""] * 5])
            continue
        times = seconds_of(figures)
        against = "" if side == "lora" or result["apart"] else ratio(seconds_of(ours), times)
        flops = "full_flops" if "full" in side else "flops"
        dtype = side.partition(":")[2] or work["dtype"]
        share = _share(result["must"], found, dtype, median(times), flops)
        memory = "" if side == "lora" else f"{ours['peak_bytes'] / figures['peak_bytes']:.2f}"
        rate = digits(tokens / median(times))
        rows.append([label, three(times), rate, against, gigabytes(figures["peak_bytes"]), memory, share])
    head = ["", "seconds a step", "tokens/s", "time of jlora's LoRA over it", "peak GB", "memory over it", "share"]
    rounds = len(seconds_of(ours))
    turns = "One step each, one side after the other" if result["apart"] else f"{rounds} rounds, in turns"
    return [f"### {what}", "", f"{turns}.", "", *table(head, rows)]


def _beside_peft(found: dict[str, Any], names: Iterable[str], unit: str, scale: float) -> list[str]:
    rows = []
    for name in names:
        if name in found:
            sides, must = found[name]["sides"], found[name]["must"]
            ours, theirs = (seconds_of(sides[side]) for side in ("lora", "peft"))
            memory = sides["lora"]["peak_bytes"] / sides["peft"]["peak_bytes"]
            share = _share(must, found, "float32", median(ours))
            times = [three(ours, scale), three(theirs, scale), ratio(ours, theirs)]
            rows.append([name.removeprefix("encoder-"), *times, f"{memory:.2f}", share])
    return table(["", f"jlora, {unit}", f"PEFT, {unit}", "ratio", "memory over PEFT's", "jlora's share"], rows)


def _share(must: dict[str, float], found: dict[str, Any], dtype: str, seconds: float, flops: str = "flops") -> str:
    return f"{roofline.share(must, found['machine'], dtype, seconds, flops):.0%}" if "machine" in found else ""


def _numbers(values: Sequence[int]) -> str:
    return " / ".join(f"{value:,}" for value in values)


def _exponent(xs: Sequence[float], ys: Sequence[float]) -> str:
    return f"{exponent(xs, ys):.2f}"


def _picture(name: str, drawn: Sequence[str], what: str) -> list[str]:
    return [f"![{what}](benchmarks/{name}.png)", ""] if name in drawn else []


def _again(pieces: dict[str, Any], names: Sequence[str]) -> list[str]:
    """The command that measures the section again, and those that it runs."""
    known = [name for name in names if name in pieces]
    return [
        "```bash",
        f"python -m benchmarks.run_all {' '.join(names)}",
        "# that is",
        *[pieces[name]["command"] for name in known],
        "```",
        "",
    ]
