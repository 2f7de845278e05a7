"""``check --verify`` writes its report in every format: counterexamples as timelines, the bound as a table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from plugins.placement.tests.cases import job, policy
from tests.support import call
from unfold_placement.core.types import DOWN, UP, Node, NodeChange
from unfold_placement.report.verification import verification_report
from unfold_placement.simulation.problem import Problem
from unfold_placement.verification.counterexample import Counterexample
from unfold_placement.verification.scenario import Kind, Scenario
from unfold_placement.verification.search import TORN, Finding
from unfold_placement.verification.verify import SearchRecord, Verification

SPEC = """version: 1
kind: placement
name: stream
cluster: {{nodes: [{{count: 1, cpu: 6}}]}}
workload:
  tasks: [{{job: small, cpu: 3, run: 1 min, user: a}}, {{job: large, cpu: 5, run: 1 min, user: b}}]
policy: {{fifo: {{guard: {guard}}}}}
"""


def write_spec(folder: Path, guard: str) -> str:
    """Write the spec of a queue, with a guard or without."""
    path = folder / f"{guard}.yaml"
    path.write_text(SPEC.format(guard=guard), encoding="utf-8")
    return str(path)


def test_a_counterexample_is_a_page_with_its_timeline(tmp_path: Path) -> None:
    """The page shows the replay and what is claimed of each property; the spec still goes to stdout."""
    page = tmp_path / "page.html"
    outcome = call(["check", "--verify", write_spec(tmp_path, "none"), "-o", str(page)])
    assert (outcome.code, outcome.out.splitlines()[1]) == (1, "version: 1")
    assert f"wrote {page}" in outcome.err
    text = page.read_text("utf-8")
    assert "Counterexample, replayed: starvation, job large" in text
    assert text.count("<svg") == 1
    assert "still waits" in text
    assert [word for word in ("counterexample", "holds", "no gangs") if f"<td>{word}</td>" in text] == [
        "counterexample", "holds", "no gangs",
    ]  # fmt: skip


def test_a_bound_is_a_table_in_every_format(tmp_path: Path) -> None:
    """Without a counterexample there is no figure; a report on stdout stands alone, so that programs read it."""
    spec = write_spec(tmp_path, "reserve")
    outcome = call(["check", "--verify", "--format", "json", spec])
    report = json.loads(outcome.out)
    assert (outcome.code, report["figures"]) == (0, [])
    (bound,) = [table for table in report["tables"] if table["name"] == "bound"]
    assert [row[1] for row in bound["rows"]] == ["holds"] * 3 + ["no gangs", "no rule to check"] + ["holds"] * 3
    assert "<h2>bound</h2>" in call(["check", "--verify", "--format", "html", spec]).out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "x.html"], "--out holds the report of a search"),
        (["--format", "html"], "add --verify"),
        (["--verify", "--format", "htm"], "no such format"),
        (["--verify", "--format", "plan"], "a search has no plan"),
        (["--verify", "--out", "x.html", "SPEC"], "takes one spec"),
        (["--verify", "--format", "html", "--out", "SPEC"], "would overwrite an input"),
    ],
)
def test_options_that_make_no_sense_are_refused(tmp_path: Path, words: list[str], message: str) -> None:
    """Each names what it lacks, and nothing is written."""
    spec = write_spec(tmp_path, "none")
    outcome = call(["check", spec, *(spec if word == "SPEC" else word for word in words)])
    assert outcome.code == 2
    assert message in outcome.err
    assert not Path("x.html").exists()


def test_a_lost_node_is_marked_until_it_returns() -> None:
    """The lane of a lost node shows when it is away, in the unit of the axis."""
    nodes = tuple(Node(name, {"gpu": 1000}) for name in ("n0", "n1"))
    tasks = tuple(job("a0", 1, run=600.0))
    changes = (NodeChange(60.0, "n1", DOWN), NodeChange(180.0, "n1", UP), NodeChange(300.0, "n1", DOWN))
    scenario = Scenario(nodes, (Kind("a", tasks),), "a")
    example = Counterexample(Finding(property_name=TORN, victim="a", prefix=()), tasks, scenario, "x", changes)
    record = SearchRecord(nodes=2, kinds="", victim="a", jobs_in_flight=3, states=9, transitions=9, is_complete=True)
    found = Verification(counterexamples=(example,), by_design=(), unconfirmed=0, searches=(record,), time_dependent=())
    problem = Problem(name="x", nodes=nodes, tasks=tasks, rules=policy(fifo={}, gang={}))
    report = verification_report(problem, found, {})
    (figure,) = report.figures
    markers = [(item.lane, item.at, item.end) for item in figure.markers if item.name == "lost"]
    assert markers == [("n1", 1.0, 3.0), ("n1", 5.0, None)]
    results = dict(row[:2] for table in report.tables if table.name == "bound" for row in table.rows)
    assert (results["torn gang"], results["starvation"]) == ("counterexample", "holds")
