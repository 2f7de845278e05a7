"""Splits of a data section."""

from __future__ import annotations

import pytest

from plugins.supernet.tests.helpers import parse_spec
from unfoldkit.api import UnfoldError

FILE_SPEC = """
version: 1
kind: supernet
name: t
data: {source: file, path: d.npz}
space: {form: conv1d, stages: [{width: 8}]}
"""


@pytest.mark.parametrize("data", ["split: inter-patient", "group: subject", "split: random, group: subject"])
def test_impossible_splits_are_refused(data: str) -> None:
    """A split by group needs the group of each row; a group without such a split is refused."""
    with pytest.raises(UnfoldError, match=r"group of each row|no effect on this split"):
        parse_spec(FILE_SPEC.replace("d.npz", f"d.npz, {data}"))
