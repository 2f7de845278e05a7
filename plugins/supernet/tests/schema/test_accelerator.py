"""Sections ``accelerator`` and ``queries``."""

from __future__ import annotations

import pytest

from plugins.supernet.tests.helpers import parse_spec
from unfoldkit.api import UnfoldError


def test_count_contradicts_a_file_of_queries() -> None:
    """The number of drawn queries contradicts a file of queries."""
    spec = "version: 1\nkind: supernet\nname: t\nfamily: ofa-mobilenetv3\nqueries: {path: q.csv, count: 5}\n"
    with pytest.raises(UnfoldError) as caught:
        parse_spec(spec)
    assert [one.key for one in caught.value.diagnostics] == ["queries.count"]
