"""Whether a plan's promises are judged correctly at other sites, and how many local patients its thresholds need.

No second hospital is in the data, so groups of patients stand in for sites: by care unit, and by the hours between the
admissions to hospital and to intensive care, as the data hold no dates. The shipped cascade is trained on patients of
medical units who were admitted directly. Samples of other patients are judged as ``unfold validate`` does, and
compared with all patients of their site. ``unfold plan --recalibrate`` then refits thresholds on more and more
surgical patients, beside models that are trained there.
"""

from __future__ import annotations

import io
import resource
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.records import records
from unfold_cascade._types import IntArray
from unfold_cascade.drift.outcomes import Judgement, Promise, Sums, judge_promises
from unfold_cascade.drift.temporal import sample_new
from unfold_cascade.drift.temporal_recalibration import build_local_study, list_sizes
from unfold_cascade.drift.temporal_validation import observe_promises
from unfold_cascade.schema.cascade import CascadeSpec
from unfold_cascade.temporal.build import build_temporal_problem
from unfold_cascade.temporal.data.readers import read_table
from unfold_cascade.temporal.models.study import fit_study
from unfold_cascade.temporal.problem import PsvSource, TemporalProblem
from unfold_cascade.temporal.report.plan import build_plan_report
from unfold_cascade.temporal.search.planner import solve
from unfold_cascade.temporal.serving.plan_loader import LoadedPlan, load_temporal_plan
from unfoldkit.engines.local import LocalEngine
from unfoldkit.run_context import Run
from unfoldkit.run_directory import RunDir
from unfoldkit.spec.override import apply_settings
from unfoldkit.spec.validate import validate
from unfoldkit.spec.yaml_reader import read_document

SPEC = Path(__file__).parents[1] / "configs" / "cascade" / "sepsis.yaml"
PLANNED, SAME, UNIT, ADMISSION = "planned", "same kind", "other unit", "later admission"
SITES = (SAME, UNIT, ADMISSION)
PATIENTS = {PLANNED: 800, SAME: 1200, UNIT: 2000, ADMISSION: 1200}
QUICK_PATIENTS = {PLANNED: 260, SAME: 250, UNIT: 330, ADMISSION: 250}
SAMPLE_SIZES, SAMPLES, QUICK_SAMPLES = (120, 500), 10, 2
LATE_ADMISSION_H = 6.0
"""Hours in hospital before intensive care from which an admission counts as late."""
GOAL = {"goal.max_loss": "2%", "goal.outcomes": "[{alerts_per_100h: 20}]", "baseline.rivals": "[]"}
QUICK = {"gates.folds": "2", "baseline.params.n_estimators": "30"}
LOCAL_SPLIT = {"data.split.train": "40%", "data.split.calibrate": "10%", "data.split.test": "50%"}
UTILITY_MARGIN = 0.02


@dataclass(frozen=True, slots=True)
class Verdicts:
    """How many promises were judged rightly, wrongly, and not at all on samples of one site."""

    right: int = 0
    wrong: int = 0
    undecided: int = 0

    def __add__(self, other: Verdicts) -> Verdicts:
        return Verdicts(self.right + other.right, self.wrong + other.wrong, self.undecided + other.undecided)


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalResult:
    """What recalibration reaches on local test patients, and what models trained there reach.

    Attributes:
        sizes: Rows of the report's table: patients, loss, utility, alerts, utility of the monolith, saving.
        utility: Of a cascade of local models.
        baseline_utility: Of a local monolith.
        septic: Test patients with sepsis.
    """

    sizes: list[list[Any]]
    utility: float
    baseline_utility: float
    septic: int


def run(quick: bool, seed: int, data: Path) -> dict[str, Any]:
    """Train at one site, validate at three, and recalibrate at one of them.

    Args:
        quick: Few patients, samples and trees.
        seed: Of splits and samples.
        data: Folder that holds ``physionet2019``.
    """
    patients, samples = (QUICK_PATIENTS, QUICK_SAMPLES) if quick else (PATIENTS, SAMPLES)
    settings = GOAL | (QUICK if quick else {})
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        counts = _extract_sites(records(data), base, patients)
        _log("training")
        plan, here = _train_plan(base, seed, settings)
        verdicts, rows = {}, []
        for site in SITES:
            verdicts[site] = Verdicts()
            for row, judged in _judge_site(plan, here, base / f"{site}.tar", samples):
                rows.append([site, counts[site], *row])
                verdicts[site] += judged
        _log("recalibrating")
        local = _recalibrate(plan, here, base / f"{UNIT}.tar", seed, settings)
    return _summarize(verdicts, rows, local, counts)


def _log(text: str) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF).ru_utime + resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    sys.stderr.write(f"cascade-external: {text} ({used:.0f} s of processor time so far)\n")


def _extract_sites(archive: Path, base: Path, patients: dict[str, int]) -> dict[str, int]:
    """Write an archive for each site, of its first patients by number; return how many each has."""
    counts = dict.fromkeys(patients, 0)
    with ExitStack() as stack:
        writers = {site: stack.enter_context(tarfile.open(base / f"{site}.tar", "w")) for site in patients}
        members = stack.enter_context(tarfile.open(archive))
        for member in members:
            file = members.extractfile(member) if member.name.endswith(".psv") else None
            content = b"" if file is None else file.read()
            site = next((each for each in _list_sites(content) if counts[each] < patients[each]), None)
            if site is not None:
                counts[site] += 1
                writers[site].addfile(member, io.BytesIO(content))
            if all(counts[each] >= patients[each] for each in patients):
                break
    return counts


def _list_sites(content: bytes) -> tuple[str, ...]:
    """List the sites that a patient may belong to; none where its unit is unknown."""
    if not content:
        return ()
    header, first = (line.split("|") for line in content.decode().splitlines()[:2])
    row = dict(zip(header, first, strict=True))
    is_late = float(row["HospAdmTime"]) <= -LATE_ADMISSION_H
    if row["Unit1"] == "1":
        return (ADMISSION,) if is_late else (PLANNED, SAME)
    return (UNIT,) if row["Unit2"] == "1" else ()


def _build_problem(archive: Path, run: Run, settings: dict[str, str]) -> TemporalProblem:
    changes = [f"{key}={value}" for key, value in {"data.path": str(archive), **settings}.items()]
    return build_temporal_problem(validate(CascadeSpec, apply_settings(read_document(str(SPEC)), changes)), run)


def _open_run(folder: Path, seed: int) -> Run:
    return Run(directory=RunDir(folder), engine=LocalEngine(1), seed=seed, base=SPEC.parent)


def _train_plan(base: Path, seed: int, settings: dict[str, str]) -> tuple[LoadedPlan, Run]:
    here = _open_run(base / "run", seed)
    problem = _build_problem(base / f"{PLANNED}.tar", here, settings)
    report = build_plan_report(solve(fit_study(problem, here)), "train", here.directory)
    return load_temporal_plan(problem, here, {"seed": seed, "decision": report.decision}), here


def _judge_site(plan: LoadedPlan, run: Run, archive: Path, samples: int) -> Iterator[tuple[list[Any], Verdicts]]:
    """Judge the promises of a plan on samples of a site, and compare with all its patients."""
    _log(f"validating: {archive.stem}")
    table = read_table(PsvSource(str(archive)), run)
    promises = observe_promises(plan, table, sample_new(plan, table, run))
    patients, confidence = len(table.ids), plan.problem.goal.confidence
    for size in (each for each in SAMPLE_SIZES if 2 * each <= patients):
        judged = []
        for number in range(samples):
            rows = np.random.default_rng([run.seed, size, number]).permutation(patients)[:size]
            sampled = [_select_patients(promise, rows) for promise in promises]
            judged.append(judge_promises(sampled, confidence, run.seed + number))
        for promise, *judgements in zip(promises, *judged, strict=True):
            truths = [_list_true_states(each, promise.now.value) for each in judgements]
            right = sum(each.state in truth for each, truth in zip(judgements, truths, strict=True))
            undecided = sum(each.state == "undecided" for each in judgements)
            basis = "estimated" if promise.limit is None else "certified"
            verdicts = Verdicts(right, samples - right - undecided, undecided)
            truth = " or ".join(sorted({state for each in truths for state in each}, reverse=True))
            row = [size, promise.name, basis, promise.now.value, truth]
            yield [*row, verdicts.right, verdicts.wrong, verdicts.undecided], verdicts


def _select_patients(promise: Promise, rows: IntArray) -> Promise:
    now = promise.now
    return replace(promise, now=Sums(numerator=now.numerator[rows], denominator=now.denominator[rows]))


def _list_true_states(judgement: Judgement, value: float) -> tuple[str, ...]:
    """List the states that are right for a site with this value; within the margin of an estimate both are."""
    promise, sign = judgement.promise, 1.0 if judgement.promise.higher_is_better else -1.0
    worst = min(sign * end for end in judgement.before)
    margin = 0.0 if promise.limit is not None else promise.margin
    if promise.is_relative and promise.before is not None:
        margin *= abs(promise.before.value)
    if sign * value >= worst:
        return ("kept",)
    return ("broken",) if sign * value < worst - margin else ("kept", "broken")


def _recalibrate(plan: LoadedPlan, run: Run, archive: Path, seed: int, settings: dict[str, str]) -> LocalResult:
    """Refit thresholds on more and more local patients, and train all models on them; both on the same others.

    Raises:
        ValueError: the two are not measured on the same patients.
    """
    there = _open_run(archive.parent / "local-run", seed)
    problem = _build_problem(archive, there, settings | LOCAL_SPLIT)
    moved = replace(plan.problem, source=problem.source)
    study = build_local_study(moved, plan, run, read_table(problem.source, run), problem.split)
    sizes = [list(row) for row in list_sizes(plan, solve(study))]
    _log("training at the other site")
    local = fit_study(problem, there)
    if not np.array_equal(local.test.highest, study.test.highest):
        raise ValueError("the local models and the recalibrated ones are measured on other patients")
    solution = solve(local)
    final = len(problem.stages)
    reached = np.maximum.reduceat(local.test.highest, local.test.timeline.starts[:-1])
    return LocalResult(
        sizes=sizes,
        utility=solution.tuned_only.quality.utility,
        baseline_utility=solution.latched.quality.utility,
        septic=int((reached == final).sum()),
    )


def _find_enough(sizes: list[list[Any]], column: int, utility: float) -> float | None:
    """Find the smallest size from which on no utility is lower than ``utility`` by more than the margin."""
    enough = None
    for row in reversed(sizes):
        if row[column] < utility - UTILITY_MARGIN:
            break
        enough = float(row[0])
    return enough


def _summarize(
    verdicts: dict[str, Verdicts], rows: list[list[Any]], local: LocalResult, counts: dict[str, int]
) -> dict[str, Any]:
    total = sum(verdicts.values(), Verdicts())
    decided = total.right + total.wrong
    lowest = [100 * each.right / (each.right + each.wrong) for each in verdicts.values() if each.right + each.wrong]
    broken = [row for row in rows if row[6] == "broken"]
    metrics: dict[str, float | None] = {
        "told_right_percent": 100 * total.right / decided if decided else None,
        "correct_percent_min": min(lowest, default=None),
        "undecided_percent": 100 * total.undecided / max(decided + total.undecided, 1),
        "promises_judged": float(decided + total.undecided),
        "truly_broken": float(len({(row[0], row[3]) for row in broken})),
        "utility_of_plan": local.sizes[0][2],
        "utility_recalibrated": local.sizes[-1][2],
        "utility_local": local.utility,
        "utility_local_monolith": local.baseline_utility,
        "patients_to_restore": _find_enough(local.sizes, 2, local.utility),
        "local_patients_needed_monolith": _find_enough(local.sizes, 4, local.baseline_utility),
    }
    local_row = ["local models", None, local.utility, None, local.baseline_utility, None]
    by_site = [[site, counts[site], each.right, each.wrong, each.undecided] for site, each in verdicts.items()]
    return {
        "metrics": metrics,
        "aims": {"told_right_percent": "100", "correct_percent_min": "100"},
        "tables": [
            {"name": "sites", "columns": ["site", "patients", "right", "wrong", "undecided"], "rows": by_site},
            {
                "name": "promises",
                "columns": [
                    "site", "patients", "sample", "outcome", "basis", "value of the site", "truth",
                    "right", "wrong", "undecided",
                ],
                "rows": rows,
            },
            {
                "name": "what n local patients buy",
                "columns": [
                    "patients to tune", "loss, points", "utility", "alerts /100 h", "utility of the monolith", "saving",
                ],
                "rows": [*local.sizes, local_row],
            },
        ],
        "notes": [
            "patients: " + ", ".join(f"{count:,} {site}" for site, count in counts.items()) + "; set A, by number",
            f"later admission: at least {LATE_ADMISSION_H:g} h in hospital before intensive care; no dates are known",
            "a state is right if it is the one that all patients of the site show; undecided ones are counted apart",
            "an estimated outcome between the plan's interval and its margin counts as kept and as broken",
            f"local test patients with sepsis: {local.septic}; the cascade is the cheapest within the loss in tuning",
            "patients_to_restore: from this size on the utility is within .02 of that of local models",
        ],
    }  # fmt: skip
