"""The verb ``plan`` on a simulated accelerator."""

from __future__ import annotations

from pathlib import Path

import pytest

from plugins.supernet.tests.helpers import PLAN_SPEC, make_run, parse_spec
from unfold_supernet.verbs.plan import plan
from unfoldkit.api import Report, Verdict, format_bytes


def plan_study(folder: Path, extra: str = "") -> Report:
    """Plan the study and return its report."""
    text = PLAN_SPEC.replace("{count: 500}", f"{{count: 500{extra}}}")
    return plan(parse_spec(text), make_run(folder, seed=1))


@pytest.mark.e2e
def test_plan_reports_savings_at_every_buffer_size(tmp_path: Path) -> None:
    """Savings are reported at the spec's buffer and at every size of the sweep, and the decision fits the buffer."""
    report = plan_study(tmp_path)
    assert report.verdict is Verdict.YES
    for name in ("traffic", "latency", "energy"):
        for label in ("512KiB", "1MiB", "2MiB"):
            assert report.metrics[f"{name}_saving_{label}"].value is not None
        assert report.metrics[f"{name}_saving"] == report.metrics[f"{name}_saving_1MiB"]
    assert report.decision is not None
    assert 0.99 * 2**20 < report.decision["bytes"] <= 2**20


def test_subnets_beyond_the_deadline_are_left_out(tmp_path: Path) -> None:
    """With a deadline, only subnets that meet it are planned."""
    report = plan_study(tmp_path, ", deadline: 2.2 ms")
    everything = plan_study(tmp_path)
    assert report.decision is not None
    assert everything.decision is not None
    assert 0 < len(report.decision["nets"]) < len(everything.decision["nets"])


@pytest.mark.parametrize(("keep", "row"), [("fixed", 1), ("avgnet", 2), ("least-latency", 3)])
def test_plan_reports_the_strategy_of_the_spec(tmp_path: Path, keep: str, row: int) -> None:
    """The scheduled savings are those of the spec's strategy on the same stream, refills included."""
    report = plan_study(tmp_path, f", keep: {keep}, pattern: bursty")
    ways = next(table for table in report.tables if table.name == "strategies")
    bytes_ = [float(str(line[3])) for line in ways.rows]
    assert ways.accent == row
    assert str(ways.rows[row][0]).startswith("static" if keep == "fixed" else keep)
    saved = report.metrics["scheduled_traffic_saving"].value
    assert saved == pytest.approx(1 - bytes_[row] / bytes_[0])
    assert keep == "fixed" or keep in report.headline


@pytest.mark.e2e
def test_proposed_deadline_is_feasible(tmp_path: Path) -> None:
    """A deadline that no subnet meets is refused, and the proposed one is met."""
    report = plan_study(tmp_path, ", deadline: 0.1 ms")
    assert report.verdict is Verdict.NO
    offered = dict(report.lines)["minimal relaxation"].removeprefix("deadline ").partition(" for ")[0]
    assert plan_study(tmp_path, f", deadline: {offered}").verdict is Verdict.YES


def test_plan_uses_the_queries_of_a_file(tmp_path: Path) -> None:
    """The queries of a table are met where a subnet can, and the report holds the file's digest."""
    (tmp_path / "q.csv").write_text("accuracy,latency_ms\n77,50\n77,0.01\n,50\n99,50\n", encoding="utf-8")
    text = PLAN_SPEC.replace("{count: 500}", f"{{path: {tmp_path / 'q.csv'}}}")
    given = parse_spec(text)
    report = plan(given, make_run(tmp_path / "run", seed=1))
    shares = {name: report.metrics[name].value for name in ("in_time", "accurate_enough", "both_targets")}
    assert shares == {"in_time": 0.75, "accurate_enough": 0.75, "both_targets": 0.5}
    assert list(report.provenance["inputs"]) == ["q.csv"]


def test_strict_latency_headline_states_accuracy_points(tmp_path: Path) -> None:
    """With strict-latency, saved time goes into larger subnets, so the headline states points, not latency."""
    report = plan_study(tmp_path, ", policy: strict-latency")
    assert "accuracy points at equal deadlines" in report.headline
    assert "of the latency" not in report.headline


def test_weights_of_16_bits_halve_the_savings(tmp_path: Path) -> None:
    """With all maps on chip, 16-bit weights halve the cached weights and the saved fraction."""
    plain = plan_study(tmp_path / "a")
    text = PLAN_SPEC.replace(
        "{persistent_buffer", "{precision: {weights: 16, maps: 16}, streaming_buffer: 4 MiB, persistent_buffer"
    )
    given = parse_spec(text)
    wide = plan(given, make_run(tmp_path / "b", seed=1))
    assert plain.decision is not None
    assert wide.decision is not None
    assert 0.99 * 2**20 < wide.decision["bytes"] <= 2**20
    saved = [report.metrics["traffic_saving"].value or 0.0 for report in (wide, plain)]
    assert saved[0] == pytest.approx(saved[1] / 2, rel=0.01)
    assert any("16-bit weights" in text and "INT8" in text for _name, text in wide.lines)


@pytest.mark.parametrize(
    ("buffer", "expected"), [("1 MiB", "1 MiB of the common weights"), ("64 MiB", "of subnet F saves")]
)
def test_headline_states_the_cached_subgraph(tmp_path: Path, buffer: str, expected: str) -> None:
    """The headline states the bytes of the cached subgraph and its source, also beyond the core."""
    text = PLAN_SPEC.replace("persistent_buffer: 1 MiB", f"persistent_buffer: {buffer}")
    given = parse_spec(text)
    report = plan(given, make_run(tmp_path, seed=1))
    assert report.decision is not None
    assert expected in report.headline
    assert report.headline.startswith(f"caching {format_bytes(report.decision['bytes'])} of")
