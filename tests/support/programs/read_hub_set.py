"""Run by test_splits.py in a process of its own: `datasets` reads HF_ENDPOINT and HF_HOME when imported."""

from jlora.errors import JloraError
from jlora.pretrained.locate import forbid_network, hub_answers
from train.classify.config import DataConfig
from train.classify.data.splits import load_data
from train.sources.hub_cache import is_cached

CONFIG = DataConfig(train="me/tiny", validation="me/tiny:validation", test="me/tiny:train[:1]")


def _refusal(**data: str) -> str:
    try:
        load_data(DataConfig(**data), seed=0)
    except JloraError as error:
        return str(error)
    raise AssertionError(f"{data} was accepted")


if __name__ == "__main__":
    assert hub_answers()
    assert not is_cached("me/tiny", "dataset")
    online = load_data(CONFIG, seed=0)
    assert [split.text for split in online.splits.values()] == [["good", "bad"], ["ok"], ["good"]]
    assert online.splits["train"].where(1) == "me/tiny:train, data row 2"
    assert "Unknown split" in _refusal(train="me/tiny:nosuch")
    assert is_cached("me/tiny", "dataset")
    forbid_network()
    assert load_data(CONFIG, seed=0) == online
    assert not hub_answers()
    assert "data.train=me/other: cannot load" in _refusal(train="me/other")
