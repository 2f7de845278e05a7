"""Query streams from a table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from unfold_supernet.accelerator.queries import read_queries
from unfoldkit.api import UnfoldError


def write_queries(folder: Path, text: str) -> Path:
    """Write a query table with this text."""
    path = folder / "queries.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_queries_have_accuracy_and_latency(tmp_path: Path) -> None:
    """Accuracies are in percent, latencies in seconds whatever their unit; an empty cell is no requirement."""
    found = read_queries(write_queries(tmp_path, "accuracy,latency_ms\n77.2,2\n78 %,\n,3.5\n"), "strict-accuracy")
    np.testing.assert_allclose(found.accuracies, [77.2, 78, 0])
    np.testing.assert_allclose(found.deadlines_s, [0.002, np.inf, 0.0035])
    other = read_queries(write_queries(tmp_path, "deadline_us;accuracy\n2000;77,2\n"), "strict-latency")
    np.testing.assert_allclose([*other.deadlines_s, *other.accuracies], [0.002, 77.2])


def test_replay_trace_is_a_table_of_queries(tmp_path: Path) -> None:
    """The columns of a replay trace are targets on the accelerator too: a fraction and a deadline."""
    text = "time_s,deadline_ms,least_accuracy\n0,5,0.28\n0.1,,91%\n0.2,7,\n"
    found = read_queries(write_queries(tmp_path, text), "strict-accuracy")
    assert found.accuracies.tolist() == [28.0, 91.0, 0.0]
    np.testing.assert_allclose(found.deadlines_s, [0.005, np.inf, 0.007])


@pytest.mark.parametrize(
    ("text", "policy", "message"),
    [
        ("accuracy,latency\n77,2\n", "strict-accuracy", "column latency has no unit"),
        ("accuracy,latency_ms\n0.77,2\n", "strict-accuracy", "accuracies are in percent"),
        ("accuracy,latency_ms\n770,2\n", "strict-accuracy", "an accuracy cannot be 770 %"),
        ("accuracy,latency_ms\n77,soon\n", "strict-accuracy", "'soon' is not a number"),
        ("accuracy,latency_ms\n77,-1\n", "strict-accuracy", "-1 is out of range"),
        ("latency_ms\n2\n", "strict-accuracy", "strict-accuracy needs a column accuracy"),
        ("accuracy\n77\n", "strict-latency", "strict-latency needs a column latency_ms"),
        ("accuracy,latency_ms\n", "strict-latency", "the table contains no query"),
    ],
)
def test_table_without_targets_is_refused(tmp_path: Path, text: str, policy: str, message: str) -> None:
    """Invalid targets are refused with their file."""
    with pytest.raises(UnfoldError) as caught:
        read_queries(write_queries(tmp_path, text), policy)
    found = caught.value.diagnostics[0]
    assert message in found.message
    assert found.file == str(tmp_path / "queries.csv")
