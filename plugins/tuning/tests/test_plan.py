"""The verb ``plan`` on whole specs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from unfold_tuning.job.build import stages_of
from unfold_tuning.schema.models import TuningSpec
from unfold_tuning.verbs.plan import MOST_DRAWS, measured_for, plan, runs_of
from unfold_tuning.verbs.train import train
from unfoldkit.api import Report, Run, RunDir, UnfoldError, Verdict
from unfoldkit.engines.local import LocalEngine
from unfoldkit.spec.validate import validate
from unfoldkit.spec.yaml_reader import parse

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


def answer(folder: Path, deadline: str = "10 min", market: str = "on-demand", extra: str = "") -> Report:
    """Return the plan's report."""
    text = SPEC.replace("DEADLINE", deadline).replace("MARKET", market)
    spec = validate(TuningSpec, parse(text + extra, "t.yaml"))
    return plan(spec, Run(directory=RunDir(folder), engine=LocalEngine(1)))


def value(report: Report, name: str) -> float:
    """Return a metric that must have a value."""
    found = report.metrics[name].value
    assert found is not None
    return found


def test_a_plan_says_what_it_must(tmp_path: Path) -> None:
    """A feasible plan has cost, ratio, gap and probability, and a decision with one entry a stage."""
    report = answer(tmp_path)
    assert report.verdict is Verdict.YES
    assert value(report, "on_time_probability") >= 0.95
    assert value(report, "static_ratio") >= 1
    assert value(report, "gap_percent") >= 0
    assert report.metrics["planning_seconds"].timed
    assert report.decision is not None
    assert [row["trials"] for row in report.decision["stages"]] == [16, 5, 1]


def test_the_relaxation_that_is_offered_works(tmp_path: Path) -> None:
    """An impossible deadline is answered no, and the deadline that it offers, as it is written, is met."""
    report = answer(tmp_path, "2 min")
    assert report.verdict is Verdict.NO
    assert value(report, "fastest_seconds") > 120
    offered = dict(report.lines)["relaxation"].removeprefix("deadline ").partition(" for ")[0]
    again = answer(tmp_path, offered)
    assert again.verdict is Verdict.YES


def test_a_budget_alone_gives_the_earliest_end(tmp_path: Path) -> None:
    """More money never ends later, and the plan stays within its budget with the same promise."""
    soon = []
    for budget in (3, 5, 9):
        text = SPEC.replace("deadline: DEADLINE", f"budget: ${budget}").replace("MARKET", "on-demand")
        spec = validate(TuningSpec, parse(text, "t.yaml"))
        report = plan(spec, Run(directory=RunDir(tmp_path), engine=LocalEngine(1)))
        assert value(report, "cost_usd") <= budget
        soon.append(value(report, "promised_seconds"))
    assert soon == sorted(soon, reverse=True)


def test_a_budget_that_is_too_small_is_told(tmp_path: Path) -> None:
    """With a deadline, a budget is a cap: the answer is no, and says which budget or deadline would do."""
    report = answer(tmp_path, "7 min", extra="budget: $1\n")
    assert report.verdict is Verdict.NO
    assert "budget" in dict(report.lines)["relaxation"]


def test_either_market_is_the_better_of_both(tmp_path: Path) -> None:
    """Choosing between on demand and spot costs as much as the cheaper of the two alone."""
    costs = {market: value(answer(tmp_path, market=market), "cost_usd") for market in ("on-demand", "spot", "either")}
    assert costs["either"] == pytest.approx(min(costs["on-demand"], costs["spot"]))


@pytest.mark.parametrize("deadline", ["7 min", "20 min", "2 h"])
def test_of_several_types_the_best_is_taken(tmp_path: Path, deadline: str) -> None:
    """With a fast dear type and a slow cheap one the plan costs what the better of the two costs alone."""
    fast = "{type: fast, price: $12/h, accelerators: 4}"
    slow = "{type: slow, price: $4/h, accelerators: 4, speed: 0.4}"
    reports = {}
    for name, types in (("fast", fast), ("slow", slow), ("both", f"{fast}, {slow}")):
        text = SPEC.replace("{type: mine, price: $12/h, spot: $4/h, accelerators: 4}", types)
        text = text.replace("DEADLINE", deadline).replace("MARKET", "on-demand")
        spec = validate(TuningSpec, parse(text, "t.yaml"))
        reports[name] = plan(spec, Run(directory=RunDir(tmp_path), engine=LocalEngine(1)))
    alone = [value(reports[name], "cost_usd") for name in ("fast", "slow") if reports[name].verdict is Verdict.YES]
    assert value(reports["both"], "cost_usd") == pytest.approx(min(alone))
    assert "fast" in dict(reports["both"].lines)["options"]


def test_side_by_side_brackets_can_be_planned(tmp_path: Path) -> None:
    """Brackets that share the cluster end sooner than in sequence at the fastest."""
    ends = {}
    for way in ("sequence", "parallel"):
        search = f"search: {{algorithm: hyperband, max_iters: 9, eta: 3, brackets: {way}}}"
        text = SPEC.replace(SPEC.splitlines()[4], search).replace("DEADLINE", "1 s").replace("MARKET", "on-demand")
        report = plan(
            validate(TuningSpec, parse(text, "t.yaml")), Run(directory=RunDir(tmp_path), engine=LocalEngine(1))
        )
        ends[way] = value(report, "fastest_seconds")
    assert ends["parallel"] < ends["sequence"]


def test_planning_shows_how_far_it_is(tmp_path: Path) -> None:
    """Progress counts every stage on every machine, from none to all, before the rivals."""
    told: list[tuple[str, int, int]] = []
    spec = validate(TuningSpec, parse(SPEC.replace("DEADLINE", "10 min").replace("MARKET", "either"), "t.yaml"))
    plan(
        spec,
        Run(directory=RunDir(tmp_path), engine=LocalEngine(1), progress=lambda *step: told.append(step)),
    )
    assert told == [
        *(("curve", done, 6) for done in range(7)), ("rivals and bound", 0, 1), ("rivals and bound", 1, 1),
    ]  # fmt: skip


VMS = """InstanceType,vCPUs,MemoryGiB,AcceleratorName,AcceleratorCount,Price,SpotPrice,Region
a2-highgpu-4g,48,340,A100,4,14.69,4.41,us-central1
"""


def elsewhere(folder: Path, cloud: str) -> Report:
    """Return the plan's report for a type of another cloud."""
    (folder / "vms.csv").write_text(VMS)
    text = SPEC.replace("{type: mine, price: $12/h, spot: $4/h, accelerators: 4}", "a2-highgpu-4g")
    text = text.replace("cloud: {", f"cloud: {{region: us-central1, {cloud}, ").replace("DEADLINE", "20 min")
    spec = validate(TuningSpec, parse(text.replace("MARKET", "either"), "t.yaml"))
    return plan(spec, Run(directory=RunDir(folder), engine=LocalEngine(1), base=folder))


@pytest.mark.parametrize("provider", ["aws", "gcp", "azure"])
def test_prices_of_a_file_name_it(tmp_path: Path, provider: str) -> None:
    """A plan from a table of prices, of whichever cloud, says which file they are from."""
    told = dict(elsewhere(tmp_path, f"provider: {provider}, prices: vms.csv").lines)["prices"]
    assert told == "a2-highgpu-4g on-demand $14.69/h (vms.csv) · a2-highgpu-4g spot $4.41/h (vms.csv)"


def test_other_clouds_need_prices(tmp_path: Path) -> None:
    """Of a cloud that is not asked for its prices, a type without one is an error with a hint."""
    with pytest.raises(UnfoldError, match="no price of gcp is known here"):
        elsewhere(tmp_path, "provider: gcp")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("[{type: mine, price: $12/h, spot: $4/h, accelerators: 4}]", "[g5.13xlarge]"), 'did you mean "g5.12xlarge"'),
        (("accelerators: 4", "speed: 2"), r"cloud\.instances\[0\]: no such instance type"),
        (("profile:", "trainable: {function: a:b}\nprofilex:"), "unknown key"),
        (("MARKET", "spot}\n#"), "spot"),
    ],
)
def test_mistakes_are_told(tmp_path: Path, change: tuple[str, str], told: str) -> None:
    """A type, key or price that is not known is an error in words, before anything is planned."""
    text: Any = (
        SPEC.replace(*change).replace("spot: $4/h, ", "").replace("DEADLINE", "9 min").replace("MARKET", "either")
    )
    with pytest.raises(UnfoldError, match=told):
        plan(validate(TuningSpec, parse(text, "t.yaml")), Run(directory=RunDir(tmp_path), engine=LocalEngine(1)))


@pytest.mark.parametrize(
    ("algorithm", "told"),
    [
        ("grid", r"every point of a grid; .* \(write random, with as many trials as the grid has points\)"),
        ("asha", r"no barriers .* no stages to plan \(write successive-halving or hyperband\)"),
        ("BOHB", r"drawn at random .*\(write hyperband\)"),
        ("Successive_Halving", r'no algorithm "Successive_Halving" \(write successive-halving\)'),
        ("sha", r"\(write successive-halving\)"),
        ("hyperbnd", r'\(did you mean "hyperband"\?\)'),
    ],
)
def test_searches_of_other_tools_are_told_what_to_write(algorithm: str, told: str) -> None:
    """A search that cannot be planned is refused with the reason, one that is spelt otherwise with its name here."""
    text = SPEC.replace("algorithm: successive-halving", f"algorithm: {algorithm}").replace("DEADLINE", "9 min")
    with pytest.raises(UnfoldError, match=told):
        validate(TuningSpec, parse(text.replace("MARKET", "either"), "t.yaml"))


def test_a_search_of_stages_is_read(tmp_path: Path) -> None:
    """A custom search is planned as it is written, and a mistake in one of its stages is told at its key alone."""
    stages = "{algorithm: custom, stages: [{trials: 4, iters: 5}, {trials: 1, iters: 9}]}"
    search = "{algorithm: successive-halving, trials: 16, min_iters: 1, max_iters: 27, eta: 3}"
    text = SPEC.replace(search, stages).replace("DEADLINE", "9 min").replace("MARKET", "on-demand")
    report = plan(validate(TuningSpec, parse(text, "t.yaml")), Run(directory=RunDir(tmp_path), engine=LocalEngine(1)))
    assert [row["trials"] for row in (report.decision or {})["stages"]] == [4, 1]
    with pytest.raises(UnfoldError, match=r"search\.stages\[1\]\.iters"):
        validate(TuningSpec, parse(text.replace("iters: 9", "iters: 0"), "t.yaml"))
    with pytest.raises(UnfoldError, match=r"stages\[0\]: expected a mapping") as bad:
        validate(
            TuningSpec, parse(text.replace("[{trials: 4, iters: 5}, {trials: 1, iters: 9}]", "[[4, 5]]"), "t.yaml")
        )
    assert "entry" not in str(bad.value), "a list of one stage is long enough, whatever is wrong in it"


def test_no_plan_of_the_picture_lies_below_the_exact_curve(tmp_path: Path) -> None:
    """At every deadline that a rival's plan can promise, the exact curve costs no more; this plan lies on it."""
    report = answer(tmp_path)
    drawn = {series.name: list(zip(series.x, series.y, strict=True)) for series in report.figures[0].series}
    exact = drawn["exact"]
    for name in ("best static", "greedy (RubberBand)"):
        assert drawn[name]
        assert all(min(y for x, y in exact if x <= at + 1e-6) <= cost + 1e-9 for at, cost in drawn[name]), name
    ((deadline, cost),) = drawn["this plan, at its deadline"]
    assert min(y for x, y in exact if x <= deadline) == pytest.approx(cost)


def jobs(provider: str) -> TuningSpec:
    """Return the spec with a function to train, on a cloud."""
    text = SPEC.replace("DEADLINE", "10 min").replace("market: MARKET", f"provider: {provider}")
    mine = 'trainable: {function: "sleeper:train", space: {ceiling: {uniform: [0, 1]}}}\n'
    return validate(TuningSpec, parse(text + mine, "t.yaml"))


def test_other_clouds_are_planned_for_only(tmp_path: Path) -> None:
    """Training on a cloud whose instances nothing here starts is refused before anything runs."""
    with pytest.raises(UnfoldError, match="nothing here starts instances of gcp"):
        train(jobs("gcp"), Run(directory=RunDir(tmp_path), engine=LocalEngine(2), allow_code=True))


def test_code_needs_leave(tmp_path: Path) -> None:
    """A spec that names code is refused without --allow-code."""
    with pytest.raises(UnfoldError, match="names code"):
        train(jobs("local"), Run(directory=RunDir(tmp_path), engine=LocalEngine(2)))


def test_a_profile_of_another_trainable_is_not_planned_with(tmp_path: Path) -> None:
    """What was measured counts for the same trainable and nodes only; a timeout changes no times."""
    trainable = "trainable: {estimator: xgboost, data: digits}\n"
    text = SPEC.replace("DEADLINE", "10 min").replace("MARKET", "on-demand") + trainable
    spec = validate(TuningSpec, parse(text, "t.yaml"))
    run = Run(directory=RunDir(tmp_path), engine=LocalEngine(1))
    given = {"iteration": {"mean": "20 s"}, "speedup": {"1": 1.0, "2": 1.9, "4": 3.4}}
    run.directory.write("profile.json", json.dumps(given).encode(), made_from=measured_for(spec))
    bare = text.replace("profile:", "#")
    same = validate(TuningSpec, parse(bare.replace("digits}", "digits, timeout: 5 min}"), "t.yaml"))
    assert plan(same, run).verdict is Verdict.YES
    for old, new in (("xgboost", "mlp"), ("accelerators: 4", "accelerators: 2")):
        other = validate(TuningSpec, parse(bare.replace(old, new), "t.yaml"))
        with pytest.raises(UnfoldError, match="what was measured here was another trainable"):
            plan(other, run)


@pytest.mark.parametrize(("trials", "runs"), [(16, 10_000), (2_000, 10_000), (5_000, 4_000), (20_000, 1_000)])
def test_very_many_trials_are_simulated_in_fewer_runs(trials: int, runs: int) -> None:
    """The largest stage of all simulated runs stays within what fits into memory; at least 1,000 runs are simulated."""
    text = SPEC.replace("trials: 16", f"trials: {trials}").replace("samples: 1000", "samples: 10000")
    spec = validate(TuningSpec, parse(text.replace("DEADLINE", "9 h").replace("MARKET", "either"), "t.yaml"))
    assert runs_of(spec, stages_of(spec.search)) == runs
    assert trials * runs <= MOST_DRAWS


def test_fewer_runs_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan from fewer simulated runs than were asked for says so."""
    monkeypatch.setattr("unfold_tuning.verbs.plan.MOST_DRAWS", 16 * 400)
    monkeypatch.setattr("unfold_tuning.verbs.plan.LEAST_RUNS", 100)
    told = dict(answer(tmp_path).lines)["samples"]
    assert told == "400 simulated runs, as a stage has so many trials"
