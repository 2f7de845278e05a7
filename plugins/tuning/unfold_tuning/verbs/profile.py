"""The verb ``profile``: times of the real trainable on this machine's nodes."""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from unfold_tuning.cluster.local import Cluster
from unfold_tuning.cluster.provider import Own
from unfold_tuning.cluster.ray_clusters import cluster_of
from unfold_tuning.executor.watchdog import Quiet
from unfold_tuning.format import counted, span
from unfold_tuning.job.build import machines_of, profile_of
from unfold_tuning.job.profile import Machine, Profile
from unfold_tuning.schema.models import MOST_VARIATION, ProfileSpec, TuningSpec
from unfold_tuning.trial.trainable import SETS, Work, sample
from unfold_tuning.trial.worker import Job, Told
from unfold_tuning.verbs.plan import PROFILE, measured_for
from unfoldkit.api import Column, Metric, Report, Run, Table, Verdict, broken, fail

TRIALS = 8
SPARE = 8
ITERS = 3


@dataclass(frozen=True, slots=True)
class Measured:
    """Seconds of steps by (gang, trial), of nodes' starts, of trials' starts beside their steps, of checkpoints.

    ``failed`` says of the draws whose function raised what it said; others took their places.
    """

    steps: dict[tuple[int, int], list[float]]
    startups: list[float]
    starts: list[float]
    saves: list[float]
    failed: dict[int, str] = field(default_factory=dict)


def profile(spec: TuningSpec, run: Run) -> Report:
    """Measure iteration time and its spread, speed-up, start-up and the start of a trial; keep them for ``plan``."""
    work = work_of(spec, run)
    machine = machines_of(spec, run)[0]
    with tempfile.TemporaryDirectory() as folder:
        found = measure(work, spec, machine, Path(folder), run)
    told = summary(found)
    made = profile_of(ProfileSpec.model_validate_json(json.dumps(told)))
    run.directory.write(PROFILE, json.dumps(told, indent=1).encode(), made_from=measured_for(spec))
    return _report(spec, made, found)


def work_of(spec: TuningSpec, run: Run) -> Work:
    """Return what workers are given.

    Raises:
        UnfoldError: nothing can be trained, the data is not there, or the spec's code is not allowed.
    """
    trainable = spec.trainable
    if trainable is None:
        raise fail("nothing to train", key="trainable", hint="write trainable: {estimator: xgboost, data: digits}")
    if trainable.function is not None and not run.allow_code:
        raise fail(f"the spec names code: {trainable.function}", key="trainable.function", hint="--allow-code runs it")
    if trainable.estimator == "torch-mlp" and importlib.util.find_spec("torch") is None:
        raise fail("torch-mlp needs torch", key="trainable.estimator", hint="pip install 'unfoldkit[torch]'")
    path = None if trainable.data in (None, *SETS) else run.path(str(trainable.data), key="trainable.data")
    return Work(trainable, path, run.seed)


def measure(work: Work, spec: TuningSpec, machine: Machine, folder: Path, run: Run) -> Measured:
    """Run a few trials at every gang size, on a node of their own."""
    rng = np.random.default_rng([run.seed, 31])
    configs = [sample(work.trainable.space, rng) for _ in range(TRIALS + SPARE)]
    found = Measured({}, [], [], [])
    for gang in _gangs(machine.accelerators):
        cluster = cluster_of(spec, run, work, machine, Own(_nothing, _nothing))
        try:
            cluster.open()
            began = run.clock()
            cluster.resize(1, _idle)
            found.startups.append(run.clock() - began)
            every = spec.cloud.checkpoint_iters
            jobs = [
                Job(index, config, 0, ITERS * every, every, gang, run.seed, folder / f"{gang}-{index}")
                for index, config in enumerate(configs)
                if index not in found.failed
            ]
            _play(cluster, jobs, found, run, work.trainable.timeout)
        finally:
            cluster.close()
        run.progress("profile", gang, machine.accelerators)
    return found


def summary(found: Measured) -> dict[str, Any]:
    """Return the measured profile in the form of a spec's."""
    single = {trial: values for (gang, trial), values in found.steps.items() if gang == 1}
    means = np.array([np.mean(values) for values in single.values()])
    mean = float(means.mean())
    within = float(np.mean([np.std(values) for values in single.values()]))
    gangs = sorted({gang for gang, _ in found.steps})
    by_gang = {g: float(np.mean([np.mean(v) for (gang, _), v in found.steps.items() if gang == g])) for g in gangs}
    return {
        "iteration": {"mean": _time(mean), "std": _time(within)},
        "speedup": {gang: round(mean / by_gang[gang], 4) if gang > 1 else 1.0 for gang in gangs},
        "provision": {"mean": "0 s", "std": "0 s"},
        "startup": {"mean": _time(float(np.mean(found.startups))), "std": _time(float(np.std(found.startups)))},
        "start": {"mean": _time(float(np.mean(found.starts))), "std": _time(float(np.std(found.starts)))},
        "sync": {"mean": "0.05 s", "std": "0 s"},
        "trial_spread": round(min(MOST_VARIATION, float(means.std() / mean)), 4),
        "error": 0.1,
    }


def _play(cluster: Cluster, jobs: Sequence[Job], found: Measured, run: Run, timeout: float | None) -> None:
    """Run the first jobs to their ends; those after them take the places of those that fail."""
    waiting, spare, began = list(jobs[:TRIALS]), list(jobs[TRIALS:]), {}
    spent = dict.fromkeys((job.trial for job in jobs), 0.0)
    open_: dict[int, Job] = {}
    quiet = Quiet(run.clock)
    while waiting or open_:
        while waiting and (node := cluster.free(waiting[0].gang)):
            job = waiting.pop(0)
            open_[job.trial], began[job.trial] = job, run.clock()
            quiet.heard(job.trial)
            cluster.start(node, job)
        _patience(quiet, open_, timeout)
        for event in cluster.events(1.0):
            told = _there(event.told)
            job = open_[told.trial]
            quiet.heard(job.trial)
            if told.what == "failed":
                _skipped(job, told.error, found, run)
                waiting += [spare.pop(0)] if spare else []
            else:
                spent[told.trial] += told.seconds
                _noted(job, told, found)
            if told.what == "failed" or told.iters >= job.target:
                cluster.finished(told.trial)  # its place is not free before
                del open_[told.trial]
            if told.what != "failed" and told.iters >= job.target:
                found.starts.append(max(0.0, run.clock() - began[told.trial] - spent[told.trial]))
    _some(jobs[0].gang, found)


def _patience(quiet: Quiet, jobs: Iterable[int], timeout: float | None) -> None:
    if timeout is not None and any(quiet.waited(trial) > timeout for trial in jobs):
        raise fail(f"a trial came to no checkpoint in {span(timeout)}", key="trainable.timeout")


def _noted(job: Job, told: Told, found: Measured) -> None:
    found.saves.append(told.saved)
    found.steps.setdefault((job.gang, told.trial), []).append(told.seconds / job.every)


def _skipped(job: Job, error: str, found: Measured, run: Run) -> None:
    """Forget a draw whose function raises: its half-run steps would count as a trial."""
    found.failed[job.trial] = error
    found.steps.pop((job.gang, job.trial), None)
    run.log.warning("the profile goes on without %s: %s", job.config, error)


def _some(gang: int, found: Measured) -> None:
    if not any(size == gang for size, _ in found.steps):
        what = f"the trainable failed for all of {counted(len(found.failed), 'configuration')}"
        raise fail(f"{what}; the last said: {list(found.failed.values())[-1]}", key="trainable")


def _there(told: Told | None) -> Told:
    if told is None:
        raise broken("a worker died while it was measured", hint="out of memory?")
    if told.what == "unkept":
        raise fail(told.error)
    return told


def _gangs(accelerators: int) -> list[int]:
    sizes = [1]
    while sizes[-1] * 2 <= accelerators:
        sizes.append(sizes[-1] * 2)
    return sizes


def _nothing(_node: str, _now: float) -> None:
    return None


def _idle() -> None:
    return None


def _time(seconds: float) -> str:
    return f"{seconds * 1000:.4f} ms"


def _report(spec: TuningSpec, made: Profile, found: Measured) -> Report:
    rows = tuple((gang, made.iteration.mean / gain, gain) for gang, gain in made.speedup)
    columns = (Column("accelerators"), Column("iteration", "s", 4, timed=True), Column("speed-up", "", 2, timed=True))
    startup, trials = float(np.mean(found.startups)), len({trial for _, trial in found.steps})
    metrics = {
        "iteration_s": Metric(made.iteration.mean, "s", timed=True),
        "iteration_std_s": Metric(made.iteration.std, "s", timed=True),
        "startup_s": Metric(startup, "s", timed=True),
        "trial_start_s": Metric(float(np.mean(found.starts)), "s", timed=True),
        "checkpoint_s": Metric(float(np.mean(found.saves)), "s", timed=True),
        "trial_spread": Metric(made.trial_cv, timed=True),
        "steps": Metric(sum(len(values) for values in found.steps.values())),
    }
    headline = f"an iteration takes {span(made.iteration.mean)} on one accelerator · kept for unfold plan"
    played = f"{counted(trials, 'trial')} of {ITERS} checkpoints"
    return Report(
        "tuning", "profile", spec.name, Verdict.YES, headline, (played,), metrics,
        (Table("speed-up", columns, rows),), lines=_left_out(found), next="unfold plan SPEC",
    )  # fmt: skip


def _left_out(found: Measured) -> tuple[tuple[str, str], ...]:
    if not found.failed:
        return ()
    last = list(found.failed.values())[-1]
    return (("left out", f"{counted(len(found.failed), 'configuration')} failed; the last said: {last}"),)
