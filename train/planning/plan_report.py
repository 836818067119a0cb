"""Formats a plan for `--dry-run --mesh`."""

from __future__ import annotations

from collections import defaultdict

from train.cli.progress import clock
from train.planning.chip_plan import ChipPlan
from train.planning.chips import USABLE_SHARE, Chip, collective_seconds
from train.planning.memory import memory_table
from train.planning.parameter_table import align, facts_table
from train.planning.step_time import is_weight_gather, step_time

_GIB = 2**30


def plan_text(plan: ChipPlan, chip: Chip | None) -> str:
    """Formats a plan: one chip's memory, the collectives of a step, if there are any, and facts: mesh, tokens, work.

    A line "whole" names modules that an axis does not divide evenly. With a `chip` there are also the facts "fits" (yes
    or no, with 90 % of its memory usable) and "time", and seconds of each kind of collective.
    """
    flops = sum(product.flops * product.times for product in plan.products)
    sizes = " x ".join(f"{name} {size}" for name, size in plan.mesh.items())
    facts = [
        ("mesh", f"{sizes}: {plan.chips:,} chip{'s' * (plan.chips > 1)}"),
        ("tokens", f"{plan.tokens:,} a step at most"),
        ("work", f"{flops / 1e12:,.4g} TFLOP a step on each chip, in matrix products"),
    ]
    for axis, names in plan.undivided.items():
        facts.append(
            ("whole", f"{axis} {plan.mesh[axis]} does not divide {', '.join(names)}: each of its chips has all")
        )
    if chip is not None:
        held, usable = plan.memory.in_all, chip.memory * USABLE_SHARE
        fits = f"{held / 1e9:,.1f} of {usable / 1e9:,.0f} GB that a program can use"
        facts += [("fits", f"{'yes' if held <= usable else 'no'}: {fits}"), ("time", _time(plan, chip))]
    parts = [f"bytes of one chip, temporaries as the CPU's compiler lays them out\n{memory_table(plan.memory)}"]
    if plan.collectives:
        parts.append(f"collectives of a step\n{_collectives(plan, chip)}")
    return "\n\n".join([*parts, facts_table(facts)])


def _collectives(plan: ChipPlan, chip: Chip | None) -> str:
    """Makes a table with a line for each kind and axes: runs, bytes that one chip receives, and seconds."""
    rows: dict[tuple, list[float]] = defaultdict(lambda: [0, 0.0, 0.0])
    for one in plan.collectives:
        row = rows[one.axes, one.kind]
        row[0] += one.times
        row[1] += one.times * one.bytes_received
        row[2] += 0 if chip is None else collective_seconds(chip, one)
    lines = [("over", "what", "runs", "a chip receives", *["seconds"] * (chip is not None), "")]
    for (axes, kind), (runs, received, seconds) in sorted(rows.items(), key=lambda row: -row[1][1]):
        time = [f"{seconds:,.3f}"] if chip is not None else []
        note = "weights, during the products" if is_weight_gather(kind, axes) else ""
        lines.append((", ".join(axes), kind, f"{runs:,.0f}", f"{received / _GIB:,.3f} GiB", *time, note))
    return align(lines, right=[2, 3, 4] if chip is not None else [2, 3])


def _time(plan: ChipPlan, chip: Chip) -> str:
    found = step_time(plan, chip)
    parts = {"products": found.products, "weights": found.gathers, "other collectives": found.others}
    return (
        f"about {_format_seconds(found.step)} a step, {plan.tokens / found.step:,.0f} tokens/s;"
        " predicted, see docs/scaling.md\n"
        f"{'':10} {', '.join(f'{name} {_format_seconds(seconds)}' for name, seconds in parts.items())};"
        f" {_format_seconds(found.unhidden)} without overlap"
    )


def _format_seconds(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds < 60 else clock(seconds)
