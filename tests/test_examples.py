"""The examples in docstrings say what is so."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import mistral_chat
import quant

MODULES = [
    module.name
    for package in (mistral_chat, quant)
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + ".")
    if not module.name.endswith("__main__")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0
