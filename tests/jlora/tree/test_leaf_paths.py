"""Leaves by path, in and out of any tree."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jlora.errors import JloraError
from jlora.tree.leaf_paths import array_leaves, leaves_by_path, replace_leaves, require


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class _Block:
    kernel: jax.Array


TREE = {"params": {"dense": {"kernel": 1, "bias": 2}}, "blocks": [_Block(3), (4, None)]}
PATHS = {"blocks/0/kernel": 3, "blocks/1/0": 4, "params/dense/bias": 2, "params/dense/kernel": 1}


def test_every_leaf_has_its_path_in_the_trees_order():
    assert leaves_by_path(TREE) == PATHS
    assert list(leaves_by_path(TREE).values()) == jax.tree.leaves(TREE)
    assert leaves_by_path(5) == {"": 5}


def test_replacing_all_leaves_by_themselves_gives_the_tree_back():
    assert replace_leaves(TREE, leaves_by_path(TREE)) == TREE
    assert replace_leaves(TREE, {}) == TREE


def test_replacing_changes_a_copy_at_the_paths_alone():
    changed = replace_leaves(TREE, {"params/dense/bias": 7})
    assert leaves_by_path(changed) == PATHS | {"params/dense/bias": 7}
    assert leaves_by_path(TREE) == PATHS


def test_abstract_leaves_have_paths_too():
    tree = {"w": jax.ShapeDtypeStruct((2, 3), jnp.float32)}
    assert leaves_by_path(tree)["w"].shape == (2, 3)


def test_a_modules_functions_and_texts_are_no_arrays():
    tree = {"w": jnp.ones((2, 3)), "activation": jnp.tanh, "name": "m", "rate": 0.1, "n": np.float32(2)}
    assert array_leaves(tree).keys() == {"w", "n"}


def test_a_path_that_is_not_there_is_named_with_the_nearest():
    with pytest.raises(JloraError, match=r"^params/dense/kernle: not in the base tree; nearest: params/dense/kernel"):
        replace_leaves(TREE, {"params/dense/kernle": 0})
    with pytest.raises(JloraError, match=r"^zzz: not in the file$"):
        require("zzz", PATHS, "the file")
    require("blocks/1/0", PATHS, "the file")
