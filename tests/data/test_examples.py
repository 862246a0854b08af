"""The examples in docstrings of the package run."""

from __future__ import annotations

import doctest
from types import ModuleType

import pytest

from cskt.data import datasets, tokenizer
from cskt.data.paperdoll import dataset


@pytest.mark.parametrize("module", [datasets, tokenizer, dataset], ids=lambda module: module.__name__)
def test_examples(module: ModuleType) -> None:
    outcome = doctest.testmod(module)
    assert outcome.attempted > 0 and outcome.failed == 0
