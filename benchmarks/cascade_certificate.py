"""How often a certified cascade loses more than was promised, over new calibrations, by case and by patient.

The cases that no model was fitted or tuned on stand for the population, so that the true loss of every cascade of a
front is known. From them calibrations are drawn with replacement; each goes through the choice that ``train`` makes.
The promise is set where it is hard: between the true losses of the cascades.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.records import records
from unfold_cascade._types import FloatArray, IntArray
from unfold_cascade.build import build_problem
from unfold_cascade.planner import select as timeless
from unfold_cascade.planner.guarantees import Guarantee, certify_points
from unfold_cascade.planner.planner import solve
from unfold_cascade.schema.cascade import CascadeSpec
from unfold_cascade.temporal.build import build_temporal_problem
from unfold_cascade.temporal.models.study import Cohort, Study, fit_study
from unfold_cascade.temporal.search import select as timed
from unfold_cascade.temporal.search.planner import SearchResult, search_cascades
from unfold_cascade.temporal.simulation.policy import Policy, build_policy_arrays
from unfold_cascade.temporal.simulation.trajectories import simulate
from unfoldkit.engines.local import LocalEngine
from unfoldkit.run_context import Run
from unfoldkit.run_directory import RunDir
from unfoldkit.spec.validate import validate
from unfoldkit.spec.yaml_reader import read_document

CONFIGS = Path(__file__).parents[1] / "configs" / "cascade"
DRAWS, QUICK_DRAWS = 1000, 200
PATIENTS = 3000
DELTA = 0.05
QUANTILES = (0.25, 0.5, 0.75)

Pick = Callable[[FloatArray, float], int | None]


@dataclass(frozen=True, slots=True)
class Population:
    """A front of m cascades: (m, N) true differences of all cases, and what picks a point on a calibration.

    ``pick`` is given (m, n) differences of a calibration and the loss promised.
    """

    name: str
    truth: FloatArray
    cases: int
    pick: Pick


def run(quick: bool, seed: int, data: Path | None) -> dict[str, Any]:
    """Draw 1,000 calibrations for each population and promise, and count the broken promises.

    Args:
        quick: 200 draws, made-up data only.
        seed: Seed of splits, models and draws.
        data: Folder that holds ``physionet2019``; without it that population is left out.

    Returns:
        ``metrics`` and ``tables``.
    """
    rows = [row for one in _populations(seed, None if quick else data) for row in _judged(one, quick=quick, seed=seed)]
    shares = {kind: [row[4] for row in rows if (row[0] == "digits") is (kind == "timeless")] for kind in KINDS}
    metrics = {f"broken_share_max_{kind}": max(shares[kind]) for kind in KINDS}
    columns = ["front", "promised points", "calibrations", "certified share", "broken share"]
    draws = QUICK_DRAWS if quick else DRAWS
    notes = [] if data is not None and not quick else ["the front on intensive care records was left out"]
    return {
        "metrics": metrics | {"delta": DELTA, "calibrations": draws, "promises": len(rows)},
        "tables": [{"name": "promises", "columns": columns, "rows": rows}],
        "notes": notes,
    }


KINDS = ("timeless", "clustered")


def _judged(one: Population, *, quick: bool, seed: int) -> Iterator[list[Any]]:
    mean = one.truth.mean(axis=1)
    rng = np.random.default_rng([seed, 0xCE27])
    draws = QUICK_DRAWS if quick else DRAWS
    for epsilon in _promises(mean):
        picked = [one.pick(one.truth[:, _drawn(rng, one)], epsilon) for _ in range(draws)]
        known = [mean[point] > epsilon for point in picked if point is not None]
        yield [one.name, 100 * epsilon, draws, len(known) / draws, float(sum(known)) / draws]


def _promises(mean: FloatArray) -> list[float]:
    """Return losses such that some cascades lose a little more, and some less."""
    levels = np.quantile(np.maximum(mean, 0.0), QUANTILES)
    return [float(level) + 1e-4 for level in dict.fromkeys(levels.tolist()) if level < 1]


def _drawn(rng: np.random.Generator, one: Population) -> IntArray:
    return rng.integers(0, one.truth.shape[1], one.cases)


def _populations(seed: int, data: Path | None) -> Iterator[Population]:
    yield _timeless(seed)
    yield _timed("wards", _spec("wards.yaml"), seed)
    if data is not None:
        spec = _spec("sepsis.yaml")
        given = {"path": str(records(data).absolute()), "patients": PATIENTS}
        yield _timed("sepsis", spec.model_copy(update={"data": spec.data.model_copy(update=given)}), seed)


def _timeless(seed: int) -> Population:
    with tempfile.TemporaryDirectory() as folder:
        run = _run(folder, seed)
        plan = solve(build_problem(_spec("digits.yaml"), run), run)
    given, front, labels = plan.problem.dataset, plan.front, plan.problem.dataset.labels
    points = np.flatnonzero(front.cost < plan.baseline.cost)
    unseen = np.concatenate([given.rows.calibrate, given.rows.test])
    before, truth = (
        timeless.paired_differences(plan.tables, front, points, plan.baseline, labels, rows)
        for rows in (given.rows.train, unseen)
    )

    def pick(after: FloatArray, epsilon: float) -> int | None:
        passed = certify_points(front.cost[points], [Guarantee("", epsilon, before, after)], DELTA)
        return min((place for place, _ in passed), key=lambda place: front.cost[points[place]]) if passed else None

    return Population("digits", truth, len(given.rows.calibrate), pick)


def _timed(name: str, spec: CascadeSpec, seed: int) -> Population:
    sys.stderr.write(f"cascade-certificate: {name}\n")
    with tempfile.TemporaryDirectory() as folder:
        run = _run(folder, seed)
        found = search_cascades(fit_study(build_temporal_problem(spec, run), run))
    whole = found.study
    before, *unseen = (_differences(found, cohort) for cohort in (whole.train, whole.calibrate, whole.test))
    cost = np.array([point.cost for point in found.front.points])

    def pick(after: FloatArray, epsilon: float) -> int | None:
        tests = timed.certify_sequence(cost, before, after, epsilon, DELTA)
        return None if tests.last_certified is None else tests.order[tests.last_certified]

    return Population(name, np.concatenate(unseen, axis=1), whole.calibrate.entities, pick)


def _differences(found: SearchResult, cohort: Cohort) -> FloatArray:
    latched = found.baselines.decode_both(cohort, found.study)[0].stage
    points = found.front.points
    return np.array([_compare(found.study, cohort, point.policy, latched) for point in points])


def _compare(study: Study, cohort: Cohort, policy: Policy, baseline_stage: IntArray) -> FloatArray:
    """Compute (P,) how much more a policy loses than a baseline with (n,) stages, by patient of a cohort."""
    arrays = build_policy_arrays(policy, study.parallel)
    trajectories = simulate(cohort.timeline, cohort.scores, arrays, study.problem.transitions)
    stage = trajectories.stage.astype(np.int64)
    return timed.average_by_patient(stage, baseline_stage, cohort.highest, cohort.entity)


def _spec(name: str) -> CascadeSpec:
    spec: CascadeSpec = validate(CascadeSpec, read_document(str(CONFIGS / name)))
    return spec


def _run(folder: str, seed: int) -> Run:
    return Run(directory=RunDir(Path(folder)), engine=LocalEngine(), seed=seed, base=CONFIGS)
