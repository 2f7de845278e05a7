"""Laws of whole cascades over time: specs, splits, gates on trajectories, certificate, reports."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from plugins.cascade.tests.runs import small
from unfold_cascade.planner import certificate
from unfold_cascade.schema.cascade import CascadeSpec
from unfold_cascade.schema.temporal import Moves
from unfold_cascade.temporal.data import warning_metrics
from unfold_cascade.temporal.data.features import Purchase
from unfold_cascade.temporal.data.table import entity_of_row, starts_of
from unfold_cascade.temporal.evaluation.evaluate import at_rate, outcome
from unfold_cascade.temporal.models.study import study
from unfold_cascade.temporal.models.training import rows_in_stage
from unfold_cascade.temporal.search.candidates import Yard, buying, candidates, field, learnt, neighbours, owning
from unfold_cascade.temporal.search.compose import SLACK, adequate, parallel
from unfold_cascade.temporal.search.planner import Searched, judge, searched, swapped
from unfold_cascade.temporal.search.select import patient_means, sequence
from unfold_cascade.temporal.simulation.policy import Step
from unfold_cascade.temporal.simulation.trajectories import Zoo
from unfold_cascade.verbs import plan, profile, train
from unfoldkit.api import Report, Run, RunDir, UnfoldError, Verdict
from unfoldkit.engines.local import LocalEngine
from unfoldkit.report import to_data, without_times
from unfoldkit.spec.validate import validate
from unfoldkit.spec.yaml_reader import parse, read_document

ROOT = Path(__file__).parents[3]
CONFIGS = ROOT / "configs" / "cascade"
SHARED = Path(os.environ.get("UNFOLD_SHARED", ROOT.parent / "shared"))


def _spec(name: str, **changes: Any) -> CascadeSpec:
    spec: CascadeSpec = validate(CascadeSpec, read_document(str(CONFIGS / name)))
    return spec.model_copy(update=changes)


def _run(folder: Path, seed: int = 0) -> Run:
    return Run(directory=RunDir(folder), engine=LocalEngine(1), base=CONFIGS, seed=seed)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Report]:
    """Return a run of the made-up wards, trained once."""
    run = _run(tmp_path_factory.mktemp("wards"))
    return run, train(_spec("wards.yaml"), run)


@pytest.fixture(scope="module")
def found(trained: tuple[Run, Report]) -> Searched:
    """Return what the search found on the made-up wards."""
    return searched(_spec("wards.yaml"), trained[0])


WARDS = (CONFIGS / "wards.yaml").read_text()


BEDSIDE = "features: [bedside, trends], params: {n_estimators: 15"
MISTAKES = (
    ("{rule: sirs, ahead: 6 h}", "{rule: sirs, column: HR}", "stages[0].target: give either a column or a rule"),
    ("{column: Sepsis}", "{groups: {a: [0], b: [1]}}", "stages[1].target.groups: goes with cases without time only"),
    (BEDSIDE, BEDSIDE.replace("bedside", "bedsite"), 'no such feature group: "bedsite"'),
    ("baseline: {estimator: xgboost,", "baseline: {candidates: [{estimator: svc}],", "which monolithic model?"),
    ("name: glance", "name: full", 'the name "full" is taken'),
)


@pytest.mark.parametrize(("old", "new", "told"), MISTAKES)
def test_what_does_not_fit_over_time_is_told(old: str, new: str, told: str) -> None:
    """Keys of cases without time, missing keys and unknown names are refused, each at its place."""
    assert old in WARDS
    with pytest.raises(UnfoldError) as caught:
        validate(CascadeSpec, parse(WARDS.replace(old, new), "wards.yaml"))
    assert any(told in str(item) for item in caught.value.diagnostics), caught.value.diagnostics


def test_keys_of_time_are_refused_without_time() -> None:
    """In a spec of cases without time, every key that speaks of time is told, with its line."""
    text = (CONFIGS / "digits.yaml").read_text().replace("goal:", "moves: {confirm: 2}\nalerts: {per_100h: 5}\ngoal:")
    text = text.replace("  - name: coarse ", "  - parallel: true\n    fresh: 6 h\n    name: coarse ")
    with pytest.raises(UnfoldError) as caught:
        validate(CascadeSpec, parse(text, "digits.yaml"))
    told = [item.key for item in caught.value.diagnostics]
    assert told == ["stages[0].parallel", "stages[0].fresh", "moves", "alerts"]


def test_a_budget_is_a_case_or_a_case_hour() -> None:
    """Both forms of a budget are read; a bare number is not."""
    for text in ("3.0 per case", "3.0 per case-hour"):
        spec = validate(CascadeSpec, parse(WARDS.replace("max_loss: 20%", f"budget: {text}"), "w.yaml"))
        assert spec.goal.budget == 3.0


def test_no_entity_stands_in_two_parts(found: Searched) -> None:
    """Train, calibrate and test share no entity, together hold every hour, and folds keep entities whole."""
    whole = found.study
    parts = (whole.train, whole.calibrate, whole.test)
    sizes = [len(part.clock.starts) - 1 for part in parts]
    assert sum(sizes) == 160
    assert sum(len(part.highest) for part in parts) == 5886
    firsts = [tuple(np.round(part.zoo.p[:, start], 7)) for part in parts for start in part.clock.starts[:-1]]
    assert len(set(firsts)) == len(firsts)


def test_predictions_of_tuning_patients_are_out_of_fold(tmp_path: Path) -> None:
    """A label that only the number of the patient explains is not predicted on the tuning patients; a leak gives 1."""
    rng = np.random.default_rng(0)
    rows = ["patient,hour,id,ill"]
    for patient in range(200):
        ill = int(rng.random() < 0.5)
        rows += [f"p{patient:03d},{hour},{patient},{int(ill and hour >= 3)}" for hour in range(8)]
    (tmp_path / "t.csv").write_text("\n".join(rows) + "\n")
    text = """
version: 1
kind: cascade
name: leak
data: {source: long, path: t.csv, entity: patient, time: hour}
features: {all: {columns: [id]}}
stages:
  - {name: ill, target: {column: ill}, models: [{name: tree, estimator: decision-tree}]}
baseline: {estimator: decision-tree}
gates: {folds: 4}
goal: {max_loss: 10%}
"""
    spec = validate(CascadeSpec, parse(text, "leak.yaml"))
    run = Run(directory=RunDir(tmp_path / "run"), engine=LocalEngine(1), base=tmp_path)
    part = study(spec, run).train
    area = warning_metrics.ranking(part.zoo.p[0].astype(np.float64), part.label).auroc()
    assert area < 0.65


def test_alarms_meet_their_rate_and_no_lower_cut_does(found: Searched) -> None:
    """The final cut warns at most the rate on the part where it was set, with and without confirmation."""
    part, flags = found.study.train, np.array([True])
    for moves in (Moves(), Moves(confirm=2), Moves(confirm=3, entry="sticky"), Moves(alarm="latched")):
        for step in (Step((2,), (), 0.5), Step((2, 4), ((0.2, 0.9),), 0.5)):
            policy = at_rate(part, (step,), flags, moves, 10.0)
            if policy is None:
                continue
            cut = policy[-1].cut
            rates = [
                warning_metrics.alerts_per_100h(
                    outcome(part, (step.with_cut(c),), flags, moves, found.study.rates).alert, part.events
                )
                for c in (cut, cut * 0.7)
            ]
            assert rates[0] <= 10.0
            assert rates[1] >= rates[0]


def test_only_the_last_model_of_an_alarm_warns(found: Searched) -> None:
    """A cheap model of the last stage rules an hour out or asks on; none but the last one of its chain says yes."""
    chains = [one.step for one in found.front.watch if len(one.step.chain) > 1]
    assert chains
    assert all(hi == np.inf for step in chains for _, hi in step.spans)


def test_alarms_for_the_paper_s_monolith_may_be_worse_by_chance_only(found: Searched) -> None:
    """Every alarm of the front keeps what was asked; those of the loose front keep it within the slack."""
    base, whole = found.known.latched_quality, found.front
    kept = {one.step for one in adequate(whole.watch, base, found.alerts)}
    near = {one.step for one in adequate(whole.watch, base, SLACK)}
    if whole.kept:
        assert {point.policy[-1] for point in whole.points} <= kept
    assert {point.policy[-1] for point in whole.loose} <= (near or {point.policy[-1] for point in whole.points})


def test_the_front_is_what_its_policies_do(found: Searched) -> None:
    """Loss and cost of every point of the front are those of its simulated trajectories, and no point beats another."""
    part, flags = found.study.train, parallel(found.study)
    points = found.front.points
    for point in points:
        done = outcome(part, point.policy, flags, found.moves, found.study.rates)
        assert point.loss == pytest.approx(float((done.answer != part.highest).mean()))
        assert point.bill == pytest.approx(done.bill)
    assert [point.cost for point in points] == sorted(point.cost for point in points)
    assert all(b.loss < a.loss for a, b in itertools.pairwise(points))


def test_swapping_the_parts_swaps_the_patients_judged(found: Searched, trained: tuple[Run, Report]) -> None:
    """With certifying and test patients exchanged the front stays and other patients are judged."""
    other = swapped(found)
    assert other.front is found.front
    assert other.study.test is found.study.calibrate
    assert judge(other, trained[0]).latched.found.bill != judge(found, trained[0]).latched.found.bill


def test_plan_fits_nothing_again(trained: tuple[Run, Report]) -> None:
    """After train, plan with another goal reads what the run holds and writes no model."""
    run, _ = trained
    before = {name: entry for name, entry in run.directory.files().items() if name.startswith(("models", "logs"))}
    spec = _spec("wards.yaml")
    plan(spec.model_copy(update={"goal": spec.goal.model_copy(update={"max_loss": 0.3})}), run)
    after = {name: entry for name, entry in run.directory.files().items() if name.startswith(("models", "logs"))}
    assert before == after
    assert profile(spec, run).metrics["models"].value == 6


def test_equal_seeds_give_equal_reports(trained: tuple[Run, Report], tmp_path: Path) -> None:
    """A second run from nothing gives the same report, measured times aside."""
    again = train(_spec("wards.yaml"), _run(tmp_path / "again"))
    texts = [json.dumps(to_data(without_times(report))) for report in (trained[1], again)]
    assert texts[0].replace(str(trained[0].directory.path), "RUN") == texts[1].replace(str(tmp_path / "again"), "RUN")


def test_no_row_of_a_report_stands_twice(trained: tuple[Run, Report]) -> None:
    """In each table that names policies or chains every name stands once."""
    for name in ("policies", "warnings", "alarms"):
        table = next(table for table in trained[1].tables if table.name == name)
        names = [row[0] for row in table.rows]
        assert len(names) == len(set(names)) > 1, name


def test_another_split_is_another_cascade(trained: tuple[Run, Report], tmp_path: Path) -> None:
    """A run that holds models of another split fits them again: it ends with what a fresh run ends with."""
    shutil.copytree(trained[0].directory.path, tmp_path / "run")
    data = _spec("wards.yaml").data
    split = data.split.model_copy(update={"train": 0.4, "calibrate": 0.4, "test": 0.2})
    spec = _spec("wards.yaml", data=data.model_copy(update={"split": split}))
    again, fresh = (train(spec, _run(tmp_path / name)) for name in ("run", "fresh"))
    tables = [[table.rows for table in without_times(report).tables] for report in (again, fresh)]
    assert tables[0] == tables[1]


def test_what_is_not_certified_is_a_no_with_its_figures(tmp_path: Path, trained: tuple[Run, Report]) -> None:
    """A loss that 40 patients cannot certify is refused, with the loss that they do certify and all other figures."""
    spec = _spec("wards.yaml")
    report = plan(spec.model_copy(update={"goal": spec.goal.model_copy(update={"max_loss": 0.0})}), trained[0])
    assert report.verdict is Verdict.NO
    assert report.metrics["certified_loss_points"].value > 0
    assert report.metrics["price_saving"].value > 1
    assert "smallest relaxation" in report.headline


def test_a_budget_that_is_too_small_names_the_least(trained: tuple[Run, Report]) -> None:
    """A budget below the cheapest cascade is refused and the smallest budget that would do is named."""
    spec = _spec("wards.yaml")
    goal = spec.goal.model_copy(update={"max_loss": None, "budget": 0.0001})
    with pytest.raises(UnfoldError, match="the cheapest needs"):
        plan(spec.model_copy(update={"goal": goal}), trained[0])


def test_the_certificate_counts_patients_not_hours() -> None:
    """Repeating each hour of each patient leaves every patient's number, and so the certificate, as it was."""
    rng = np.random.default_rng(0)
    entity = entity_of_row(starts_of(rng.integers(1, 9, 30)))
    answer, other, truth = rng.integers(0, 3, (3, len(entity)))
    once = patient_means(answer, other, truth, entity)
    again = patient_means(*(np.repeat(a, 5) for a in (answer, other, truth)), np.repeat(entity, 5))
    assert once == pytest.approx(again)
    assert len(once) == 30
    assert (np.abs(once) <= 1).all()


def test_the_certificate_by_patient_holds_in_1000_resampled_calibrations() -> None:
    """Where the average patient loses just more than promised, at most delta of 1,000 calibrations certify it.

    Hours of a patient agree with each other, so a certificate that counted hours would fail this.
    """
    delta, epsilon, trials, patients = 0.1, 0.02, 1000, 300
    rng = np.random.default_rng(7)
    pool = _population(rng, 4000, epsilon + 1e-4)
    tune = pool[rng.integers(0, len(pool), patients)]
    rule = certificate.choose_rule(tune, epsilon, patients)
    drawn = pool[rng.integers(0, len(pool), (trials, patients))]
    wrong = sum(certificate.fixed_sequence(one[None, :], epsilon, delta, rule) is not None for one in drawn)
    assert wrong <= int(binom.ppf(1 - 1e-4, trials, delta))


def _population(rng: np.random.Generator, patients: int, mean: float) -> np.ndarray:
    """Return patient means whose average is exactly ``mean``; a patient is good or bad through all of their hours."""
    hours = rng.integers(4, 40, patients)
    bad = rng.random(patients) < 0.15
    truth = np.zeros(int(hours.sum()), dtype=np.int64)
    chance = np.repeat(np.where(bad, 0.5, 0.02), hours)
    answer = (rng.random(len(truth)) < chance).astype(np.int64)
    other = (rng.random(len(truth)) < np.repeat(np.where(bad, 0.4, 0.02), hours)).astype(np.int64)
    means = patient_means(answer, other, truth, np.repeat(np.arange(patients), hours))
    shifted: np.ndarray = np.clip(means + mean - means.mean(), -1.0, 1.0)
    return shifted + (mean - shifted.mean())


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """Return a folder with the first 400 intensive care records, or say why they are not there."""
    path = SHARED / "physionet2019" / "set_a.tar.xz"
    path = path if path.exists() else SHARED / "data" / "physionet2019" / "set_a.tar.xz"
    if not path.exists():
        pytest.skip(f"no {path}")
    # the rest of the archive is not unpacked
    with tarfile.open(path, "r|*") as archive:
        for member in itertools.islice((one for one in archive if one.isfile()), 400):
            archive.extract(member, tmp_path, filter="data")
    return tmp_path / "training_setA"


@pytest.mark.shared
def test_real_records_give_a_cascade_that_costs_less(records: Path, tmp_path: Path) -> None:
    """On 400 real patients the shipped spec, with small models, yields a cheaper cascade and every metric promised."""
    spec = small(_spec("sepsis.yaml"), records)
    report = train(spec, _run(tmp_path / "run"))
    names = (
        "price_saving flops_saving latency_saving naive_price_saving naive_flops_saving loss_points lead_hours_gain "
        "loss_points_interval auprc auprc_baseline utility utility_baseline alerts_per_100h "
        "cheapest_single_price_saving cheapest_single_utility informed_loss_points informed_price_saving "
        "alerts_per_100h_low alerts_per_100h_high lead_hours_gain_low lead_hours_gain_high"
    )
    values: Mapping[str, Any] = {name: report.metrics[name].value for name in names.split()}
    assert all(value is not None for value in values.values()), values
    assert values["price_saving"] > 1.5
    assert values["flops_saving"] > 1.5


def test_learnt_gates_never_make_the_front_worse(found: Searched) -> None:
    """With soft gates and induction among the starting points, no point of a stage's front is beaten by the old one."""
    part, spec = found.study.train, found.study.spec
    yard = Yard(found.study.rates, found.known.latched_quality.bill, spec.cost.by, Moves())
    own = rows_in_stage(part.highest, part.since, 0, parallel=False, fresh=spec.stages[0].fresh)
    where = field(part, 0, own)
    gates = spec.gates.model_copy(update={"learnt": ("soft", "induction")})
    steps = list(learnt(where, found.study.stages[0], yard, gates))
    assert len(steps) == 2 * 4
    assert all(lo <= hi for step in steps for lo, hi in step.spans)
    before, after = (candidates(where, found.study.stages[0], yard, each) for each in (spec.gates, gates))
    for price in (0.0, 0.1, 1.0):
        least = [min(one.loss + price * one.cost for one in front) for front in (before, after)]
        assert least[1] <= least[0] + 0.01


def test_gates_look_at_what_is_owned_only_where_it_matters() -> None:
    """A gate is told from what is owned where the next model reads a priced group that stays valid and is new."""
    groups = Purchase(
        ("monitor", "labs", "points", "gases"), np.array([1.0, 4.0, 0.0, 9.0]), np.array([0, 24.0, 5.0, 0])
    )
    zoo = Zoo(np.zeros((4, 1), dtype=np.float32), np.array([1, 3, 7, 15]), groups)
    for chain, places in (((0, 1, 2, 3), {0}), ((0, 3), {0}), ((1, 2), set()), ((2, 3), set()), ((0,), set())):
        assert buying(zoo, chain) == places
        step = Step(chain, ((0.4, 0.6),) * (len(chain) - 1), 0.5)
        for one in owning(step, zoo):
            assert {k for k in range(len(step.spans)) if one.owned[k] != step.spans[k]} == places
        assert bool(list(owning(step, zoo))) == bool(places)


def test_small_steps_keep_spans_in_order() -> None:
    """Each neighbour moves one cut; gates without cuts of their own for what is owned keep both alike."""
    plain = Step((0, 1, 2), ((0.4, 0.6), (0.2, 0.9)), 0.5)
    apart = Step((0, 1, 2), ((0.4, 0.6), (0.2, 0.9)), 0.5, ((-np.inf, 0.8), (0.2, 0.9)))
    assert not any(one.owned for one in neighbours(plain))
    for one in neighbours(apart):
        assert all(lo <= hi for lo, hi in (*one.spans, *one.owned))
        assert one.owned[1] == one.spans[1]
        assert one.owned[0][0] == -np.inf
    moved = {(one.owned[0] != apart.owned[0], one.spans[0] != apart.spans[0]) for one in neighbours(apart)}
    assert moved == {(False, False), (True, False), (False, True)}


def test_points_are_tested_from_strong_to_cheap() -> None:
    """Evidence falls and cost falls along the order of testing, and the cheapest point of all comes last."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        cost, seen = rng.random(12), rng.normal(rng.normal(0, 0.05, (12, 1)), 0.1, (12, 80)).clip(-1, 1)
        order = sequence(cost, seen, 0.01)
        evidence = ((0.01 - seen.mean(axis=1)) / seen.std(axis=1))[order]
        assert (np.diff(cost[order]) < 0).all()
        assert (np.diff(evidence) <= 0).all()
        assert order[-1] == int(np.argmin(cost))
