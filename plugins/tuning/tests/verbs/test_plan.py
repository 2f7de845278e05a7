"""The verb ``plan`` on whole specs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tuning_runs import load_spec

from unfold_tuning.job.build import (
    MAX_TRIAL_DRAWS,
    build_problem,
    build_stages,
    fingerprint_profile_inputs,
    limit_samples,
)
from unfold_tuning.report.sentences import describe_relaxed_budget, describe_smallest_budget
from unfold_tuning.verbs.plan import plan
from unfoldkit.api import Figure, Report, Run, RunDir, UnfoldError, Verdict
from unfoldkit.engines.local import LocalEngine

SPEC = """
version: 1
kind: tuning
name: t
search: {algorithm: successive-halving, trials: 16, min_iters: 1, max_iters: 27, eta: 3}
deadline: DEADLINE
cloud: {instances: [{type: mine, price: $12/h, spot: $4/h, accelerators: 4}], limit: 16, market: MARKET}
profile: {iteration: {mean: 20 s, std: 4 s}, speedup: {1: 1, 2: 1.87, 4: 3.42}}
samples: 1000
"""


def plan_text(folder: Path, text: str) -> Report:
    """Plan a spec."""
    return plan(load_spec(text), Run(directory=RunDir(folder), engine=LocalEngine(1)))


def plan_spec(folder: Path, deadline: str = "10 min", market: str = "on-demand", extra: str = "") -> Report:
    """Plan the spec above."""
    return plan_text(folder, SPEC.replace("DEADLINE", deadline).replace("MARKET", market) + extra)


def write_budget_spec(budget_usd: float) -> str:
    """Write the spec above with a budget instead of a deadline."""
    return SPEC.replace("deadline: DEADLINE", f"budget: ${budget_usd:.4f}").replace("MARKET", "on-demand")


def read_metric(report: Report, name: str) -> float:
    """Read a metric that must have a value."""
    value = report.metrics[name].value
    assert value is not None
    return value


def test_a_plan_has_its_metrics_and_decision(tmp_path: Path) -> None:
    """A feasible plan has cost, ratio, gap and probability, and a decision with one entry per stage."""
    report = plan_spec(tmp_path)
    assert report.verdict is Verdict.YES
    assert read_metric(report, "on_time_probability") >= 0.95
    assert read_metric(report, "static_ratio") >= 1
    assert read_metric(report, "gap_percent") >= 0
    assert report.metrics["planning_seconds"].timed
    assert report.decision is not None
    assert [row["trials"] for row in report.decision["stages"]] == [16, 5, 1]


@pytest.mark.parametrize(
    ("cloud", "trainable", "command"),
    [
        ("provider: local", "", "unfold plan SPEC --out plan.yaml"),
        ("provider: local", "{estimator: sgd, data: digits}", "unfold train SPEC"),
        ("provider: local", "{function: 'mine:train'}", "unfold train SPEC --allow-code"),
        (
            "launch: {image: ami-0abc}",
            "{function: 'mine:train'}",
            "unfold train SPEC --allow-code --engine ray --ray-address HOST:6379",
        ),
        ("provider: aws", "{estimator: sgd, data: digits}", "unfold plan SPEC --out plan.yaml"),
        ("provider: gcp", "{estimator: sgd, data: digits}", "unfold plan SPEC --out plan.yaml"),
    ],
)
def test_the_next_command_carries_the_plan_out(tmp_path: Path, cloud: str, trainable: str, command: str) -> None:
    """Code runs only where it is allowed, instances of AWS need a Ray head, and others are not started."""
    spec = SPEC.replace("DEADLINE", "10 min").replace("MARKET", "on-demand").replace("cloud: {", f"cloud: {{{cloud}, ")
    spec += f"trainable: {trainable}" if trainable else ""
    run = Run(directory=RunDir(tmp_path), engine=LocalEngine(1), allow_code=True)
    assert plan(load_spec(spec), run).next == command


def test_the_minimal_relaxation_is_feasible(tmp_path: Path) -> None:
    """An impossible deadline is infeasible, and the relaxed deadline of the report, as it is written, is met."""
    report = plan_spec(tmp_path, "2 min")
    assert report.verdict is Verdict.NO
    assert read_metric(report, "fastest_seconds") > 120
    relaxed = dict(report.lines)["minimal relaxation"].removeprefix("deadline ").partition(" for ")[0]
    assert plan_spec(tmp_path, relaxed).verdict is Verdict.YES


def test_a_missed_deadline_names_the_search_without_barriers(tmp_path: Path) -> None:
    """Where no plan is on time, the report names a cluster on which ASHA would be, or that it would be late too."""
    report = plan_spec(tmp_path, "2 min")
    assert dict(report.lines)["without barriers"].startswith("ASHA would be late on every cluster")


def test_idle_instances_lower_the_bill(tmp_path: Path) -> None:
    """If trials differ, the report states what a plan costs without its idle instances."""
    assert "idle instances" not in dict(plan_spec(tmp_path / "alike", "20 min").lines)
    text = SPEC.replace("DEADLINE", "8 min").replace("MARKET", "on-demand").replace("std: 4 s", "std: 18 s")
    report = plan_text(tmp_path / "different", text)
    before, _, cost = dict(report.lines)["idle instances"].rpartition("$")
    assert before == "released before the end of a stage if the next one needs fewer; the cost is then "
    assert 0.5 < float(cost) / read_metric(report, "cost_usd") < 0.995


def test_a_free_machine_is_planned(tmp_path: Path) -> None:
    """A machine of one's own may cost nothing: the plan then has the ratio 1 to every baseline."""
    report = plan_text(
        tmp_path, SPEC.replace("DEADLINE", "10 min").replace("$12/h", "$0/h").replace("MARKET", "on-demand")
    )
    assert report.verdict is Verdict.YES
    assert (read_metric(report, "cost_usd"), read_metric(report, "static_ratio")) == (0, 1)


def test_short_deadlines_are_not_written_as_zero(tmp_path: Path) -> None:
    """A deadline of a millisecond is written as one."""
    report = plan_spec(tmp_path, "1 ms")
    assert "the deadline of 1.0 ms" in report.headline


def test_the_lower_bound_has_the_minimum_charge_of_an_instance(tmp_path: Path) -> None:
    """A single instance that is billed for a whole hour cannot be undercut."""
    text = SPEC.replace("limit: 16", "limit: 16, billing: {increment: 1 h, minimum: 1 h}").replace(
        "MARKET", "on-demand"
    )
    report = plan_text(tmp_path, text.replace("DEADLINE", "1 h"))
    assert read_metric(report, "cost_usd") == 12
    assert read_metric(report, "gap_percent") == 0
    assert "optimality" not in dict(report.lines)


def test_a_budget_alone_gives_the_earliest_end(tmp_path: Path) -> None:
    """More money never ends later, and the plan stays within its budget with the same confidence."""
    ends = []
    for budget in (3, 5, 9):
        report = plan_text(tmp_path, write_budget_spec(budget))
        assert read_metric(report, "cost_usd") <= budget
        ends.append(read_metric(report, "promised_seconds"))
    assert ends == sorted(ends, reverse=True)


def test_a_budget_between_mean_and_promise_misses_the_promise(tmp_path: Path) -> None:
    """A plan that costs less than the budget on average, but too often more, misses the probability, not the cost."""
    mean_usd = read_metric(plan_text(tmp_path, write_budget_spec(0.5)), "cost_usd")
    report = plan_text(tmp_path, write_budget_spec(mean_usd + 0.02))
    assert report.verdict is Verdict.NO
    assert {name: metric.ok for name, metric in report.metrics.items() if metric.target} == {
        "cost_usd": True,
        "within_budget_probability": False,
    }


def test_a_budget_that_is_too_small_has_a_relaxation(tmp_path: Path) -> None:
    """With a deadline, a budget is a cap: the plan is infeasible, and the report names a budget that suffices."""
    report = plan_spec(tmp_path, "7 min", extra="budget: $1\n")
    assert report.verdict is Verdict.NO
    relaxed = dict(report.lines)["minimal relaxation"].removeprefix("budget ").partition(" · ")[0]
    assert plan_spec(tmp_path, "7 min", extra=f"budget: {relaxed}\n").verdict is Verdict.YES
    assert describe_relaxed_budget(0.016721, None, 0.01) == "budget $0.0168"
    assert describe_smallest_budget(1.231, 60.0).startswith("budget $1.24")


@pytest.mark.e2e
def test_either_market_costs_the_cheaper_of_both(tmp_path: Path) -> None:
    """A plan on either market costs as much as the cheaper of the two alone."""
    costs = {
        market: read_metric(plan_spec(tmp_path, market=market), "cost_usd")
        for market in ("on-demand", "spot", "either")
    }
    assert costs["either"] == pytest.approx(min(costs["on-demand"], costs["spot"]))


@pytest.mark.parametrize("is_available", [False, True])
def test_a_thrifty_plan_states_where_waiting_for_spot_saves_nothing(tmp_path: Path, *, is_available: bool) -> None:
    """In a market without capacity, the plan on demand from the start is not called late, and no bound is claimed."""
    (tmp_path / "log.csv").write_text("us-east-1a\n" + f"{int(is_available)}\n" * 900)
    log = f"availability: {{path: {tmp_path}/log.csv, zones: [us-east-1a], tick: 5 min}}, zones: [us-east-1a]"
    text = SPEC.replace("DEADLINE", "1 h").replace("market: MARKET", f"market: thrifty, {log}")
    report = plan_text(tmp_path, text)
    lines = dict(report.lines)
    assert report.verdict is Verdict.YES
    assert not {"next cheaper plan", "lower bound"} & set(lines)
    assert report.metrics["gap_percent"].value is None
    assert ("on demand" in lines) is not is_available


@pytest.mark.parametrize("deadline", ["7 min", "20 min", "2 h"])
def test_the_best_of_several_types_is_selected(tmp_path: Path, deadline: str) -> None:
    """With a fast expensive type and a slow cheap one, the plan costs what the better of the two costs alone."""
    fast = "{type: fast, price: $12/h, accelerators: 4}"
    slow = "{type: slow, price: $4/h, accelerators: 4, speed: 0.4}"
    reports = {}
    for name, types in (("fast", fast), ("slow", slow), ("both", f"{fast}, {slow}")):
        text = SPEC.replace("{type: mine, price: $12/h, spot: $4/h, accelerators: 4}", types)
        text = text.replace("DEADLINE", deadline).replace("MARKET", "on-demand")
        reports[name] = plan_text(tmp_path, text)
    single = [
        read_metric(reports[name], "cost_usd") for name in ("fast", "slow") if reports[name].verdict is Verdict.YES
    ]
    assert read_metric(reports["both"], "cost_usd") == pytest.approx(min(single))
    assert "fast" in dict(reports["both"].lines)["instance types"]


def test_parallel_brackets_can_be_planned(tmp_path: Path) -> None:
    """At the fastest, brackets that share the cluster end earlier than in sequence."""
    ends = {}
    for brackets in ("sequence", "parallel"):
        search = f"search: {{algorithm: hyperband, max_iters: 9, eta: 3, brackets: {brackets}}}"
        text = SPEC.replace(SPEC.splitlines()[4], search).replace("DEADLINE", "1 s").replace("MARKET", "on-demand")
        ends[brackets] = read_metric(plan_text(tmp_path, text), "fastest_seconds")
    assert ends["parallel"] < ends["sequence"]


def test_planning_reports_progress(tmp_path: Path) -> None:
    """Progress counts every stage on every machine, from none to all, before the baselines."""
    steps: list[tuple[str, int, int]] = []
    spec = load_spec(SPEC.replace("DEADLINE", "10 min").replace("MARKET", "either"))
    run = Run(directory=RunDir(tmp_path), engine=LocalEngine(1), progress=lambda *step: steps.append(step))
    plan(spec, run)
    expected = [("frontier", done, 6) for done in range(7)]
    assert steps == [*expected, ("baselines and bound", 0, 1), ("baselines and bound", 1, 1)]


VMS = """InstanceType,vCPUs,MemoryGiB,AcceleratorName,AcceleratorCount,Price,SpotPrice,Region
a2-highgpu-4g,48,340,A100,4,14.69,4.41,us-central1
"""


def plan_on_cloud(folder: Path, cloud: str) -> Report:
    """Plan with a type of another cloud."""
    (folder / "vms.csv").write_text(VMS)
    text = SPEC.replace("{type: mine, price: $12/h, spot: $4/h, accelerators: 4}", "a2-highgpu-4g")
    text = text.replace("cloud: {", f"cloud: {{region: us-central1, {cloud}, ").replace("DEADLINE", "20 min")
    spec = load_spec(text.replace("MARKET", "either"))
    return plan(spec, Run(directory=RunDir(folder), engine=LocalEngine(1), base=folder))


@pytest.mark.parametrize("provider", ["aws", "gcp", "azure"])
def test_prices_of_a_file_name_the_file(tmp_path: Path, provider: str) -> None:
    """A plan from a table of prices, of whichever cloud, names the file."""
    prices = dict(plan_on_cloud(tmp_path, f"provider: {provider}, prices: vms.csv").lines)["prices"]
    assert prices == "a2-highgpu-4g on-demand $14.69/h (vms.csv) · a2-highgpu-4g spot $4.41/h (vms.csv)"


def test_other_clouds_need_prices(tmp_path: Path) -> None:
    """A type without a price, of a cloud with no prices in the catalog, is an error with a hint."""
    with pytest.raises(UnfoldError, match="the catalog has no prices of gcp"):
        plan_on_cloud(tmp_path, "provider: gcp")


def test_a_priced_type_without_accelerators_names_what_is_missing(tmp_path: Path) -> None:
    """What a price list leaves out is asked for, rather than called an unknown type of the AWS catalog."""
    text = SPEC.replace("accelerators: 4", "speed: 2").replace("cloud: {", "cloud: {provider: gcp, ")
    with pytest.raises(UnfoldError, match=r"number of accelerators of mine .*\(write {type: mine, accelerators: 1}\)"):
        plan_text(tmp_path, text.replace("DEADLINE", "9 min").replace("MARKET", "on-demand"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("[{type: mine, price: $12/h, spot: $4/h, accelerators: 4}]", "[g5.13xlarge]"), 'did you mean "g5.12xlarge"'),
        (("accelerators: 4", "speed: 2"), r"cloud\.instances\[0\]: no such instance type"),
        (("profile:", "trainable: {function: a:b}\nprofilex:"), "unknown key"),
        (("MARKET", "spot}\n#"), "spot"),
    ],
)
def test_unknown_types_keys_and_prices_are_errors(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    """An unknown type, key or price is an error before anything is planned."""
    text: Any = (
        SPEC.replace(*change).replace("spot: $4/h, ", "").replace("DEADLINE", "9 min").replace("MARKET", "either")
    )
    with pytest.raises(UnfoldError, match=message):
        plan_text(tmp_path, text)


def test_a_custom_search_is_planned(tmp_path: Path) -> None:
    """A custom search is planned as it is written, and an error in one of its stages is reported at its key alone."""
    stages = "{algorithm: custom, stages: [{trials: 4, iters: 5}, {trials: 1, iters: 9}]}"
    search = "{algorithm: successive-halving, trials: 16, min_iters: 1, max_iters: 27, eta: 3}"
    text = SPEC.replace(search, stages).replace("DEADLINE", "9 min").replace("MARKET", "on-demand")
    report = plan_text(tmp_path, text)
    assert [row["trials"] for row in (report.decision or {})["stages"]] == [4, 1]
    with pytest.raises(UnfoldError, match=r"search\.stages\[1\]\.iters"):
        load_spec(text.replace("iters: 9", "iters: 0"))
    with pytest.raises(UnfoldError, match=r"stages\[0\]: expected a mapping") as caught:
        load_spec(text.replace("[{trials: 4, iters: 5}, {trials: 1, iters: 9}]", "[[4, 5]]"))
    assert "entry" not in str(caught.value), "a list of one stage is long enough, whatever is wrong in it"


def test_no_baseline_of_the_figure_lies_below_the_frontier(tmp_path: Path) -> None:
    """At every deadline that a baseline guarantees, the frontier costs no more; this plan lies on it."""
    report = plan_spec(tmp_path)
    frontier = next(figure for figure in report.figures if isinstance(figure, Figure))
    curves = {series.name: list(zip(series.x, series.y, strict=True)) for series in frontier.series}
    exact = curves["cheapest plan found"]
    for name in ("best static", "greedy (RubberBand)"):
        assert curves[name]
        assert all(min(y for x, y in exact if x <= at + 1e-6) <= cost + 1e-9 for at, cost in curves[name]), name
    ((deadline, cost),) = curves["this plan, at its deadline"]
    assert min(y for x, y in exact if x <= deadline) == pytest.approx(cost)


def test_a_profile_of_another_trainable_is_refused(tmp_path: Path) -> None:
    """A measured profile is valid for the same trainable and nodes only; a timeout changes no times."""
    trainable = "trainable: {estimator: xgboost, data: digits}\n"
    text = SPEC.replace("DEADLINE", "10 min").replace("MARKET", "on-demand") + trainable
    run = Run(directory=RunDir(tmp_path), engine=LocalEngine(1))
    measured = {"iteration": {"mean": "20 s"}, "speedup": {"1": 1.0, "2": 1.9, "4": 3.4}}
    run.directory.write(
        "profile.json", json.dumps(measured).encode(), made_from=fingerprint_profile_inputs(load_spec(text))
    )
    bare = text.replace("profile:", "#")
    same = load_spec(bare.replace("digits}", "digits, timeout: 5 min}"))
    assert plan(same, run).verdict is Verdict.YES
    for old, new in (("xgboost", "mlp"), ("accelerators: 4", "accelerators: 2")):
        with pytest.raises(UnfoldError, match="the profile measured here is of another trainable"):
            plan(load_spec(bare.replace(old, new)), run)


@pytest.mark.parametrize(
    "stored", [{}, {"recorded": {"path": "a.csv"}}, {"iteration": {"mean": "20 s"}, "speedup": {"1": 3.0}}]
)
def test_a_measured_profile_that_contradicts_itself_is_named(tmp_path: Path, stored: object) -> None:
    """A stored profile keeps the rules of one in a spec; another is named, with exit code 2."""
    text = SPEC.replace("DEADLINE", "10 min").replace("MARKET", "on-demand").replace("profile:", "#")
    spec = load_spec(text + "trainable: {estimator: xgboost, data: digits}\n")
    run = Run(directory=RunDir(tmp_path), engine=LocalEngine(1))
    run.directory.write("profile.json", json.dumps(stored).encode(), made_from=fingerprint_profile_inputs(spec))
    with pytest.raises(UnfoldError, match=r"profile\.json: not a profile") as error:
        plan(spec, run)
    assert error.value.code == 2


def test_earlier_jobs_are_scaled_by_the_measured_speed_up(tmp_path: Path) -> None:
    """A record on two accelerators counts with the speed-up of the profile that the run folder holds."""
    record = tmp_path / "earlier.csv"
    rows = [f"{trial},{end},1.0" for trial in "ab" for end in range(1, 9)]
    record.write_text("\n".join(["trial,epoch,seconds", *rows]))
    history = f"history: [{{path: {record}, trial: trial, iteration: epoch, seconds: seconds, accelerators: 2}}]\n"
    text = SPEC.replace("DEADLINE", "10 min").replace("MARKET", "on-demand") + history
    text += "trainable: {estimator: xgboost, data: digits}\n"
    run = Run(directory=RunDir(tmp_path / "run"), engine=LocalEngine(1))
    measured = {"iteration": {"mean": "20 s"}, "speedup": {"1": 1.0, "2": 1.9, "4": 3.4}}
    trials = [{"ends": [4, 12], "seconds": [20.0, 20.0]}] * 2
    made_from = fingerprint_profile_inputs(load_spec(text))
    run.directory.write("profile.json", json.dumps(measured | {"trials": trials}).encode(), made_from=made_from)
    problem = build_problem(load_spec(text.replace("profile:", "#")), run)
    assert problem.paces is not None
    assert problem.paces.history[0].seconds[0].tolist() == pytest.approx([1.9] * 6)


@pytest.mark.parametrize(("trials", "runs"), [(16, 10_000), (2_000, 10_000), (5_000, 4_000), (20_000, 1_000)])
def test_many_trials_are_simulated_in_fewer_runs(trials: int, runs: int) -> None:
    """The draws of the largest stage stay within what fits into memory; at least 1,000 runs are simulated."""
    text = SPEC.replace("trials: 16", f"trials: {trials}").replace("samples: 1000", "samples: 10000")
    spec = load_spec(text.replace("DEADLINE", "9 h").replace("MARKET", "either"))
    assert limit_samples(spec.samples, build_stages(spec.search)) == runs
    assert trials * runs <= MAX_TRIAL_DRAWS


def test_fewer_simulated_runs_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan from fewer simulated runs than requested reports their number."""
    monkeypatch.setattr("unfold_tuning.job.build.MAX_TRIAL_DRAWS", 16 * 400)
    monkeypatch.setattr("unfold_tuning.job.build.MIN_SAMPLES", 100)
    samples = dict(plan_spec(tmp_path).lines)["samples"]
    assert samples == "400 simulated runs, because the largest stage has many trials"


def test_the_speed_up_within_an_instance_does_not_stand_for_one_across(tmp_path: Path) -> None:
    """A deadline that only trials over two instances meet is refused until their speed-up is written."""
    text = (
        SPEC.replace("MARKET", "on-demand")
        .replace("4: 3.42", "4: 3.42, 8: 6.8")
        .replace("max_iters: 27", "max_iters: 81")
    )
    late = plan_text(tmp_path, text.replace("DEADLINE", "30 min"))
    assert dict(late.lines)["not considered"].startswith("trials of 8 accelerators over several mine")
    hurried = text.replace("DEADLINE", "11 min")
    with pytest.raises(UnfoldError, match=r"8 accelerators over several instances, at an unknown speed-up"):
        plan_text(tmp_path, hurried)
    slow, quick = (hurried.replace("8: 6.8}", f"8: 6.8}}, across: {{8: {gain}}}") for gain in (1.1, 6.8))
    assert (plan_text(tmp_path, slow).verdict, plan_text(tmp_path, quick).verdict) == (Verdict.NO, Verdict.YES)
