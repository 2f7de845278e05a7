"""Targets of a trace."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from plugins.supernet.tests.helpers import write_trace
from unfold_supernet.scheduling import requests
from unfoldkit.api import UnfoldError

SLO = 0.03


def test_targets_are_read_from_columns(tmp_path: Path) -> None:
    """Deadlines are in the unit of their column, accuracies fractions or percent; empty cells use the defaults."""
    path = write_trace(tmp_path, "time_s,Deadline_ms,least_accuracy\n0,5,0.9\n0.1,,85%\n0.2,20.5,\n")
    found = requests.read_targets(path, 3, SLO)
    assert found is not None
    np.testing.assert_allclose(found.deadlines_s, [0.005, 0.03, 0.0205])
    np.testing.assert_allclose(found.min_accuracies, [0.9, 0.85, 0.0])
    assert requests.read_targets(write_trace(tmp_path, "time_s,tenant\n0,a\n1,b\n"), 2, SLO) is None


@pytest.mark.parametrize(
    ("row", "message"),
    [("0,-5,", "deadline_ms"), ("0,soon,", "not a number"), ("0,1e9,", "at most one day"), ("0,,92", "0.91 or 91%")],
)
def test_invalid_targets_are_refused_with_their_line(tmp_path: Path, row: str, message: str) -> None:
    """A deadline below 0 or beyond a day, and an accuracy above 1, are refused with line and column."""
    path = write_trace(tmp_path, f"time_s,deadline_ms,least_accuracy\n{row}\n")
    with pytest.raises(UnfoldError, match=message) as caught:
        requests.read_targets(path, 1, SLO)
    assert caught.value.diagnostics[0].line == 2


def test_rows_that_count_several_requests_are_refused(tmp_path: Path) -> None:
    """A table with rows that count several requests is refused, because a row's targets would be ambiguous."""
    with pytest.raises(UnfoldError, match="2 rows with targets describe 7 requests"):
        requests.read_targets(write_trace(tmp_path, "time_s,count,deadline_ms\n0,3,5\n1,4,5\n"), 7, SLO)


@pytest.mark.parametrize("size", ["700", "-1", "0", "1.5", "nan", "1e12", "many"])
def test_requests_of_several_rows_are_refused(tmp_path: Path, size: str) -> None:
    """A replay sends one row a request, so a trace of larger ones would be promised times that no server keeps."""
    path = write_trace(tmp_path, f"time_s,rows\n0,1\n0.1,{size}\n")
    with pytest.raises(UnfoldError) as caught:
        requests.read_targets(path, 2, SLO)
    assert caught.value.diagnostics[0].line == 3
    assert requests.read_targets(write_trace(tmp_path, "time_s,rows\n0,1\n1,\n2,1.0\n"), 3, SLO) is None
