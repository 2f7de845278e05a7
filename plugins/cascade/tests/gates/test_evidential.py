"""Laws of confidences that look into models, written in a spec: trained, planned and served alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from plugins.cascade.tests.runs import CONFIGS, TUMOURS, load_matrix, load_served, run_in, solve_spec, spec_of
from unfold_cascade.gates.evidential import inspect_model, shrink_to_uniform
from unfold_cascade.learners import estimators
from unfold_cascade.schema.cascade import CascadeSpec
from unfold_cascade.serving.service import build_cascade
from unfold_cascade.temporal.build import build_temporal_problem
from unfold_cascade.temporal.data.features import build_feature_matrix
from unfold_cascade.temporal.data.readers import read_table
from unfold_cascade.temporal.models.study import load_study
from unfold_cascade.temporal.serving.metrics import build_metrics
from unfold_cascade.temporal.serving.plan_loader import load_temporal_plan
from unfold_cascade.temporal.serving.service import build_model, verify_replay
from unfold_cascade.verbs import train
from unfoldkit.api import Run, dump, fingerprint
from unfoldkit.report import Report

FOREST = "{name: trees, estimator: random-forest, features: [means, worst], params: {n_estimators: 12, max_depth: 4}}"
WHOLE = "{name: whole, estimator: baseline}"
SCALED = (
    "{name: quick, estimator: random-forest, scale: true, features: [means], params: {n_estimators: 6, max_depth: 3}}"
)
LINEAR = "{name: quick, estimator: logistic-regression, features: [means]}"


def planned(run: Run, spec: CascadeSpec, report: Report) -> Run:
    """Return the surroundings of `serve` after a verb, as the command line gives them."""
    plan = {"spec_sha256": fingerprint(dump(spec)), "seed": run.seed, "decision": report.decision}
    return replace(run, options={"plan": plan})


@pytest.mark.parametrize(
    ("confidence", "first"), [("evidential", SCALED), ("ensemble", SCALED), ("evidential", LINEAR)]
)
def test_gates_read_confidences_from_model_internals(tmp_path: Path, confidence: str, first: str) -> None:
    """Scores of unseen rows are those of the stored model's leaves or members; rows are served as planned."""
    models = f"stages[0].models=[{first}, {FOREST}, {WHOLE}]"
    spec, run = spec_of(TUMOURS, models, f"gates.confidence={confidence}", "goal.max_loss=8%"), run_in(tmp_path)
    report, plan = train(spec, run), solve_spec(spec, run)
    x, rows = load_matrix(spec, run, plan.problem.dataset), plan.problem.dataset.rows.test
    file = "models/diagnosis/all/trees.skops"
    model = estimators.from_bytes(run.directory.read(file), ubjson=False, file=file)
    columns = plan.problem.dataset.column_numbers(("means", "worst"))
    np.testing.assert_array_equal(
        plan.tables.first_stage.score[rows, 1], inspect_model(confidence, model, x[np.ix_(rows, columns)])
    )
    assert report.decision
    assert report.decision.get("cascade"), "no cascade was certified, so none would be served"
    loaded = load_served(spec, planned(run, spec, report))
    _, engines = build_cascade(loaded, run, lambda _way: None)
    assert {one.name for name, one in engines.items() if name.endswith("trees")} <= {"native"}


@pytest.mark.e2e
@pytest.mark.parametrize("confidence", ["evidential", "ensemble"])
def test_over_time_predictions_are_shrunk_by_uncertainty(tmp_path: Path, confidence: str) -> None:
    """Logged answers of unseen hours are the model's own, shrunk by its confidence; the service steps as simulated."""
    forest = "{name: chart, estimator: random-forest, params: {n_estimators: 5, max_depth: 3}}"
    ward = "{name: ward, estimator: xgboost, features: [bedside, trends], params: {n_estimators: 8, max_depth: 2}}"
    settings = (
        f"stages[0].models=[{ward}, {forest}]",
        f"gates.confidence={confidence}",
        "gates.learnt=[soft, induction]",
    )
    spec, run = spec_of(CONFIGS / "wards.yaml", *settings), run_in(tmp_path)
    report = train(spec, run)
    problem = build_temporal_problem(spec, run)
    held = load_study(problem, run)
    pairs = zip(held.slots, held.predictions, strict=True)
    slot, log = next((slot, log) for slot, log in pairs if slot.model == "chart")
    file = slot.model_file
    model = estimators.from_bytes(run.directory.read(file), ubjson=False, file=file)
    x = build_feature_matrix(read_table(problem.source, run), problem.features)[:, slot.columns]
    unseen = np.isin(
        np.repeat(np.arange(len(held.hours.timeline.starts) - 1), np.diff(held.hours.timeline.starts)), held.rows.test
    )
    plain = estimators.predict_probabilities(model, x[unseen], 2)
    wanted = shrink_to_uniform(plain, inspect_model(confidence, model, x[unseen]))
    np.testing.assert_allclose(log.p[unseen], wanted, atol=1e-6)
    assert not np.allclose(plain, wanted)
    plan = {"spec_sha256": fingerprint(dump(spec)), "seed": run.seed, "decision": report.decision}
    loaded = load_temporal_plan(problem, run, plan)
    verify_replay(loaded, build_model(loaded, run, build_metrics(loaded, CollectorRegistry())), run)


def test_evidence_shrinks_to_the_mean_of_a_dirichlet() -> None:
    """With evidence e, ``shrink_to_uniform`` of the shares e/sum is ``(e + 1) / (sum + C)``."""
    rng = np.random.default_rng(3)
    evidence = rng.integers(1, 40, (200, 3)).astype(np.float64)
    total = evidence.sum(axis=1)
    found = shrink_to_uniform(evidence / total[:, None], 1 - 3 / (total + 3))
    np.testing.assert_allclose(found, (evidence + 1) / (total + 3)[:, None])


def test_a_confidence_that_no_model_supports_is_an_error() -> None:
    """The mistake names the key and what could be read."""
    for path, confidence in ((TUMOURS, "evidential"), (CONFIGS / "wards.yaml", "evidential")):
        problems = list(spec_of(path).model_copy(update={"gates": _gates(path, confidence)}).problems())
        assert [(problem.path, "random-forest" in problem.hint) for problem in problems] == [
            (("gates", "confidence"), True)
        ]
    assert not list(spec_of(TUMOURS).model_copy(update={"gates": _gates(TUMOURS, "ensemble")}).problems())


def _gates(path: Path, confidence: str) -> object:
    return spec_of(path).gates.model_copy(update={"confidence": confidence})
