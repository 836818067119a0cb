"""How many members of a group train at once: as many as the device's memory allows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from train.config.run_config import rows_of_a_step
from train.data.bucketing import PlannedBatch
from train.loop.step import StepArguments
from train.planning.memory import Memory, measure_compiled
from train.run.state import State
from train.sweep.group import Group

MOST = {"cpu": 8}
"""The most members at once, by platform; a CPU gains nothing from more."""
MOST_ELSEWHERE = 64
_USABLE = 0.8


def choose_slots(group: Group, members: int, at_once: int | None) -> tuple[int, Memory]:
    """Returns how many of `members` train at once, and the memory of a step of that number as XLA plans it.

    The step is compiled for the longest batch, which training needs in any case; only if it does not fit into the free
    memory, it is compiled again for fewer members. At least one trains, even if its step does not fit. The members are
    divided into rounds of equal size: with `at_once` 3, 4 members train in two rounds of 2.

    Args:
      at_once: the number from the sweep file, which memory may reduce; None means as many as there is memory for, at
        most 8 on a CPU and 64 elsewhere.
    """
    wanted = min(members, at_once or MOST.get(jax.default_backend(), MOST_ELSEWHERE))
    wanted = -(-members // -(-members // wanted))  # of like size in all rounds
    memory = plan_memory(group, wanted)
    free = free_bytes()
    if free is None or memory.in_all <= free or wanted == 1:
        return wanted, memory
    of_one = (memory.in_all - memory.base) / wanted
    fits = max(1, min(wanted - 1, int((free - memory.base) / of_one)))
    return fits, plan_memory(group, fits)


def plan_memory(group: Group, slots: int) -> Memory:
    """Compiles the step of `slots` members for the longest batch, and returns its memory; nothing is computed."""
    first, size = group.members[0], rows_of_a_step(group.config)
    planned = tuple(
        PlannedBatch(group.lengths[-1], np.argsort(one.opened.rows["train"].lengths, kind="stable")[:size])
        for one in (group.members[:1] if group.shares_rows else group.members[:slots])
    )
    batch = group.batch(planned, group.members[:slots], slots)

    def members(tree: Any) -> Any:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((slots, *np.shape(x)), x.dtype), tree)

    step: Any = jax.ShapeDtypeStruct((), jnp.int32)
    state = State(members(first.state.trainable), members(first.state.optimizer), step)
    arguments = StepArguments(state, members(first.frozen), group.base, batch, group.key)
    rates = jax.ShapeDtypeStruct((slots,), jnp.float32)
    compiled = group.programs.step.lower(rates, rates, *arguments).compile()
    return measure_compiled(compiled, arguments)


def free_bytes() -> int | None:
    """Returns how many bytes a program may plan with: 80 % of the first local device's memory limit.

    What is in use already is not subtracted. On a device without a limit, such as a CPU, it is 80 % of the host's
    available memory (MemAvailable in /proc/meminfo), or None if that cannot be read.
    """
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(_USABLE * (stats["bytes_limit"]))
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(_USABLE * 1024 * int(found[0])) if found else None
