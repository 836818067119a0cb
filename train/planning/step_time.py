"""How long a planned step takes on chips of a kind, by the model of `train.planning.chips`."""

from __future__ import annotations

from typing import NamedTuple

from train.planning.chip_plan import Plan
from train.planning.chips import Chip, collective_seconds, product_seconds


class StepTime(NamedTuple):
    """Seconds of one step.

    Attributes:
      products: all matrix products of a chip.
      gathers: the gathers of weights over fsdp. Which are next is known ahead, so they run beside the products.
      others: all other collectives. Products wait for them, and they for products.
    """

    products: float
    gathers: float
    others: float

    @property
    def step(self) -> float:
        """With gathers hidden behind products, or products behind gathers, whichever take longer."""
        return max(self.products, self.gathers) + self.others

    @property
    def unhidden(self) -> float:
        """With one after the other."""
        return sum(self)


def step_time(plan: Plan, chip: Chip) -> StepTime:
    """The prediction; what stands between products, such as norms, is in `chips.MATRIX_SHARE`."""
    products = sum(p.times * product_seconds(chip, p.flops, p.numbers, plan.width) for p in plan.products)
    seconds = {False: 0.0, True: 0.0}
    for collective in plan.collectives:
        seconds[is_weight_gather(collective.kind, collective.axes)] += collective_seconds(chip, collective)
    return StepTime(products, seconds[True], seconds[False])


def is_weight_gather(kind: str, axes: tuple[str, ...]) -> bool:
    """Whether a collective puts weights together that fsdp splits."""
    return kind == "all-gather" and axes == ("fsdp",)
