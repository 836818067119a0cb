"""Files that were changed at random: each loader reads one or refuses it with a JloraError, and nothing else.

The same files each time; `python -m benchmarks.fuzz` draws others for as long as it is let.
"""

from __future__ import annotations

from collections import Counter

import pytest

from benchmarks.fuzz import __main__ as fuzz


@pytest.mark.filterwarnings("ignore")  # of numbers and names that were changed
@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_changed_files_are_read_or_refused(name):
    seen: Counter[str] = Counter()
    fuzz.fuzz(fuzz.TARGETS[name], fuzz.AT_ONCE[name], seen)
    assert seen["read"] > 0
    assert seen["refused"] > seen.total() // 4
