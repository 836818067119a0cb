import importlib.util
import re
from pathlib import Path

CHANGELOG = Path(__file__).parents[2] / "CHANGELOG.md"


def test_the_modules_that_moved_are_where_the_changelog_says():
    moved = re.findall(r"^- `(jlora\.\w+)` -> `(jlora\.\w+\.\w+)`", CHANGELOG.read_text(), re.MULTILINE)
    assert len(moved) == 40
    for old, new in moved:
        assert importlib.util.find_spec(new), new
        assert old != new
