"""Verbs over time: reports are reproducible, plans refit nothing, refusals keep their figures."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from plugins.cascade.tests.runs import CONFIGS, run_in, small, spec_of
from unfold_cascade.verbs import plan, profile, train
from unfoldkit.api import Report, Run, UnfoldError, Verdict
from unfoldkit.report import to_data, without_measurements

ROOT = Path(__file__).parents[4]
SHARED = Path(os.environ.get("UNFOLD_SHARED", ROOT.parent / "shared"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Report]:
    """Train the shipped wards once."""
    run = run_in(tmp_path_factory.mktemp("wards"))
    return run, train(spec_of(CONFIGS / "wards.yaml"), run)


@pytest.mark.e2e
def test_plan_refits_no_model(trained: tuple[Run, Report]) -> None:
    """After training, planning for another goal reads the stored models and writes none."""
    run, _ = trained
    before = {name: entry for name, entry in run.directory.files().items() if name.startswith(("models", "logs"))}
    spec = spec_of(CONFIGS / "wards.yaml")
    plan(spec.model_copy(update={"goal": spec.goal.model_copy(update={"max_loss": 0.3})}), run)
    after = {name: entry for name, entry in run.directory.files().items() if name.startswith(("models", "logs"))}
    assert before == after
    assert profile(spec, run).metrics["models"].value == 6


@pytest.mark.slow
def test_equal_seeds_give_equal_reports(trained: tuple[Run, Report], tmp_path: Path) -> None:
    """A second run from scratch gives the same report except for measured times."""
    again = train(spec_of(CONFIGS / "wards.yaml"), run_in(tmp_path / "again"))
    texts = [json.dumps(to_data(without_measurements(report))) for report in (trained[1], again)]
    assert texts[0].replace(str(trained[0].directory.path), "RUN") == texts[1].replace(str(tmp_path / "again"), "RUN")


def test_report_rows_have_unique_names(trained: tuple[Run, Report]) -> None:
    """In every table of policies or chains each name occurs once."""
    for name in ("policies", "warnings", "alarms"):
        table = next(table for table in trained[1].tables if table.name == name)
        names = [row[0] for row in table.rows]
        assert len(names) == len(set(names)) > 1, name


@pytest.mark.e2e
def test_another_split_refits_the_models(trained: tuple[Run, Report], tmp_path: Path) -> None:
    """A run with models of another split fits them again and ends like a fresh run."""
    shutil.copytree(trained[0].directory.path, tmp_path / "run")
    data = spec_of(CONFIGS / "wards.yaml").data
    split = data.split.model_copy(update={"train": 0.4, "calibrate": 0.4, "test": 0.2})
    spec = spec_of(CONFIGS / "wards.yaml").model_copy(update={"data": data.model_copy(update={"split": split})})
    again, fresh = (train(spec, run_in(tmp_path / name)) for name in ("run", "fresh"))
    tables = [[table.rows for table in without_measurements(report).tables] for report in (again, fresh)]
    assert tables[0] == tables[1]


def test_refusals_keep_their_figures(tmp_path: Path, trained: tuple[Run, Report]) -> None:
    """A loss that 40 patients cannot certify is refused, with the loss that they can certify and all figures."""
    spec = spec_of(CONFIGS / "wards.yaml")
    report = plan(spec.model_copy(update={"goal": spec.goal.model_copy(update={"max_loss": 0.0})}), trained[0])
    assert report.verdict is Verdict.NO
    assert report.metrics["certified_loss_points"].value > 0
    assert report.metrics["price_saving"].value > 1
    assert "minimal relaxation" in report.headline


def test_unattainable_budgets_name_the_smallest(trained: tuple[Run, Report]) -> None:
    """A budget below the cheapest cascade is an error that names the smallest possible one."""
    spec = spec_of(CONFIGS / "wards.yaml")
    goal = spec.goal.model_copy(update={"max_loss": None, "budget": 0.0001})
    with pytest.raises(UnfoldError, match="the cheapest needs"):
        plan(spec.model_copy(update={"goal": goal}), trained[0])


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """Extract the first 400 intensive care records; skip the test if they are absent."""
    path = SHARED / "physionet2019" / "set_a.tar.xz"
    path = path if path.exists() else SHARED / "data" / "physionet2019" / "set_a.tar.xz"
    if not path.exists():
        pytest.skip(f"no {path}")
    # the rest of the archive is not unpacked
    with tarfile.open(path, "r|*") as archive:
        for member in itertools.islice((one for one in archive if one.isfile()), 400):
            archive.extract(member, tmp_path, filter="data")
    return tmp_path / "training_setA"


@pytest.mark.e2e
@pytest.mark.shared
def test_real_records_give_a_cheaper_cascade(records: Path, tmp_path: Path) -> None:
    """On 400 real patients the shipped spec with small models gives a cheaper cascade and every documented metric."""
    spec = small(spec_of(CONFIGS / "sepsis.yaml"), records)
    report = train(spec, run_in(tmp_path / "run"))
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
