"""The verb ``plan`` end to end, and the errors of bad specs."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plugins.pipeline.tests.helpers import DEEP_SPEC
from unfold_pipeline.planner import greedy
from unfold_pipeline.problem import build
from unfold_pipeline.problem.build import build_live_sample
from unfold_pipeline.problem.latency_profile import store_activation
from unfold_pipeline.schema.pipeline import PipelineSpec
from unfold_pipeline.verbs.plan import plan
from unfold_pipeline.verbs.serve import prepare_deployment
from unfoldkit.api import Graph, Report, Run, RunDir, StepArea, UnfoldError, Verdict
from unfoldkit.catalog.price_books import load_catalog
from unfoldkit.engines.local import LocalEngine
from unfoldkit.spec.validate import validate
from unfoldkit.spec.yaml_reader import parse

GOOD = """
version: 1
kind: pipeline
name: two
slo: {p99: 350 ms}
arrivals: {process: gamma, rate: 60/s, cv: 2, duration: 20 s}
hardware: {cpu: {price: $0.05/h}, k80: {price: $0.65/h, quota: 12}}
stages:
  first: {latency: {cpu: {1: 10 ms, 8: 66 ms}}}
  second: {after: {first: 50%}, latency: {cpu: {1: 1.65 s}, k80: {1: 54 ms, 8: 185 ms}}}
"""


def spec_of(text: str) -> PipelineSpec:
    """The spec of a text, as the command reads it."""
    return validate(PipelineSpec, parse(text, "mine.yaml"))


def planned(text: str, folder: Path, **options: Any) -> Report:
    """The report of a plan."""
    return plan(spec_of(text), Run(RunDir(folder / "run"), LocalEngine(1), base=folder, options=options))


def decision(report: Report) -> Mapping[str, Any]:
    """The plan of a report."""
    assert report.decision is not None
    return report.decision


def test_feasible_spec_has_a_plan(tmp_path: Path) -> None:
    """A feasible spec gives a plan within its target, its metrics, and a frontier."""
    report = planned(GOOD, tmp_path)
    assert report.verdict is Verdict.YES
    assert set(decision(report)["stages"]) == {"first", "second"}
    value = report.metrics["p99_ms"].value
    assert value is not None
    assert value <= 350
    assert {"cost_per_hour", "gap_percent", "coarse_peak_ratio", "planning_seconds"} <= set(report.metrics)
    assert [figure.name for figure in report.figures] == ["plan", "latencies", "frontier"]
    graph = report.figures[0]
    assert isinstance(graph, Graph)
    stages = decision(report)["stages"]
    assert {node.name: node.count for node in graph.nodes} == {name: item["replicas"] for name, item in stages.items()}
    assert sum(node.share or 0.0 for node in graph.nodes) == pytest.approx(1.0)
    assert [(edge.source, edge.target) for edge in graph.edges] == [("first", "second")]


def test_infeasible_spec_has_a_binding_stage_and_relaxation(tmp_path: Path) -> None:
    """An infeasible spec names the binding stage and a relaxation that can be planned."""
    report = planned(GOOD.replace("350 ms", "50 ms"), tmp_path)
    assert report.verdict is Verdict.NO
    lines = dict(report.lines)
    assert "second: 54 ms for one query on its fastest hardware (k80)" in lines["binding constraint"]
    relaxed = report.metrics["relaxed_p99_ms"].value
    assert relaxed is not None
    again = planned(GOOD.replace("350 ms", f"{relaxed:.0f} ms"), tmp_path)
    assert again.verdict is Verdict.YES


def test_stopped_search_is_no_proof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the search stops without a plan, the report states that none was found and which limit to raise."""
    monkeypatch.setattr(greedy, "find_initial_plan", lambda _checker: None)
    report = planned(GOOD + "search: {limit: 100}\n", tmp_path)
    assert report.verdict is Verdict.NO
    assert report.headline == "no plan found within search.limit for p99 ≤ 350 ms"
    assert dict(report.lines)["search"].startswith("stopped after 100 simulated queries")
    assert report.next == "unfold plan SPEC --set search.limit=1000"


@pytest.mark.parametrize(
    ("limit", "target", "output"),
    [(100, "350 ms", "no plan found within search.limit"), (1e8, "50 ms", "no plan meets p99 ≤ 50 ms")],
)
def test_serving_without_a_plan_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: float, target: str, output: str
) -> None:
    """Serving without a plan distinguishes a stopped search from a target that is too tight."""
    monkeypatch.setattr(greedy, "find_initial_plan", lambda _checker: None)
    spec = spec_of(GOOD.replace("350 ms", target) + f"search: {{limit: {limit:.0f}}}\n")
    with pytest.raises(UnfoldError, match=output):
        prepare_deployment(spec, Run(RunDir(tmp_path / "run"), LocalEngine(1), base=tmp_path))


def test_next_command_raises_a_binding_quota(tmp_path: Path) -> None:
    """If a quota prevents every target, the next command raises it, and that admits a plan."""
    tight = GOOD.replace("quota: 12", "quota: 1").replace("cpu: {1: 1.65 s}, ", "").replace("60/s", "200/s")
    report = planned(tight, tmp_path)
    assert report.headline == "no plan meets p99 ≤ 350 ms"
    assert report.metrics["relaxed_p99_ms"].value is None
    wanted = report.next.removeprefix("unfold plan SPEC --set hardware.k80.quota=")
    assert planned(tight.replace("quota: 1", f"quota: {wanted}"), tmp_path).verdict is Verdict.YES


def test_interval_is_that_of_the_worst_sample(tmp_path: Path) -> None:
    """With several samples the percentile lies in the reported interval, and the sample is named."""
    rush = "{process: gamma, rate: 60/s, cv: 2, duration: 20 s}"
    report = planned(GOOD.replace(rush, f"[{{process: poisson, rate: 4/s, duration: 20 s}}, {rush}]"), tmp_path)
    line = dict(report.lines)["p99"]
    assert line.endswith("(block bootstrap over sample 2 of 2, the worst)")
    found = re.match(r"95 % CI ([\d.]+) ms – ([\d.]+) ms", line)
    assert found is not None
    low, high = map(float, found.groups())
    value = report.metrics["p99_ms"].value
    assert value is not None
    assert low - 0.5 <= value <= high + 0.5
    alone = planned(GOOD, tmp_path / "alone")
    assert dict(alone.lines)["p99"].endswith("(block bootstrap over this sample)")


def trace(folder: Path, rate: float) -> Path:
    """A trace on disk."""
    path = folder / "trace.npz"
    np.savez(path, arrival_s=np.cumsum(np.random.default_rng(0).exponential(1 / rate, 3000)))
    return path


def test_two_queries_have_a_rate_and_no_variation(tmp_path: Path) -> None:
    """One gap between arrivals has no coefficient of variation."""
    (tmp_path / "two.csv").write_text("time_s\n5\n6\n", "utf-8")
    report = planned(GOOD.replace("process: gamma, rate: 60/s, cv: 2, duration: 20 s", "trace: two.csv"), tmp_path)
    assert report.subtitle == ("2 stages", "2 queries", "2/s", "p99 ≤ 350 ms")


@pytest.mark.parametrize(
    ("own", "name", "text"),
    [
        ("{trace: a.csv, column: begun}", "b.csv", "arrival_s,begun\n1,5\n2,9\n3,9.5\n"),
        ("{trace: a.csv, column: begun}", "b.csv", "arrival_s\n5\n9\n9.5\n"),
        ("{trace: a.log, match: POST}", "b.log", "".join(f"2024-01-01T00:00:0{at}Z {what}\n" for at, what in (
            ("1.0", "POST"), ("2.0", "GET"), ("5.0", "POST"), ("5.5", "POST"),
        ))),
        ("{trace: a.log, match: POST}", "b.csv", "arrival_s\n5\n9\n9.5\n"),
    ],
)  # fmt: skip
def test_replayed_trace_is_read_as_the_spec_asks(tmp_path: Path, own: str, name: str, text: str) -> None:
    """Column and match of the spec apply to the replayed trace if it has such a column, or lines."""
    (tmp_path / "a.csv").write_text("arrival_s,begun\n1,1\n2,2\n")
    (tmp_path / "a.log").write_text("2024-01-01T00:00:01.0Z POST\n2024-01-01T00:00:02.0Z POST\n")
    (tmp_path / name).write_text(text)
    spec = spec_of(GOOD.replace("{process: gamma, rate: 60/s, cv: 2, duration: 20 s}", own))
    run = Run(RunDir(tmp_path / "run"), LocalEngine(1), base=tmp_path)
    found = build_live_sample(spec, build.build_problem(spec, run), tmp_path / name, run)
    assert found.arrivals.tolist() == [0.0, 4.0, 4.5]


def test_replay_compares_every_rule(tmp_path: Path) -> None:
    """A replay reports attainment and cost of the rule in charge and of the others, tuned and with their defaults."""
    report = planned(GOOD, tmp_path, replay=str(trace(tmp_path, 60.0)))
    names = [row[0] for row in report.tables[0].rows]
    assert names == [
        "fixed", "paper", "ratio", "table", "calibrated", "coarse-grained, mean", "coarse-grained, peak",
        "Ray Serve", "Ray Serve, defaults",
        "Knative", "Knative, defaults",
    ]  # fmt: skip
    assert report.metrics["attainment"].value is not None
    figure = report.figures[0]
    assert isinstance(figure, StepArea)
    assert [panel.name for panel in figure.panels] == ["queries/s", "replicas", "by stage", "misses/s"]
    assert {"coarse-grained, peak", "Ray Serve", "Knative"} < {series.name for series in figure.panels[1].series}
    totals, stages = figure.panels[1].series[0], figure.panels[2].series
    assert totals.y[0] == sum(series.y[0] for series in stages)
    assert totals.y[-1] == sum(series.y[-1] for series in stages)


def test_replayed_rules_keep_the_replicas_of_the_plan(tmp_path: Path) -> None:
    """A maximum below the plan removes no replicas that the planned traffic needs."""
    text = DEEP_SPEC + "tuner: {most: 2}\n"
    report = planned(text, tmp_path, replay=str(trace(tmp_path, 5.0)))
    misses = {str(row[0]): row[1] for row in report.tables[0].rows}
    assert misses["ratio"] == misses["fixed"]


def test_replay_of_overload_reports_rejections(tmp_path: Path) -> None:
    """A simulated service refuses what it would answer too late, and the report states how much that is."""
    calm = planned(GOOD, tmp_path, replay=str(trace(tmp_path, 60.0)))
    dense = planned(GOOD + "tuner: {policy: fixed}\n", tmp_path, replay=str(trace(tmp_path, 240.0)))
    assert "overload" not in dict(calm.lines)
    assert "of the queries are refused (429)" in dict(dense.lines)["overload"]
    assert calm.metrics["refused"].value == 0
    assert 0.3 < (dense.metrics["refused"].value or 0) < 0.9
    assert (dense.metrics["p99_ms"].value or np.inf) <= 4e3 * 0.35


def test_committed_plan_is_checked_against_new_traffic(tmp_path: Path) -> None:
    """A plan holds for its own traffic; traffic four times as dense exceeds its envelope."""
    first = planned(GOOD, tmp_path)
    committed = {"decision": first.decision}
    same = planned(GOOD, tmp_path, baseline_plan=committed)
    assert same.decision == first.decision
    dense = GOOD.replace("{process: gamma, rate: 60/s, cv: 2, duration: 20 s}", f"{{trace: {trace(tmp_path, 240.0)}}}")
    output = planned(dense, tmp_path, baseline_plan=committed)
    assert output.verdict is Verdict.NO
    assert "first exceeded at" in dict(output.lines)["envelope"]
    thin = GOOD.replace("{process: gamma, rate: 60/s, cv: 2, duration: 20 s}", f"{{trace: {trace(tmp_path, 10.0)}}}")
    assert planned(thin, tmp_path, baseline_plan=committed).verdict is Verdict.YES


RUSH = "{process: gamma, rate: 60/s, cv: 2, duration: 20 s}"


def checked(text: str, folder: Path, **changed: Any) -> Report:
    """The check of the plan of ``GOOD``, parts of it changed."""
    committed = {"decision": {**decision(planned(GOOD, folder)), **changed}}
    return planned(text, folder, baseline_plan=committed)


def test_price_change_is_reported(tmp_path: Path) -> None:
    """A plan that is checked against new traffic is priced again, and a change is reported."""
    thin = GOOD.replace(RUSH, f"{{trace: {trace(tmp_path, 10.0)}}}")
    same, dear = checked(thin, tmp_path), checked(thin.replace("$0.05/h", "$5/h"), tmp_path)
    assert "prices" not in dict(same.lines)
    before, now = same.metrics["cost_per_hour"].value, dear.metrics["cost_per_hour"].value
    assert before is not None
    assert now is not None
    assert now > before
    assert dict(dear.lines)["prices"].startswith(f"${now:,.2f}/h at current prices, ${before:,.2f}/h when planned")
    assert dear.verdict is Verdict.YES


def test_exceeded_envelope_is_the_reason(tmp_path: Path) -> None:
    """If the target is met but a window holds too many queries, the headline names the window."""
    thin = GOOD.replace(RUSH, f"{{trace: {trace(tmp_path, 10.0)}}}")
    output = checked(thin, tmp_path, envelope={"windows_s": [1000.0], "queries": [2999]})
    assert output.verdict is Verdict.NO
    start = "the envelope of the committed plan is first exceeded at 0.000 s: "
    assert output.headline == start + "3000 queries in 1,000.0 s, planned for 2999"


def test_plan_above_a_quota_is_rejected(tmp_path: Path) -> None:
    """A committed plan that exceeds a quota is rejected on any traffic."""
    used = decision(planned(GOOD, tmp_path))["stages"]["second"]["replicas"]
    thin = GOOD.replace(RUSH, f"{{trace: {trace(tmp_path, 10.0)}}}").replace("quota: 12", f"quota: {used - 1}")
    output = checked(thin, tmp_path)
    assert output.verdict is Verdict.NO
    assert output.headline == f"the committed plan exceeds a quota: {used} k80 used, the quota is {used - 1}"


def test_order_of_stages_does_not_change_the_plan(tmp_path: Path) -> None:
    """The order in which stages are written does not change what they cost."""
    head, stages = GOOD.split("stages:\n")
    lines = stages.rstrip().split("\n")
    turned = head + "stages:\n" + "\n".join(reversed(lines)) + "\n"
    assert decision(planned(turned, tmp_path)) == decision(planned(GOOD, tmp_path))


BAD = [
    ("after: {first: 50%}", "after: {frist: 50%}", 'stages.second.after.frist: no such stage (did you mean "first"?)'),
    ("after: {first: 50%}", "after: {first: 150%}", "is not between 0 and 1"),
    ("first: {latency", "first: {after: {second: 100%}, latency", "the stages form a cycle"),
    ("cpu: {1: 10 ms, 8", "cpu: {2: 10 ms, 8", 'latency for batch 1 is missing for "cpu"'),
    ("cpu: {1: 1.65 s}", "tpu: {1: 1.65 s}", "stages.second.latency.tpu: no such hardware"),
    ("rate: 60/s", "rate: 60", '"60" has no unit (write "60/s")'),
    ("process: gamma, rate: 60/s, cv: 2, duration: 20 s", "rate: 60/s", "one of: process, shape, trace"),
    ("process: gamma, rate: 60/s", "process: gamma", "a process needs a rate"),
    ("cv: 2", "cv: 2, scv: 4", "cv and scv describe the same quantity"),
    ("after: {first: 50%}", "after: {first: 0%}", "no query reaches this stage"),
    ("slo: {p99: 350 ms}", "slo: {p9: 350 ms}", 'slo.p9: unknown key (did you mean "p99"?)'),
    ("1: 10 ms", "1: 0 ms", "a batch must take more than 0 s"),
    ("{latency: {cpu: {1: 10 ms, 8: 66 ms}}}", "{}", "stages.first: has no latency"),
]


@pytest.mark.parametrize(("good", "bad", "message"), BAD)
def test_bad_specs_are_rejected(good: str, bad: str, message: str) -> None:
    """Every mistake is reported with file, line, key and hint."""
    assert good in GOOD
    with pytest.raises(UnfoldError) as caught:
        spec_of(GOOD.replace(good, bad, 1))
    output = str(caught.value)
    assert message in output
    assert "mine.yaml:" in output


def test_bad_traces_are_rejected(tmp_path: Path) -> None:
    """Empty, unsorted and missing traces and an unknown shape are rejected without a traceback."""
    for name, text in (("empty.csv", "arrival_s\n"), ("back.csv", "arrival_s\n2\n1\n")):
        (tmp_path / name).write_text(text)
    for arrivals, message in (
        ("{trace: empty.csv}", "no arrival"),
        ("{trace: back.csv}", "before the one above"),
        ("{trace: none.csv}", "no such file"),
        ("{shape: spik}", "no such shape"),
        ("{process: poisson, rate: 0.001/s, duration: 1 s}", "no query arrives"),
    ):
        text = GOOD.replace("{process: gamma, rate: 60/s, cv: 2, duration: 20 s}", arrivals)
        with pytest.raises(UnfoldError, match=message):
            planned(text, tmp_path)


def test_falling_latency_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A profile that gets faster with the batch is planned with a warning."""
    planned(GOOD.replace("8: 66 ms", "8: 5 ms"), tmp_path)
    assert "a larger batch is faster" in caplog.text


def test_prices_come_from_the_spec_or_the_catalog(tmp_path: Path) -> None:
    """An instance type has its catalog price; a price of the spec precedes it; the report names both."""
    named = GOOD.replace("k80: {price: $0.65/h, quota: 12}", "k80: {instance: g5.xlarge, per_instance: 2, quota: 12}")
    report = planned(named, tmp_path)
    output = dict(report.lines)["prices"]
    known = load_catalog().find("g5.xlarge").on_demand
    assert known is not None
    assert "cpu $0.05/h (spec)" in output
    assert f"g5.xlarge on demand ${known:g}/h for 2 replicas, bundled of" in output
    stages = decision(report)["stages"]
    used = Counter[str]()
    for item in stages.values():
        used[item["hardware"]] += item["replicas"]
    expected = used["cpu"] * 0.05 + math.ceil(used["k80"] / 2) * known
    assert decision(report)["cost_per_hour"] == pytest.approx(expected)
    rented = f"{math.ceil(used['k80'] / 2)} k80 for {used['k80']} replicas, 2 per instance"
    assert dict(report.lines).get("instances") == (rented if used["k80"] else None)


def test_price_list_precedes_the_catalog(tmp_path: Path) -> None:
    """A type in the user's price list has its price there, also an unknown type; the report names the file."""
    (tmp_path / "list.csv").write_text("instance,monthly cost,region\ng5.xlarge,730,here\nown-box,$2/h,here\n")
    listed = GOOD.replace("slo:", "prices: list.csv\nregion: here\nslo:")
    for name, price in (("g5.xlarge", 1), ("own-box", 2)):
        report = planned(listed.replace("k80: {price: $0.65/h", f"k80: {{instance: {name}"), tmp_path)
        assert f"k80 ${price}/h ({name} on demand ${price}/h, list.csv)" in dict(report.lines)["prices"]
    with pytest.raises(UnfoldError, match=r"prices: no such file"):
        planned(listed.replace("list.csv", "lost.csv"), tmp_path)


def test_spot_price_names_its_source(tmp_path: Path) -> None:
    """If a list has only the spot price, the list is its source."""
    (tmp_path / "spot.csv").write_text("instance,spot price\ng5.xlarge,0.33\n")
    listed = GOOD.replace("slo:", "prices: spot.csv\nslo:")
    report = planned(listed.replace("k80: {price: $0.65/h", "k80: {instance: g5.xlarge, spot: true"), tmp_path)
    assert "(g5.xlarge spot $0.33/h, spot.csv)" in dict(report.lines)["prices"]


def test_unknown_instance_type_is_rejected(tmp_path: Path) -> None:
    """An unknown type is rejected with its key; type and price together are rejected."""
    with pytest.raises(UnfoldError, match=r"hardware\.k80: no such instance type: 'g5.huge'"):
        planned(GOOD.replace("k80: {price: $0.65/h", "k80: {instance: g5.huge"), tmp_path)
    with pytest.raises(UnfoldError, match="cannot be combined with a price"):
        spec_of(GOOD.replace("k80: {price: $0.65/h", "k80: {instance: g5.xlarge, price: $0.65/h"))


PERF = """Concurrency,Inferences/Second,Client Send,Server Queue,Server Compute Input,Server Compute Infer,\
Server Compute Output,Client Recv,p50 latency
2,90,10,9000,120,41000,80,10,22000
1,50,10,30,100,{infer},100,10,20000
"""


def test_perf_analyzer_files_equal_their_figures(tmp_path: Path) -> None:
    """Latencies are the compute times of the row with the lowest load, in any order of rows."""
    for batch, infer in ((1, 53800), (8, 184800)):
        (tmp_path / f"b{batch}.csv").write_text(PERF.format(infer=infer))
    asked = GOOD.replace(
        "latency: {cpu: {1: 1.65 s}, k80: {1: 54 ms, 8: 185 ms}}",
        "latency: {cpu: {1: 1.65 s}}, perf_analyzer: {k80: {1: b1.csv, 8: b8.csv}}",
    )
    assert decision(planned(asked, tmp_path)) == decision(planned(GOOD, tmp_path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column Server Compute Input"),
        ("a,b\n1,2\n", r"b1\.csv:1:1: no column Server"),
        (PERF.format(infer="x"), "b1.csv:3"),
    ],
)
def test_bad_perf_analyzer_files_are_rejected(tmp_path: Path, text: str, message: str) -> None:
    """An empty file, a foreign one and a malformed figure are rejected with file and line."""
    (tmp_path / "b1.csv").write_text(text)
    asked = GOOD.replace("k80: {1: 54 ms, 8: 185 ms}}", "cpu: {1: 1.65 s}}, perf_analyzer: {k80: {1: b1.csv}}")
    asked = asked.replace("{cpu: {1: 1.65 s}, cpu: {1: 1.65 s}}", "{cpu: {1: 1.65 s}}")
    with pytest.raises(UnfoldError, match=message):
        planned(asked, tmp_path)


MEMORY = """import pathlib, numpy as np
from unfold_pipeline.estimator.slo import build_slo_checker
from unfold_pipeline.planner.diagnostics import measure_stage_times
from unfold_pipeline.problem.pipeline import Edge, HardwareOption, Pipeline, Stage, StageConfig, interpolate_latency
from unfold_pipeline.problem.sample import draw_sample
cpu = (HardwareOption("cpu", 0.05, interpolate_latency([(1, 0.004), (8, 0.012)])),)
stages = [Stage("s0", (), cpu)] + [Stage(f"s{i}", (Edge(i - 1, 0.9),), cpu) for i in range(1, 4)]
pipe = Pipeline(tuple(stages))
rng = np.random.default_rng(0)
checker = build_slo_checker(pipe, [draw_sample(pipe, np.cumsum(rng.exponential(1 / 300, 1_000_000)), rng)], 0.2)
for replicas in (2, 3, 4):
    plan = (StageConfig(0, 8, replicas),) * 4
    checker.tail_latency(plan)
    measure_stage_times(checker, plan)
# not ru_maxrss: a process that was forked starts from its parent's
peak = next(line for line in pathlib.Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(int(peak.split()[1]) / 2**20)
"""


@pytest.mark.e2e
def test_million_queries_need_less_than_a_gibibyte() -> None:
    """Estimating a million queries through four stages under three plans stays below 1 GiB."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True, timeout=250)
    assert float(done.stdout) < 1.0


def test_measured_activation_is_planned_with_and_drifts_no_plan(tmp_path: Path) -> None:
    """A stored activation time enters the plan and its replay; a check of a committed plan keeps that of the plan."""
    run = Run(RunDir(tmp_path / "run"), LocalEngine(1), base=tmp_path)
    first = plan(spec_of(GOOD), run)
    assert "activation_s" not in decision(first)
    store_activation({"first": 2.5, "second": 0.0}, run)
    second = plan(spec_of(GOOD), run)
    assert decision(second)["activation_s"] == {"first": 2.5}
    options: dict[str, Any] = {"replay": str(trace(tmp_path, 60.0))}
    replayed = plan(spec_of(GOOD), replace(run, options=options))
    assert "replicas serve 2.5 s after the order (measured)" in replayed.subtitle
    fresh = Run(RunDir(tmp_path / "other"), LocalEngine(1), base=tmp_path)
    saved = {"decision": decision(second)}
    elsewhere = plan(spec_of(GOOD), replace(fresh, options={**options, "plan": saved}))
    assert "replicas serve 2.5 s after the order (measured)" in elsewhere.subtitle
    for committed, here in ((second, fresh), (first, run)):
        baseline = {"decision": decision(committed)}
        assert plan(spec_of(GOOD), replace(here, options={"baseline_plan": baseline})).decision == committed.decision
    stated = plan(spec_of(GOOD + "tuner: {activation: 1 s}\n"), replace(run, options=options))
    assert "replicas serve 1 s after the order" in stated.subtitle
