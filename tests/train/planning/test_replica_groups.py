"""Three ways of writing which devices act together."""

import pytest

from jlora.errors import JloraError
from train.planning.replica_groups import replica_groups


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("{{0,1},{2,3},{4,5},{6,7}}, use_global_device_ids=true, to_apply=%add.{1}", [[0, 1], [2, 3], [4, 5], [6, 7]]),
        ("{}, to_apply=%add", [[0, 1, 2, 3, 4, 5, 6, 7]]),
        ("{{}}", [[0, 1, 2, 3, 4, 5, 6, 7]]),
        ("[2,4]<=[8], dimensions={0}", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("[4,2]<=[2,4]T(1,0), metadata={}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("[4,2]<=[2,2,2]T(0,2,1)", [[0, 2], [1, 3], [4, 6], [5, 7]]),
        ("mesh['a'=2,'b'=4] {'b'}, use_global_device_ids=true", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("mesh['a'=2,'b'=2,'c'=2] {'b'}", [[0, 2], [1, 3], [4, 6], [5, 7]]),
        ("mesh['a'=2,'b'=2,'c'=2] {'a','c'}", [[0, 1, 4, 5], [2, 3, 6, 7]]),
        ("mesh['a'=8] {'a':(1)2}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("mesh['a'=8] {'a':(4)2}", [[0, 1], [2, 3], [4, 5], [6, 7]]),
        ("mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("mesh['a'=4,'b'=2], device_ids=(7,6,5,4,3,2,1,0) {'b'}", [[7, 6], [5, 4], [3, 2], [1, 0]]),
    ],
)
def test_groups(text, groups):
    assert replica_groups(text, 8).tolist() == groups


@pytest.mark.parametrize("text", ["@mesh<a=8> {a}", "", "[3,3]<=[9]", "mesh['a'=3] {'a'}"])
def test_what_is_not_understood_is_refused(text):
    with pytest.raises(JloraError, match=r"compiled step: .*replica groups"):
        replica_groups(text, 8)
