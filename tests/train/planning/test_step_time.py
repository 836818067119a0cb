"""What a step takes by the model: products, gathers beside them, everything else in between."""

import pytest

from train.planning.chip_plan import ChipPlan
from train.planning.chips import CHIPS, collective_seconds, product_seconds
from train.planning.collectives import Collective
from train.planning.flops import Product
from train.planning.memory import Memory
from train.planning.step_time import StepTime, step_time

H100 = CHIPS["h100"]
GATHER = Collective("all-gather", ((0, 1, 2, 3),), ("fsdp",), 2e9, 7)
REDUCTION = Collective("all-reduce", ((0, 1),), ("tensor",), 3e9, 5)
PRODUCTS = [Product(10**12, 10**6, 3), Product(10**3, 10**8, 4)]


def _plan(*collectives):
    return ChipPlan(
        {"data": 1, "fsdp": 4, "tensor": 2}, 100, 2, Memory(0, 0, 0, 0, None, 0), PRODUCTS, list(collectives), {}
    )


def test_all_products_and_collectives_count_as_often_as_they_run():
    found = step_time(_plan(GATHER, REDUCTION), H100)
    flops, bytes_ = (product_seconds(H100, *product[:2], 2) for product in PRODUCTS)
    assert found.products == pytest.approx(3 * flops + 4 * bytes_)
    assert found.gathers == pytest.approx(collective_seconds(H100, GATHER))
    assert found.others == pytest.approx(collective_seconds(H100, REDUCTION))


@pytest.mark.parametrize(("kind", "axes"), [("all-reduce", ("fsdp",)), ("all-gather", ("tensor",))])
def test_only_gathers_of_weights_run_beside_products(kind, axes):
    found = step_time(_plan(GATHER._replace(kind=kind, axes=axes)), H100)
    assert (found.gathers, found.others > 0) == (0, True)


def test_the_longer_of_what_runs_side_by_side_counts():
    assert StepTime(products=5, gathers=3, others=1).step == 6
    assert StepTime(products=3, gathers=5, others=1).step == 6
    assert StepTime(products=3, gathers=5, others=1).unhidden == 9
