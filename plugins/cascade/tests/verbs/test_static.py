"""From a spec to a certified cascade, on real data."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plugins.cascade.tests.runs import (
    CONFIGS,
    OWN,
    TUMOURS,
    certify_in_sequence,
    load_matrix,
    run_in,
    solve_spec,
    spec_of,
)
from unfold_cascade.data.dataset import load_stored_dataset
from unfold_cascade.data.table import frame_of_file
from unfold_cascade.planner.policy import path_cost
from unfold_cascade.planner.select import MAX_POINTS
from unfold_cascade.schema.cascade import CascadeSpec
from unfold_cascade.verbs import plan, profile, train
from unfoldkit.api import Figure, Report, UnfoldError, Verdict
from unfoldkit.engines.local import LocalEngine
from unfoldkit.report import to_data, without_measurements


@dataclass(frozen=True, slots=True)
class Counting:
    """An engine that counts its jobs, and can die after some of them."""

    jobs: list[int]
    die_after: int = 10**9
    name: str = "counting"

    def map(
        self,
        function: Callable[[Any], Any],
        items: Sequence[Any],
        *,
        on_result: Callable[[int, Any], None] | None = None,
    ) -> list[Any]:
        """Run the jobs one after the other."""
        results = []
        for index, item in enumerate(items):
            if len(self.jobs) >= self.die_after:
                raise KeyboardInterrupt
            results.append(function(item))
            self.jobs.append(index)
            if on_result:
                on_result(index, results[-1])
        return results


def _text(report: Report, folder: Path) -> str:
    return json.dumps(to_data(without_measurements(report))).replace(str(folder), "RUN")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    folder = tmp_path_factory.mktemp("tumours")
    return folder, train(spec_of(TUMOURS), run_in(folder))


def test_train_reports_the_metrics_of_the_kind(trained: tuple[Path, Report]) -> None:
    """A trained cascade reports saving, loss and certificate, and its saving is the ratio of its two costs."""
    metrics = trained[1].metrics
    assert {"saving", "loss_points", "certified_loss_points", "baseline_accuracy", "cascade_accuracy"} <= set(metrics)
    ratio = metrics["baseline_cost"].value / metrics["cascade_cost"].value
    assert metrics["saving"].value == pytest.approx(ratio)
    loss = 100 * (metrics["baseline_accuracy"].value - metrics["cascade_accuracy"].value)
    assert metrics["loss_points"].value == pytest.approx(loss)


def test_call_costs_add_up_to_the_cost_of_the_cascade(trained: tuple[Path, Report]) -> None:
    """The route lists the cost of each call, so that evaluated shares times calls add up to the mean cost."""
    report = trained[1]
    route = next(table for table in report.tables if table.name == "route")
    total = sum(float(row[3]) / 100 * float(row[-1]) for row in route.rows)
    assert total == pytest.approx(report.metrics["cascade_cost"].value)


def test_learnt_gates_only_add_to_the_front(trained: tuple[Path, Report]) -> None:
    """With gates learnt beside a coarse exact search, no cascade of the front is lost."""
    folder, _ = trained
    coarse, more = (
        solve_spec(spec_of(TUMOURS, "gates.bins=3", f"gates.learnt={learnt}"), run_in(folder)).front
        for learnt in ("[]", "[soft, induction]")
    )
    for loss, cost in zip(coarse.loss, coarse.cost, strict=True):
        assert ((more.loss <= loss + 1e-12) & (more.cost <= cost + 1e-12)).any()


def test_plan_refits_nothing(trained: tuple[Path, Report]) -> None:
    """`plan` with another goal uses the models and the front of the run."""
    jobs: list[int] = []
    folder, _ = trained
    report = plan(spec_of(TUMOURS, "goal.max_loss=10%"), run_in(folder, engine=Counting(jobs)))
    assert jobs == []
    assert report.verdict is Verdict.YES
    assert report.metrics["certified_loss_points"].value == pytest.approx(10)


def test_a_killed_run_resumes_to_the_same_report(trained: tuple[Path, Report], tmp_path: Path) -> None:
    """A run that died after two fits fits only the rest, and ends with the same report."""
    jobs: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        train(spec_of(TUMOURS), run_in(tmp_path, engine=Counting(jobs, die_after=2)))
    resumed: list[int] = []
    report = train(spec_of(TUMOURS), run_in(tmp_path, engine=Counting(resumed)))
    assert len(jobs) + len(resumed) == 4
    assert _text(report, tmp_path) == _text(trained[1], trained[0])


@pytest.mark.e2e
def test_two_workers_give_the_same_report_as_one(trained: tuple[Path, Report], tmp_path: Path) -> None:
    """Where the models are fitted changes nothing."""
    report = train(spec_of(TUMOURS), run_in(tmp_path, engine=LocalEngine(2)))
    assert _text(report, tmp_path) == _text(trained[1], trained[0])


@pytest.mark.parametrize("name", ["cases.npz", "front.json", "logs/diagnosis/all/quick.npz"])
def test_a_changed_file_is_rejected_by_name(trained: tuple[Path, Report], tmp_path: Path, name: str) -> None:
    """A stored file that was changed is refused with its name."""
    import shutil

    folder = tmp_path / "run"
    shutil.copytree(trained[0], folder)
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(UnfoldError, match=name.rsplit("/", maxsplit=1)[-1]):
        train(spec_of(TUMOURS), run_in(folder))


def test_another_seed_fits_again(trained: tuple[Path, Report]) -> None:
    """A model is reused only for the seed that it was fitted with."""
    jobs: list[int] = []
    plan(spec_of(TUMOURS), run_in(trained[0], engine=Counting(jobs), seed=7))
    assert len(jobs) == 4


def test_a_budget_selects_the_most_accurate_affordable_cascade(trained: tuple[Path, Report], tmp_path: Path) -> None:
    """With a budget the mean cost of the chosen cascade on the tuning rows is within it, and a bound is reported."""
    del trained
    spec = spec_of(TUMOURS, "goal={budget: 3 per case}")
    report = train(spec, run_in(tmp_path))
    assert report.verdict is Verdict.YES
    assert report.metrics["cascade_cost"].value <= 3.5
    assert report.metrics["certified_loss_points"].target is None


def test_an_unattainable_budget_names_the_cheapest_cascade(tmp_path: Path) -> None:
    """An infeasible budget is refused with what the cheapest cascade needs."""
    report = train(spec_of(TUMOURS, "goal={budget: 0.1 per case}"), run_in(tmp_path))
    assert report.verdict is Verdict.NO
    assert "the cheapest costs" in report.headline


def test_too_few_cases_report_the_number_needed(trained: tuple[Path, Report]) -> None:
    """A promise that the calibration rows cannot support is refused with the number of cases that could."""
    report = plan(spec_of(TUMOURS, "goal.max_loss=0.1%"), run_in(trained[0]))
    assert report.verdict is Verdict.NO
    certificate = dict(report.lines)["certificate"]
    assert "2,995 cases are needed" in certificate
    assert report.metrics["saving"].value == pytest.approx(1.0)


def test_a_feature_group_is_paid_once_per_case(trained: tuple[Path, Report]) -> None:
    """Two models that need the same group pay for it together once, so no case costs more than all groups."""
    front = next(figure for figure in trained[1].figures if isinstance(figure, Figure)).series[0]
    assert max(front.x) <= 7.0 + 1e-9
    assert min(front.x) >= 1.0 - 1e-9


def test_recorded_answers_need_no_model(tmp_path: Path) -> None:
    """From logs alone the cascade is certified, and nothing is fitted."""
    jobs: list[int] = []
    report = plan(spec_of(CONFIGS / "api-logs.yaml"), run_in(tmp_path, engine=Counting(jobs)))
    assert jobs == []
    assert report.verdict is Verdict.YES
    assert report.metrics["saving"].value > 2


def test_recorded_labels_may_be_rare(tmp_path: Path) -> None:
    """A label that occurs once in a log of answers is a case like others; where models are fitted it is refused."""
    table = (CONFIGS / "api-logs.csv").read_text().splitlines()
    rare = [*table, "other," + table[1].partition(",")[2]]
    (tmp_path / "own.csv").write_text("\n".join(rare) + "\n")
    place = f"data.path={tmp_path / 'own.csv'}"
    report = plan(spec_of(CONFIGS / "api-logs.yaml", place), run_in(tmp_path / "run"))
    assert report.verdict is Verdict.YES
    (tmp_path / "own.csv").write_text("a,b,y\n" + "1,2,no\n2,1,no\n3,3,yes\n" * 10 + "4,4,other\n")
    with pytest.raises(UnfoldError, match='the label "other" of "y" occurs once; each needs at least 8 cases'):
        train(_table_spec(tmp_path), run_in(tmp_path / "fitted", base=tmp_path))


@pytest.mark.e2e
def test_recorded_answers_are_gated_by_the_better_score(tmp_path: Path) -> None:
    """Without a word on confidence and order, logs are searched on both scores and in every order."""
    said = spec_of(CONFIGS / "api-logs.yaml", "gates.confidence=either", "gates.order=all")
    unsaid = spec_of(CONFIGS / "api-logs.yaml", "gates={}")
    one, two = (plan(spec, run_in(tmp_path / name)) for name, spec in (("a", said), ("b", unsaid)))
    assert one.decision["cascade"] == two.decision["cascade"]
    assert (unsaid.order, unsaid.conditional) == ("all", (False, True))
    fitted = spec_of(TUMOURS)
    assert (fitted.order, fitted.conditional) == ("sorted", (False,))


def test_label_conditional_confidence_survives_the_run(tmp_path: Path) -> None:
    """Curves that were fitted on the tuning rows are stored, and give the same report when they are read again."""
    spec = spec_of(CONFIGS / "api-logs.yaml", "gates.confidence=label-conditional", "goal.max_loss=5%")
    first, second = (plan(spec, run_in(tmp_path)) for _ in range(2))
    assert _text(first, tmp_path) == _text(second, tmp_path)
    assert "curves" in (tmp_path / "front.json").read_text()


def test_a_run_stores_the_selectable_points(tmp_path: Path) -> None:
    """The stored front holds no more points than a plan chooses from, each with its curves once."""
    spec = spec_of(CONFIGS / "api-logs.yaml", "gates.confidence=label-conditional", "gates.max_models=2")
    plan(spec, run_in(tmp_path))
    kept = json.loads((tmp_path / "front.json").read_text())["points"]
    assert 2 < len(kept) <= MAX_POINTS


def test_profile_measures_every_model(trained: tuple[Path, Report]) -> None:
    """`profile` reports operations, bytes and time of every model of the run."""
    report = profile(spec_of(TUMOURS), run_in(trained[0]))
    assert len(report.tables[0].rows) == 4
    assert all(row[5] > 0 for row in report.tables[0].rows)


def test_a_table_with_semicolons_reads_as_one_with_commas(tmp_path: Path) -> None:
    """Cells between semicolons, with commas in their numbers and empty lines at the end, are the same columns."""
    (tmp_path / "a.csv").write_text("a,b,y\n" + "1.5,x,0\n,z,1\n" * 5)
    (tmp_path / "b.csv").write_text("a;b;y\n" + "1,5;x;0\n;z;1\n" * 5 + "\n")
    one, other = (frame_of_file(tmp_path / name).columns for name in ("a.csv", "b.csv"))
    assert {name: cells.tolist() for name, cells in one.items()} == {n: cells.tolist() for n, cells in other.items()}


@pytest.mark.e2e
def test_parquet_and_csv_give_the_same_cascade(tmp_path: Path) -> None:
    """The same table as CSV and as Parquet gives the same answers."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import csv, parquet

    table = csv.read_csv(CONFIGS / "api-logs.csv")
    parquet.write_table(table, tmp_path / "api-logs.parquet")
    base = spec_of(CONFIGS / "api-logs.yaml")
    other = spec_of(CONFIGS / "api-logs.yaml", "data.path=api-logs.parquet")
    one = plan(base, run_in(tmp_path / "a"))
    two = plan(other, run_in(tmp_path / "b", base=tmp_path))
    assert one.decision == two.decision
    assert pyarrow is not None


def _table_spec(folder: Path, *settings: str) -> CascadeSpec:
    (folder / "own.yaml").write_text(OWN)
    return spec_of(folder / "own.yaml", *settings)


def test_a_non_numeric_cell_is_reported_with_row_and_column(tmp_path: Path) -> None:
    """A word in a column of numbers is refused with its row and column."""
    rows = ["a,b,y", *[f"{i},{i % 3},{i % 2}" for i in range(40)]]
    rows[5] = "x,1,0"
    (tmp_path / "own.csv").write_text("\n".join(rows))
    with pytest.raises(UnfoldError, match='"x" in row 5 of column "a" is not a number'):
        train(_table_spec(tmp_path), run_in(tmp_path / "run", base=tmp_path))


def test_categories_become_indicator_columns(tmp_path: Path) -> None:
    """A column of words is read as one column of 0 and 1 a word, none of them for a gap, and a model learns from it."""
    wards = ["heart", "skin, eyes", "", "heart=lung"]
    rows = [f'{i * 37 % 160},"{wards[i % 4]}",{int(i % 4 == 0)}' for i in range(160)]
    (tmp_path / "own.csv").write_text("\n".join(["a,b,y", *rows]))
    spec = _table_spec(tmp_path, "data.categories=[b]", "goal.max_loss=10%")
    run = run_in(tmp_path / "run", base=tmp_path)
    report = train(spec, run)
    assert report.metrics["baseline_accuracy"].value == 1
    given = load_stored_dataset(run.directory)
    assert given.order == ("a", "b=heart", "b=heart=lung", "b=skin, eyes")
    x = load_matrix(spec, run, given)[:, 1:]
    assert np.array_equal(x.sum(axis=1), [float(i % 4 != 2) for i in range(160)])
    with pytest.raises(UnfoldError, match="is not a number"):
        train(_table_spec(tmp_path), run_in(tmp_path / "other", base=tmp_path))
    with pytest.raises(UnfoldError, match='has no column "c"'):
        train(_table_spec(tmp_path, "data.categories=[c]"), run_in(tmp_path / "third", base=tmp_path))


def test_gaps_are_imputed_where_a_model_needs_it(tmp_path: Path) -> None:
    """Empty cells of a table are valid: a model that cannot take them gets the median."""
    generator = np.random.default_rng(0)
    rows = [f"{value:.3f},{'' if index % 5 == 0 else index % 7},{int(value > 0)}"
            for index, value in enumerate(generator.normal(size=120))]  # fmt: skip
    (tmp_path / "own.csv").write_text("\n".join(["a,b,y", *rows]))
    report = train(_table_spec(tmp_path), run_in(tmp_path / "run", base=tmp_path))
    assert report.metrics["baseline_accuracy"].value > 0.8


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a,b,y\n1,2\n", "own.csv:2:1: has 2 cells where the header has 3"),
        ("a,a,y\n", 'own.csv:1:1: the first line must name each column once: two columns are named "a"'),
        (",b,\n", "two columns have no name"),
        ("", "the file is empty"),
        ("a,b,y\n1,2,0\n", "has 1 row; at least 10 are needed"),
        ("a,b,z\n" + "1,2,0\n" * 20, 'has no column "y"'),
        ("a,c,y\n" + "1,2,0\n" * 20, "only one value"),
    ],
)
def test_invalid_tables_give_one_error(tmp_path: Path, text: str, expected: str) -> None:
    """A table that cannot be used is refused with what is wrong with it."""
    (tmp_path / "own.csv").write_text(text)
    with pytest.raises(UnfoldError, match=re.escape(expected)):
        train(_table_spec(tmp_path), run_in(tmp_path / "run", base=tmp_path))


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("own.dta", "", 'is a file of Stata, not a table of text (convert it: pandas.read_stata("own.dta")'),
        ("own.json", '{"a": {"0": 1}}', "has 1 row; at least 10 are needed (one object per line, or one array"),
        ("own.json", '{"resourceType": "Bundle", "entry": []}', "own.json holds FHIR resources, not cases"),
    ],
)
def test_tables_of_other_programs_are_refused_with_a_remedy(
    tmp_path: Path, name: str, text: str, expected: str
) -> None:
    """Data sets of statistical packages, spreadsheets, columns as JSON and FHIR must be converted first."""
    (tmp_path / name).write_text(text)
    with pytest.raises(UnfoldError, match=re.escape(expected)):
        frame_of_file(tmp_path / name)


@pytest.mark.e2e
def test_certificates_hold_over_resampled_calibrations() -> None:
    """Over 1,000 calibrations drawn from a known population the promised loss is exceeded in at most δ of them."""
    from unfold_cascade.planner import certificate

    generator = np.random.default_rng(5)
    epsilon, delta, n = 0.02, 0.05, 449
    worse = np.array([0.005, 0.012, 0.0201, 0.03, 0.06])
    broken = 0
    for _ in range(1000):
        tune = (generator.random((len(worse), 898)) < worse[:, None]).astype(float)
        after = (generator.random((len(worse), n)) < worse[:, None]).astype(float)
        rules = [certificate.choose_rule(d, epsilon, n, delta) for d in tune]
        order = np.argsort(
            [certificate.p_value(d, epsilon, r) for d, r in zip(tune, rules, strict=True)], kind="stable"
        )
        last = certify_in_sequence(after[order], epsilon, delta, [rules[i] for i in order])
        broken += last is not None and bool((worse[order[: last + 1]] > epsilon).any())
    assert broken <= 1000 * delta + 2 * (1000 * delta * (1 - delta)) ** 0.5


def test_the_named_relaxation_is_certified(trained: tuple[Path, Report]) -> None:
    """A refused loss is answered with the smallest loss that is granted, in tenths of a point."""
    report = plan(spec_of(TUMOURS, "goal.max_loss=0.1%"), run_in(trained[0]))
    assert report.verdict is Verdict.NO
    least = report.metrics["certified_loss_points"].value
    assert least > 0.1
    assert report.next.endswith(f"--set goal.max_loss={least:g}%")
    answers = [
        plan(spec_of(TUMOURS, f"goal.max_loss={loss:.1f}%"), run_in(trained[0])) for loss in (least, least - 0.1)
    ]
    assert [answer.verdict for answer in answers] == [Verdict.YES, Verdict.NO]


def test_a_cascade_is_listed_once(trained: tuple[Path, Report]) -> None:
    """The chosen cascade is the marked row, also when it is the most accurate or the cheapest of the front."""
    table = trained[1].tables[0]
    assert table.accent is not None
    assert table.rows[table.accent][0].startswith("cascade, certified")
    assert len({row[2] for row in table.rows}) == len(table.rows)


def test_a_case_that_reaches_the_baseline_pays_each_feature_group_once(trained: tuple[Path, Report]) -> None:
    """What earlier models bought is not bought again for the monolith: here it ends at the monolith's own price."""
    made = solve_spec(spec_of(TUMOURS), run_in(trained[0]))
    assert path_cost(made.tables, made.tables.first_stage, (0, 1, 2), frozenset()).tolist() == [
        1.0,
        5.0,
        made.baseline.cost,
    ]


@dataclass(frozen=True, slots=True)
class _Pools(LocalEngine):
    """One process, and a list with the number of jobs of each map."""

    sizes: list[int] = field(default_factory=list)

    def map(self, function: Callable[[Any], Any], items: Sequence[Any], **options: Any) -> list[Any]:
        """Run the jobs here."""
        self.sizes.append(len(items))
        return LocalEngine(1).map(function, items, **options)


def _write_sites(folder: Path, *, rare_at: str = "") -> CascadeSpec:
    """Write cases of three sites, and their spec; a third label occurs at ``rare_at`` only."""
    rng = np.random.default_rng(0)
    a, site = rng.normal(size=(600, 2)), rng.choice(["north", "south", "west"], 600)
    y = np.where((site == rare_at) & (a[:, 1] > 1.0), "c", np.where(a[:, 0] + 0.3 * rng.normal(size=600) > 0, "a", "b"))
    lines = [f"{u:.6f},{v:.6f},{word},{where}" for (u, v), word, where in zip(a, y, site, strict=True)]
    (folder / "own.csv").write_text("\n".join(["a,b,y,hospital", *lines]))
    (folder / "own.yaml").write_text(OWN.replace("path: own.csv", "path: own.csv, split: {leave_out: hospital}"))
    return spec_of(folder / "own.yaml")


def test_the_models_without_each_site_are_fitted_in_one_pool(tmp_path: Path) -> None:
    """Workers start once for all sites, progress only grows, and another run of the parts fits nothing."""
    spec, engine, steps = _write_sites(tmp_path), _Pools(1), list[tuple[str, int, int]]()
    run = run_in(tmp_path / "run", base=tmp_path, engine=engine, progress=lambda *step: steps.append(step))
    report = train(spec, run)
    assert engine.sizes == [2, 6]
    assert [step[1:] for step in steps if step[0] == "models without a site"] == [(done, 6) for done in range(1, 7)]
    assert len(next(table for table in report.tables if table.columns[0].name == "left out").rows) == 3
    train(spec, run)
    assert engine.sizes == [2, 6]


def test_a_label_of_one_site_is_named_before_any_fit(tmp_path: Path) -> None:
    """Without the only site that has a label, no model can learn it: the site is named while nothing is fitted."""
    spec, engine = _write_sites(tmp_path, rare_at="south"), _Pools(1)
    with pytest.raises(UnfoldError, match=r'has 0 of its .* cases in training without "south"') as failure:
        train(spec, run_in(tmp_path / "run", base=tmp_path, engine=engine))
    assert 'join "south" with another site' in str(failure.value)
    assert not engine.sizes
