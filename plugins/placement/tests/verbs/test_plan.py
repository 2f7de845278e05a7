"""The verb ``plan`` on whole specs."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

import pytest

from plugins.placement.tests.cases import cluster, job
from unfold_placement.core.cluster_view import View
from unfold_placement.core.types import BEGAN, STATIC, SUBMITTED, Ask, Event, Put, Task, Transactions
from unfold_placement.schema.placement import PlacementSpec
from unfold_placement.simulation.simulator import simulate
from unfold_placement.verbs.plan import PLACEMENTS_FILE, plan
from unfoldkit.api import Report, Run, RunDir, StepArea, Timeline, UnfoldError, Verdict
from unfoldkit.engines.local import LocalEngine
from unfoldkit.spec.validate import validate
from unfoldkit.spec.yaml_reader import parse

SPEC = """
version: 1
kind: placement
name: p
cluster: {nodes: [{count: 4, cpu: 16, gpu: 4}]}
workload:
  tasks:
    - {job: a, count: 10, gpu: 1, run: 10 min}
    - {job: b, count: 10, gpu: 1, run: 10 min}
policy: POLICY
"""


def answer(folder: Path, policy: str, extra: str = "", **run: Any) -> Report:
    """Return the plan's report."""
    spec = validate(PlacementSpec, parse(SPEC.replace("POLICY", policy) + extra, "p.yaml"))
    return plan(spec, Run(directory=RunDir(folder), engine=LocalEngine(1), **run))


def test_short_makespans_are_reported_with_two_digits(tmp_path: Path) -> None:
    """A replay that ends within a second, as the trials of a small tuning run do, is not reported to take none."""
    text = SPEC.replace("POLICY", "{gang: {by: job}}").replace("10 min", "150 ms")
    spec = validate(PlacementSpec, parse(text, "p.yaml"))
    report = plan(spec, Run(directory=RunDir(tmp_path), engine=LocalEngine(1)))
    assert report.headline.startswith("20 tasks done in 0.3 s, every rule of the policy kept; ")


def test_a_plan_reports_metrics_figures_and_placements(tmp_path: Path) -> None:
    """Violations, makespan, figures of FIFO beside it, a timeline, and placements that can be read again."""
    report = answer(tmp_path, "{gang: {by: job}}")
    assert report.verdict is Verdict.YES
    assert report.metrics["violations"].value == 0
    assert report.metrics["makespan_s"].value == 1200
    assert report.metrics["fifo_violations"].value == 2
    assert report.metrics["decisions_per_second"].timed
    gantt, _, queue = report.figures[:3]
    assert isinstance(gantt, Timeline)
    assert isinstance(queue, StepArea)
    waiting, running = queue.panels
    assert Counter(bar.group for bar in gantt.bars) == {"a": 10, "b": 10}
    assert all(bar.end - bar.start == pytest.approx(10.0) for bar in gantt.bars)
    assert {series.name: max(series.y) for series in running.series} == {"a": 10, "b": 10}
    # without the policy six tasks of the second job start at once
    assert {series.name: max(series.y) for series in waiting.series} == {"policy": 10, "FIFO, no policy": 4}
    assert all(series.y[-1] == 0 for series in waiting.series)
    rows = (tmp_path / PLACEMENTS_FILE).read_text().splitlines()
    assert rows[0] == "task,node,arrival_s,start_s,end_s"
    assert rows[1] == "a-0,node-0,0.000000,0.000000,600.000000"
    assert len(rows) == 21


def test_thousands_of_tasks_have_no_bar_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay with more tasks than a page can show has its other figures, and no bar for each task."""
    monkeypatch.setattr("unfold_placement.report.plan.MAX_BARS", 19)
    assert [figure.name for figure in answer(tmp_path, "{gang: {by: job}}").figures] == ["jobs", "timeline", "waits"]


def test_the_first_example_shows_what_a_policy_changes(tmp_path: Path) -> None:
    """The first spec of a newcomer tears gangs without its policy and none with it, and a waiting task is reported."""
    text = resources.files("unfold_placement").joinpath("examples", "gangs.yaml").read_text(encoding="utf-8")
    spec = validate(PlacementSpec, parse(text, "mine.yaml"))
    report = plan(spec, Run(directory=RunDir(tmp_path), engine=LocalEngine(1)))
    assert report.metrics["violations"].value == 0
    assert report.metrics["fifo_violations"].value == 3
    assert any(label == "explained" for label, _ in report.lines)


def test_a_plan_for_kubernetes_counts_pods(tmp_path: Path) -> None:
    """Where nodes have a limit of pods, a plan starts no more of them, and takes no share in pods for use."""
    small = SPEC.replace("gpu: 4}]", "gpu: 4, resources: {pods: 2}}], kubernetes: {}").replace("POLICY", "{}")
    spec = validate(PlacementSpec, parse(small, "p.yaml"))
    report = plan(spec, Run(directory=RunDir(tmp_path), engine=LocalEngine(1)))
    assert report.metrics["makespan_s"].value == 1800
    assert report.metrics["utilisation"].value == pytest.approx(0.5)
    assert answer(tmp_path, "{}").metrics["makespan_s"].value == 1200


def test_a_waiting_task_is_explained(tmp_path: Path) -> None:
    """The report names the missing name, where it is missing, since when, and which policy puts it."""
    report = answer(tmp_path, "{gang: {by: job}}", "explain: {task: b-3, at: 5 min}\n")
    rows = {str(row[0]): row[1:] for row in report.tables[1].rows}
    assert rows["gang-b-"] == ("Gang", "nowhere", "everywhere", 0.0)
    assert rows["1 gpu"][1:3] == ("node-2, node-3", "node-0, node-1")


PREEMPTED = """
version: 1
kind: placement
name: p
cluster:
  nodes: [{name: n0, gpu: 2}, {name: n1, gpu: 2}]
  events: [{at: 150 min, nodes: [n0], change: down, lasts: 60 min}]
workload:
  tasks:
    - {job: long, gpu: 2, run: 600 min, user: ann, checkpoint_every: 60 min}
    - {job: other, gpu: 2, run: 400 min, user: bob}
    - {job: late, gpu: 2, run: 10 min, user: cat, at: 380 min, priority: 1}
"""


@pytest.mark.parametrize(
    ("explain", "expected"),
    [
        ("", "at 10,800.0 s long-0 waits"),
        ("explain: {task: long-0, at: 1 h}", "long-0 runs on n0"),
        ("explain: {task: late-0, at: 1 h}", "late-0 has not arrived"),
        ("explain: {task: other-0, at: 8 h}", "other-0 has ended"),
    ],
)
def test_the_explained_time_is_one_of_waiting(tmp_path: Path, explain: str, expected: str) -> None:
    """A task that lost its node waits from then on, not from its arrival; one that does not wait has no reasons."""
    spec = validate(PlacementSpec, parse(PREEMPTED + explain, "p.yaml"))
    report = plan(spec, Run(directory=RunDir(tmp_path), engine=LocalEngine(1)))
    (line,) = [line for label, line in report.lines if label == "explained"]
    assert expected in line
    assert len(report.tables) == (1 if explain else 2)


def test_work_that_a_checkpoint_kept_slows_nothing_down(tmp_path: Path) -> None:
    """Slowdowns of the users: 690 of 600 minutes for ann, none for bob, 30 of 10 for cat, which waits for a node."""
    spec = validate(PlacementSpec, parse(PREEMPTED, "p.yaml"))
    report = plan(spec, Run(directory=RunDir(tmp_path), engine=LocalEngine(1)))
    slowdowns = (690 / 600, 1.0, 30 / 10)
    expected = sum(slowdowns) ** 2 / (3 * sum(value**2 for value in slowdowns))
    assert report.metrics["fairness"].value == pytest.approx(expected)


@pytest.mark.parametrize(("lost_at", "useful_min"), [(150, 120), (180, 180)])
def test_what_a_checkpoint_kept_is_in_use(tmp_path: Path, lost_at: int, useful_min: int) -> None:
    """Also a run that was stopped right at a checkpoint counts, which lost nothing."""
    text = PREEMPTED.replace("at: 150 min", f"at: {lost_at} min")
    report = plan(
        validate(PlacementSpec, parse(text, "p.yaml")), Run(directory=RunDir(tmp_path), engine=LocalEngine(1))
    )
    # until the last start, after 400 minutes: one node without the outage, the other all the time
    expected = (useful_min + 400 - lost_at - 60 + 400) / (400 - 60 + 400)
    assert report.metrics["utilisation"].value == pytest.approx(expected)


def test_an_unsatisfiable_composition_is_an_error(tmp_path: Path) -> None:
    """Exit 2 with the smallest case, before anything is replayed."""
    with pytest.raises(UnfoldError, match="with a alone on the empty cluster, 10 tasks wait forever") as error:
        answer(tmp_path, "{gang: {}, anti-affinity: {}}")
    assert error.value.code == 2
    assert "a-0 is set aside: its 10 tasks do not fit together" in str(error.value)


def test_a_gang_larger_than_the_cluster_is_an_error_with_the_amounts(tmp_path: Path) -> None:
    """The cause comes first: what its tasks need, and what the cluster has."""
    text = SPEC.replace("POLICY", "{gang: {}}").replace("count: 10", "count: 50")
    with pytest.raises(UnfoldError, match="a-0 is set aside: its 50 tasks need 50 gpu, and the cluster has 16;"):
        plan(validate(PlacementSpec, parse(text, "p.yaml")), Run(directory=RunDir(tmp_path), engine=LocalEngine(1)))


@dataclass
class Hold:
    """A policy of a user's own, which asks for nothing and puts nothing."""

    word: str = "x"
    phase: ClassVar[int] = STATIC
    watches: ClassVar[frozenset[str]] = frozenset({BEGAN})

    def request(self, task: Task) -> list[Ask]:
        return []

    def react(self, event: Event, view: View) -> Transactions:
        yield []


def test_a_custom_policy_needs_allow_code(tmp_path: Path) -> None:
    """``module:Class`` runs with --allow-code only; a wrong name, class or option is reported in words."""
    mine = f"{{own: {{policy: '{Hold.__module__}:Hold', options: {{word: y}}}}}}"
    with pytest.raises(UnfoldError, match="allow-code"):
        answer(tmp_path, mine)
    assert answer(tmp_path, mine, allow_code=True).verdict is Verdict.YES
    for wrong, expected in (
        ("{own: {policy: nothing}}", "no policy"),
        ("{own: {policy: 'no.such:Class'}}", "cannot load"),
        ("{own: {policy: 'collections:Counter', options: {}}}", "has no phase"),
        (mine.replace("word", "ward"), "cannot build"),
    ):
        with pytest.raises(UnfoldError, match=expected):
            answer(tmp_path, wrong, allow_code=True)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("gpu: 4}", "gpus: 4}", "did you mean"),
        ("{count: 4, cpu: 16, gpu: 4}", "{count: 4}", "the node has no resources"),
        ("gpu: 1, run", "resources: {a/b/c: 1}, run", "characters that are not allowed"),
        ("run: 10 min", "run: 10", "has no unit"),
        ("gpu: 1, run", "after: [c], gpu: 1, run", "no such job: c"),
        ("POLICY", "{pack: {fallback: [any later]}}", "not a level and a time"),
        ("POLICY", "{spread: {by: jobs}}", 'did you mean "job"'),
        ("POLICY", "{drf: {}, all: [{wfq: {}}]}", "both order the queue"),
        ("POLICY", "{quota: {}}", "^p.yaml:10:17: policy.quota: no team has a quota"),
        ("POLICY", "{quota: {team-a: -1}}", r"policy.quota.team-a: must be at least 0, got -1$"),
        ("POLICY", "{quota: {team-a: null}}", r"policy.quota.team-a: expected a number, got nothing$"),
        ("POLICY", "{limit: {most: 1}, all: [{limit: {most: 2}}]}", "is written twice"),
        ("{nodes:", "{trace: openb, path: x, nodes:", "together"),
    ],
)
def test_spec_faults_are_reported(tmp_path: Path, old: str, new: str, expected: str) -> None:
    """Keys that do not fit together are reported with their place, before anything is simulated."""
    text = SPEC.replace(old, new).replace("POLICY", "{gang: {}}")
    with pytest.raises(UnfoldError, match=expected) as error:
        validate(PlacementSpec, parse(text, "p.yaml"))
    assert all(item.line for item in error.value.diagnostics)


def test_tasks_are_read_from_files_or_generated(tmp_path: Path) -> None:
    """A CSV file and a random workload replay like a written one; a wrong file is reported with its line."""
    file = tmp_path / "w.csv"
    file.write_text("task,arrival,run,gpu,job,user\nx,0,5,1,j,u\ny,1,5,16,j,v\n")
    text = SPEC.replace("POLICY", "{drf: {}}").split("workload:")[0]
    for workload in (
        f"{{replay: {{trace: csv, path: {file}}}}}",
        "{made: {random: 50, demands: [{gpu: 1}, {cpu: 2}]}}",
    ):
        spec = validate(PlacementSpec, parse(f"{text}workload: {workload}\npolicy: {{drf: {{}}}}\n", "p.yaml"))
        if "csv" in workload:
            assert plan(spec, Run(directory=RunDir(tmp_path), engine=LocalEngine(1))).verdict is Verdict.NO
            file.write_text("task,arrival,run,gpu,job,user\nx,0,5,1,j,u\ny,1,5,x,j,v\n")
            with pytest.raises(UnfoldError, match=r"w\.csv:3:1: gpu: 'x' is not a number"):
                plan(spec, Run(directory=RunDir(tmp_path), engine=LocalEngine(1)))
            continue
        assert plan(spec, Run(directory=RunDir(tmp_path), engine=LocalEngine(1))).verdict is Verdict.YES


def test_an_installed_policy_is_found_by_its_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another distribution offers is used by its name, without leave to run code that a spec names."""
    made = tmp_path / "site" / "waits-1.dist-info"
    made.mkdir(parents=True)
    (made / "METADATA").write_text("Metadata-Version: 2.1\nName: waits\nVersion: 1\n", "utf-8")
    offered = f"[unfoldkit.placement]\nwaits = {Hold.__module__}:Hold\n"
    (made / "entry_points.txt").write_text(offered, "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert answer(tmp_path, "{own: {policy: waits, options: {word: y}}}").verdict is Verdict.YES


@pytest.mark.e2e
def test_an_unsatisfiable_composition_is_reported_with_its_line(tmp_path: Path) -> None:
    """The error of a refused composition names the file and the line of the policy."""
    spec = tmp_path / "wide.yaml"
    spec.write_text(WIDE, "utf-8")
    words = [sys.executable, "-m", "unfoldkit", "plan", str(spec), "--run", str(tmp_path / "run")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"{spec}:6:1: policy: unsatisfiable" in done.stderr


WIDE = """version: 1
kind: placement
name: wide
cluster: {nodes: [{count: 2, gpu: 4}]}
workload: {tasks: [{job: wide, count: 3, gpu: 1, run: 1 min}]}
policy: {gang: {by: job}, anti-affinity: {by: job}}
"""


@pytest.mark.parametrize("pack", ["{level: rakc}", "{level: node, fallback: [rakc after 5 s]}"])
def test_packing_by_an_unknown_label_is_an_error(tmp_path: Path, pack: str) -> None:
    """A level that is misspelt would be kept by every placement, so it is an error that names those that there are."""
    with pytest.raises(UnfoldError, match=r"policy\.pack: no node has the label 'rakc' \(one of: any, node\)"):
        answer(tmp_path, f"{{pack: {pack}}}")


@dataclass
class Astray:
    """A policy of one's own with a mistake."""

    asks: Any
    gives: Any
    phase: ClassVar[int] = STATIC
    watches: ClassVar[frozenset[str]] = frozenset({SUBMITTED})

    def request(self, task: Task) -> Any:
        return self.asks

    def react(self, event: Event, view: View) -> Any:
        return self.gives


@pytest.mark.parametrize(
    ("asks", "gives", "wanted"),
    [
        (
            ["door"],
            (),
            r"request of a policy must return an Ask: return \[Ask\(name\)\] \(Astray.request returned 'door'\)",
        ),
        ([], [Put("door")], "react of a policy must return a list of operations"),
        ([], [["door"]], "react of a policy must return a Put, Drop, Wake or Refuse"),
    ],
)
def test_a_policy_with_wrong_return_values_is_reported(asks: Any, gives: Any, wanted: str) -> None:
    """The author of a policy gets what it should return and what it returned, not where it broke inside."""
    with pytest.raises(UnfoldError, match=wanted):
        simulate(cluster(), job("a", 1), [Astray(asks, gives)])


def test_a_plan_reports_the_defaults_of_missing_cells(tmp_path: Path) -> None:
    """The report counts the rows of each default, beside the number of all rows."""
    (tmp_path / "tasks.csv").write_text("task,arrival,run,gpu\na,,10,1\nb,5,,1\nc,7,30,\n", "utf-8")
    workload = {"replay": {"trace": "csv", "path": str(tmp_path / "tasks.csv"), "table": {"missing": {"run": "20 s"}}}}
    cluster_spec = {"nodes": [{"count": 1, "gpu": 4}]}
    body = {"version": 1, "kind": "placement", "name": "p", "cluster": cluster_spec, "workload": workload}
    spec = PlacementSpec.model_validate(body, strict=False)
    report = plan(spec, Run(directory=RunDir(tmp_path / "run"), engine=LocalEngine(1)))
    assert [line for label, line in report.lines if label == "input"] == [
        "tasks.csv: 1 of 3 rows have no arrival; they use the earliest time of the file",
        "tasks.csv: 1 of 3 rows have no run; they use 20 s",
        "tasks.csv: 1 of 3 rows have no gpu; they use 0",
    ]


def plan_table(folder: Path, text: str) -> Report:
    """Plan the tasks of a CSV file on a node of four GPUs."""
    (folder / "tasks.csv").write_text(text, "utf-8")
    workload = {"replay": {"trace": "csv", "path": str(folder / "tasks.csv")}}
    cluster_spec = {"nodes": [{"count": 1, "gpu": 4}]}
    body = {"version": 1, "kind": "placement", "name": "p", "cluster": cluster_spec, "workload": workload}
    spec = PlacementSpec.model_validate(body, strict=False)
    return plan(spec, Run(directory=RunDir(folder / "run"), engine=LocalEngine(1)))


def test_names_with_commas_and_quotes_stay_one_cell(tmp_path: Path) -> None:
    """Recorded names hold anything: the placements are a table that any program reads, and runs nothing of."""
    plan_table(tmp_path, 'task,arrival,run,gpu\n"a ""x"", y",0,5,1\n=1+1,0,5,9\n')
    rows = list(csv.reader((tmp_path / "run" / PLACEMENTS_FILE).read_text("utf-8").splitlines()))
    assert rows[1:] == [['a "x", y', "node-0", "0.000000", "0.000000", "5.000000"], ["'=1+1", "", "0.000000", "", ""]]


def test_numbered_tasks_of_one_name_are_an_error(tmp_path: Path) -> None:
    """The second task of a row, and another row, may not share a name: policies would take them for one task."""
    with pytest.raises(UnfoldError, match="2 tasks have the name a-1"):
        plan_table(tmp_path, "task,arrival,run,gpu,count\na,0,5,1,2\na-1,0,5,1,1\n")


def test_resources_may_have_a_vendor_in_front(tmp_path: Path) -> None:
    """A slice of a GPU has the name that Kubernetes gives it: two tasks of two share a node of four."""
    kind = "nvidia.com/mig-1g.5gb"
    text = (
        PREEMPTED.split("cluster:", maxsplit=1)[0]
        + f"""
cluster: {{nodes: [{{cpu: 4, resources: {{{kind}: 4}}}}]}}
workload: {{tasks: [{{job: a, count: 3, run: 10 min, resources: {{{kind}: 2}}}}]}}
"""
    )
    report = plan(
        validate(PlacementSpec, parse(text, "p.yaml")), Run(directory=RunDir(tmp_path), engine=LocalEngine(1))
    )
    assert report.metrics["makespan_s"].value == 1200
