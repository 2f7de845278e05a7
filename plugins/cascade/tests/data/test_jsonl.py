"""Laws of tables that have a JSON object a line."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from plugins.cascade.tests.runs import CONFIGS, run_in, spec_of
from unfold_cascade.data.table import frame_of_file
from unfold_cascade.verbs import plan
from unfoldkit.api import UnfoldError


def _written(path: Path, rows: list[object]) -> Path:
    text = "\n".join(json.dumps(row) for row in rows) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.e2e
def test_a_log_plans_as_the_same_table_in_csv(tmp_path: Path) -> None:
    """The same cases as lines of JSON give the plan and the figures that they give as CSV."""
    rows = list(csv.DictReader((CONFIGS / "api-logs.csv").read_text().splitlines()))
    numbers = [{k: float(v) if k.endswith("_confidence") and v else v for k, v in row.items()} for row in rows]
    _written(tmp_path / "log.jsonl.gz", list(numbers))
    setting = f"data.path={tmp_path / 'log.jsonl.gz'}"
    one, two = (
        plan(spec_of(CONFIGS / "api-logs.yaml", "gates.max_models=2", *more), run_in(tmp_path / name))
        for name, more in (("csv", ()), ("jsonl", (setting,)))
    )
    assert one.decision == two.decision
    assert one.metrics == two.metrics


def test_objects_and_lists_within_a_line_are_columns(tmp_path: Path) -> None:
    """What an object holds is called OUTER.INNER, a list is columns of numbers, a key that is left out a gap."""
    rows = [{"y": i % 2 == 0, "usage": {"cost": i / 8, "by": {"in": i}}, "emb": [i, -i]} for i in range(11)]
    table = frame_of_file(_written(tmp_path / "log.ndjson", [*rows, {"y": True, "n": None}]))
    assert set(table.columns) == {"y", "usage.cost", "usage.by.in", "emb_0", "emb_1", "n"}
    np.testing.assert_array_equal(table.numbers("usage.cost", key="features"), [*(i / 8 for i in range(11)), np.nan])
    np.testing.assert_array_equal(table.numbers("emb_1", key="features"), [*(-i for i in range(11)), np.nan])
    assert np.isnan(table.numbers("n", key="features")).all()
    assert table.numbers_or_flags("y", key="features").tolist() == [1, 0] * 5 + [1, 1]


@pytest.mark.parametrize(
    ("line", "expected"), [("{", "not JSON"), ("[1, 2]", "not a JSON object"), ("3", "not a JSON object")]
)
def test_an_invalid_json_line_is_reported_with_its_number(tmp_path: Path, line: str, expected: str) -> None:
    """The message names the file, the line and the mistake."""
    (tmp_path / "log.jsonl").write_text('{"a": 1}\n\n' + line + "\n")
    with pytest.raises(UnfoldError, match=rf"log.jsonl:3:1: {expected}"):
        frame_of_file(tmp_path / "log.jsonl")


@pytest.mark.parametrize("name", ["log.json", "log.jsonl"])
def test_an_array_of_objects_is_a_table(tmp_path: Path, name: str) -> None:
    """Tracing tools export one array; an item that is not an object is named by its number."""
    rows = [{"y": i, "usage": {"in": 2 * i}} for i in range(12)]
    (tmp_path / name).write_text(json.dumps(rows, indent=1))
    assert frame_of_file(tmp_path / name).numbers("usage.in", key="x").tolist() == [2 * i for i in range(12)]
    (tmp_path / name).write_text(json.dumps([*rows, 3]))
    with pytest.raises(UnfoldError, match="item 13: not a JSON object"):
        frame_of_file(tmp_path / name)
    (tmp_path / name).write_text("[1, ")
    with pytest.raises(UnfoldError, match="not JSON"):
        frame_of_file(tmp_path / name)


def test_a_json_text_sequence_is_a_table(tmp_path: Path) -> None:
    """Records of RFC 7464 begin with a separator; ``jq --seq`` and exporters of logs write them."""
    path = tmp_path / "log.jsonl"
    path.write_text("".join(f'\x1e{{"label": "{k % 2}"}}\n' for k in range(12)))
    assert frame_of_file(path).columns["label"].tolist() == ["0", "1"] * 6
