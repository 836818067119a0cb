"""The sections that configs share: the adapter's words and defaults are those of the library and of PEFT."""

import dataclasses

import pytest

import jlora
from train.config.sections import LoraSection


def test_the_adapter_has_the_fields_and_defaults_of_the_library():
    library = {field.name: field for field in dataclasses.fields(jlora.LoraConfig)}
    for name, value in LoraSection().model_dump(exclude={"from_"}).items():
        field = library[name]
        assert value == (field.default if field.default is not dataclasses.MISSING else field.default_factory()), name


def test_the_adapter_has_the_defaults_of_peft():
    peft = pytest.importorskip("peft").LoraConfig()
    for name, value in LoraSection().model_dump(exclude={"from_"}).items():
        assert value == getattr(peft, name), name
