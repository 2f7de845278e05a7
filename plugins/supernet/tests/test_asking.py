"""Queries from a table: two targets a row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from plugins.supernet.tests.helpers import parse_spec
from unfold_supernet.accelerator.queries import read_queries
from unfoldkit.api import UnfoldError


def table(folder: Path, text: str) -> Path:
    """Return a file with this text."""
    path = folder / "queries.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_each_query_names_an_accuracy_and_a_latency(tmp_path: Path) -> None:
    """Percent stay percent, latencies come in seconds whatever their unit, and an empty cell asks for nothing."""
    found = read_queries(table(tmp_path, "accuracy,latency_ms\n77.2,2\n78 %,\n,3.5\n"), "strict-accuracy")
    np.testing.assert_allclose(found.accuracies, [77.2, 78, 0])
    np.testing.assert_allclose(found.deadlines_s, [0.002, np.inf, 0.0035])
    other = read_queries(table(tmp_path, "deadline_us;accuracy\n2000;77,2\n"), "strict-latency")
    np.testing.assert_allclose([*other.deadlines_s, *other.accuracies], [0.002, 77.2])


def test_a_trace_of_a_family_is_a_table_of_queries(tmp_path: Path) -> None:
    """The columns that a replay reads, a share and a deadline, are the targets of the same queries on a chip."""
    text = "time_s,deadline_ms,least_accuracy\n0,5,0.28\n0.1,,91%\n0.2,7,\n"
    found = read_queries(table(tmp_path, text), "strict-accuracy")
    assert found.accuracies.tolist() == [28.0, 91.0, 0.0]
    np.testing.assert_allclose(found.deadlines_s, [0.005, np.inf, 0.007])


@pytest.mark.parametrize(
    ("text", "policy", "told"),
    [
        ("accuracy,latency\n77,2\n", "strict-accuracy", "column latency has no unit"),
        ("accuracy,latency_ms\n0.77,2\n", "strict-accuracy", "accuracies are in percent"),
        ("accuracy,latency_ms\n770,2\n", "strict-accuracy", "an accuracy cannot be 770 %"),
        ("accuracy,latency_ms\n77,soon\n", "strict-accuracy", "'soon' is not a number"),
        ("accuracy,latency_ms\n77,-1\n", "strict-accuracy", "-1 is not a number that can be meant"),
        ("latency_ms\n2\n", "strict-accuracy", "strict-accuracy needs a column accuracy"),
        ("accuracy\n77\n", "strict-latency", "strict-latency needs a column latency_ms"),
        ("accuracy,latency_ms\n", "strict-latency", "the table contains no query"),
    ],
)
def test_a_table_that_names_no_targets_is_refused(tmp_path: Path, text: str, policy: str, told: str) -> None:
    """What cannot be meant as a target is told with its file, and is not planned with."""
    with pytest.raises(UnfoldError) as caught:
        read_queries(table(tmp_path, text), policy)
    found = caught.value.diagnostics[0]
    assert told in found.message
    assert found.file == str(tmp_path / "queries.csv")


def test_a_file_has_its_own_count() -> None:
    """How many queries are drawn cannot be said beside a file of them."""
    spec = "version: 1\nkind: supernet\nname: t\nfamily: ofa-mobilenetv3\nqueries: {path: q.csv, count: 5}\n"
    with pytest.raises(UnfoldError) as caught:
        parse_spec(spec)
    assert [one.key for one in caught.value.diagnostics] == ["queries.count"]
