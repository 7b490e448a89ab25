"""The documentation site; `conftest.py` in the root of the repository runs the snippets of its pages."""

import importlib
import re

import pytest

from tests.test_design import PACKAGES, ROOT


@pytest.mark.parametrize("package", PACKAGES)
def test_api_pages_have_every_public_name(package: str):
    page = (ROOT / "docs" / "api" / f"{package}.md").read_text()
    named = re.findall(rf"^\.\. auto(?:class|exception|function):: {package}\.(\w+)$", page, re.MULTILINE)
    assert sorted(named) == sorted(importlib.import_module(package).__all__)
