"""The names of output heads."""

import pytest

from jlora.tree.output_heads import OUTPUT_EMBEDDINGS, OUTPUT_HEADS, TASK_HEADS, is_in_head, is_linear_weight


def test_every_head_that_is_trained_or_left_out_stays_dense():
    heads = {*OUTPUT_EMBEDDINGS, *(head for heads in TASK_HEADS.values() for head in heads)}
    assert heads <= set(OUTPUT_HEADS)


@pytest.mark.parametrize(
    ("path", "in_head", "linear"),
    [
        ("params/lm_head/kernel", True, False),
        ("params/classifier/dense/kernel", True, False),
        ("params/bert/encoder/layer/output/dense/kernel", False, True),
        ("params/bert/encoder/layer/output/dense/bias", False, False),
        ("params/model/embed_tokens/embedding", False, False),
    ],
)
def test_a_leaf_is_in_a_head_by_its_path(path, in_head, linear):
    assert (is_in_head(path), is_linear_weight(path)) == (in_head, linear)
