import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jlora.sharding.mesh import make_mesh
from jlora.sharding.to_host import gather, placed_mesh, to_host


def test_copies_are_numpys_own():
    tree = {"a": jnp.arange(3.0), "b": np.arange(2)}
    found = to_host(tree)
    assert all(isinstance(leaf, np.ndarray) for leaf in found.values())
    assert not np.shares_memory(found["b"], tree["b"])
    assert found["a"].tolist() == [0, 1, 2]


def test_an_array_of_this_process_stays_where_it_is():
    mesh = make_mesh(data=1, devices=jax.devices()[:1])
    placed = jax.device_put(jnp.arange(3.0), NamedSharding(mesh, PartitionSpec("data")))
    assert placed_mesh(placed) == mesh
    assert placed_mesh(np.arange(3)) is None
    assert gather(placed) is placed
