"""Predicts the time of a planned step on a kind of chip, with the model of `train.planning.chips`."""

from __future__ import annotations

from typing import NamedTuple

from train.planning.chip_plan import ChipPlan
from train.planning.chips import Chip, collective_seconds, product_seconds


class StepTime(NamedTuple):
    """The predicted seconds of one step.

    Attributes:
      products: all matrix products of a chip.
      gathers: all gathers of weights over fsdp. It is known ahead which come next, so they overlap with the products.
      others: all other collectives. Products and these collectives wait for each other.
    """

    products: float
    gathers: float
    others: float

    @property
    def step(self) -> float:
        """The time of the step, with gathers and products overlapping: the longer of the two counts."""
        return max(self.products, self.gathers) + self.others

    @property
    def unhidden(self) -> float:
        """The time of the step without any overlap."""
        return sum(self)


def step_time(plan: ChipPlan, chip: Chip) -> StepTime:
    """Predicts the seconds of a step that was planned for a mesh, on chips of this kind.

    All runs count: `times` of each product (`product_seconds`) and collective (`collective_seconds`).
    `chips.MATRIX_SHARE` accounts for the operations between products, such as norms.
    """
    products = sum(p.times * product_seconds(chip, p.flops, p.numbers, plan.width) for p in plan.products)
    seconds = {False: 0.0, True: 0.0}
    for collective in plan.collectives:
        seconds[is_weight_gather(collective.kind, collective.axes)] += collective_seconds(chip, collective)
    return StepTime(products, seconds[True], seconds[False])


def is_weight_gather(kind: str, axes: tuple[str, ...]) -> bool:
    """Returns whether a collective gathers weights that fsdp splits: "all-gather" over the axis fsdp alone.

    `kind` and `axes` are those of a Collective.
    """
    return kind == "all-gather" and axes == ("fsdp",)
