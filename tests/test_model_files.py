import shutil

import pytest
import tiny

from jlora.errors import JloraError
from train.model_files import base_of, load_tokenizer


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    """transformers would make one of the special tokens alone, to which every text is [UNK]."""
    for family in ("bert", "roberta"):
        folder = tmp_path / family
        shutil.copytree(tiny.model_folder(family), folder, ignore=shutil.ignore_patterns("tokenizer*"))
        with pytest.raises(JloraError, match="expected a tokenizer beside the model"):
            load_tokenizer(str(folder))


@pytest.mark.parametrize("written", [None, "{}", '{"base_model_name_or_path": null}'])
def test_an_adapter_that_names_no_base_is_refused(written, tmp_path):
    if written is not None:
        (tmp_path / "adapter_config.json").write_text(written)
    with pytest.raises(JloraError, match=r"adapter_config\.json"):
        base_of(tmp_path)
