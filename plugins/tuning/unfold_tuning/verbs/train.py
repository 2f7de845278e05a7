"""The verb ``train``: carry the plan out on this machine, and lay what happened beside what was predicted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from unfold_tuning.cluster.ray_clusters import cluster_of, fleet_of
from unfold_tuning.executor.deadline import MOST
from unfold_tuning.executor.executor import Executor, Task
from unfold_tuning.format import counted
from unfold_tuning.job.allocation import Deal, Plan, slots
from unfold_tuning.job.build import machines_of, stages_of
from unfold_tuning.job.profile import Machine, Profile
from unfold_tuning.job.schedule import Stage
from unfold_tuning.job.trial_logs import resolved
from unfold_tuning.planner.planner import affordable, finest, offers, soonest
from unfold_tuning.report import run as results
from unfold_tuning.report.placement_spec import placed
from unfold_tuning.report.plan import too_late, too_poor
from unfold_tuning.schema.models import Trainable, TuningSpec
from unfold_tuning.simulator.execution_model import model
from unfold_tuning.simulator.plan_cost import Score, score
from unfold_tuning.trial.estimators import ROUNDS_KEY
from unfold_tuning.trial.ledger import Trial, opened
from unfold_tuning.trial.worker import state_file
from unfold_tuning.verbs.plan import PROFILE, decision, known_profile, measured_for, runs_of
from unfold_tuning.verbs.profile import profile as measured
from unfold_tuning.verbs.profile import work_of
from unfoldkit.api import Report, Run, dump, fail, fingerprint
from unfoldkit.errors import show
from unfoldkit.safe_io.files import parse_object

LEDGER = "ledger.sqlite"
DECISION = "carried-out.json"
WINNER = "winner.json"
PLACED = "placement.yaml"


def train(spec: TuningSpec, run: Run) -> Report:
    """Run the trials, stage by stage; a run that was killed goes on where it was, with its spend."""
    work = work_of(spec, run)
    _carried_out(spec)
    spec, _ = resolved(spec, run)
    if spec.profile is None and not run.directory.has(PROFILE, made_from=measured_for(spec)):
        measured(spec, run)
    stages, machines, profile = stages_of(spec.search), machines_of(spec, run), known_profile(spec, run)
    # a higher cap, a later deadline and a larger cluster go on from what was done and spent under the others
    kept = dump(spec)
    kept |= {"budget": None, "deadline": None, "cloud": {**kept["cloud"], "limit": None}}
    kept["trainable"].pop("timeout", None)
    made_from = fingerprint(kept, run.seed)
    chosen = _chosen(spec, run, stages, machines, profile, made_from)
    if isinstance(chosen, Report):
        return replace(chosen, verb="train")
    machine, plan, guess = chosen
    task = Task(
        stages=stages,
        plan=plan,
        machine=machine,
        profile=profile,
        trainable=work.trainable,
        folder=run.directory.path / "trials",
        seed=run.seed,
        every=spec.cloud.checkpoint_iters,
        deadline=spec.deadline,
        budget=spec.budget,
        share=spec.on_time,
        progress=run.progress,
        log=run.log,
    )
    with opened(run.directory.path / LEDGER, machine, made_from) as ledger:
        fleet = fleet_of(spec, run, machine, ledger)
        ledger.once_more()
        ledger.close_parts()
        fleet.recover()
        ledger.close_open()
        cluster = cluster_of(spec, run, work, machine, fleet)
        outcome = Executor(task, ledger, cluster).run()
        run.directory.write(PLACED, placed(spec, ledger, machine), made_from=made_from)
        if outcome.winner is not None:
            run.directory.write(WINNER, winner(spec, task, outcome.winner), made_from=made_from)
        return results.report(spec, task, ledger, outcome, guess)


def winner(spec: TuningSpec, task: Task, best: Trial) -> bytes:
    """Return the best trial as the file that other kinds read; see the page on run folders."""
    trainable = spec.trainable or Trainable()
    last = max(group.done + group.iters for group in task.stages[-1].groups)
    passes = {ROUNDS_KEY[trainable.estimator]: best.iters * trainable.rounds} if trainable.estimator else {}
    told = {
        "schema": "unfoldkit.winner/1",
        "estimator": trainable.estimator,
        "function": trainable.function,
        "data": trainable.data,
        "params": {**best.config, **passes},
        "metric": trainable.measured,
        "value": None if best.metric is None else trainable.shown(best.metric),
        "iterations": best.iters,
        "finished": best.iters >= last,
        "seed": task.seed,
        "state": f"trials/{state_file(Path(f'trial-{best.id:05d}'), best.iters)}",
    }
    return json.dumps(told, indent=1).encode()


def _carried_out(spec: TuningSpec) -> None:
    if spec.cloud.provider not in ("aws", "local"):
        hint = "unfold plan works; write provider: local to train on this machine"
        raise fail(f"nothing here starts instances of {spec.cloud.provider}", key="cloud.provider", hint=hint)


def _chosen(
    spec: TuningSpec, run: Run, stages: tuple[Stage, ...], machines: list[Machine], profile: Profile, made_from: str
) -> tuple[Machine, Plan, Score] | Report:
    """Return the plan of an earlier attempt, of ``--plan``, or a new one; or the report that there is none."""
    stored: Mapping[str, Any] = (run.options.get("plan") or {}).get("decision") or {}
    begun = run.directory.has(DECISION, made_from=made_from)
    if begun:
        with run.directory.decoding(DECISION, "a plan") as data:
            stored = parse_object(data)
    if stored:
        # a run that goes on under a smaller limit is planned again for it
        machine, plan = _from_decision(stored, stages, machines, MOST if begun else spec.cloud.limit)
        _measured(plan, machine, profile)
        _fitting(plan, machine)
        return machine, plan, score(model(stages, profile, machine, runs_of(spec, stages), run.seed), plan)
    found = offers(stages, profile, machines, spec.on_time, runs_of(spec, stages), run.seed, run.progress)
    picked = (
        finest(found, spec.deadline)
        if spec.deadline is not None
        else affordable(found, spec.budget or 0.0, spec.on_time)
    )
    if picked is None:
        least = min((item for offer in found for item in offer.scores), key=lambda item: item.cost)
        return too_late(spec, found, soonest(found)) if spec.deadline is not None else too_poor(spec, least)
    machine = picked[0].model.machine
    data = json.dumps(decision(stages, machine, picked[1], spec.on_time), indent=1).encode()
    run.directory.write(DECISION, data, made_from=made_from)
    return machine, picked[1].plan, picked[1]


def _measured(plan: Plan, machine: Machine, profile: Profile) -> None:
    missing = sorted({deal.gang for deal in plan if not profile.knows(deal.gang, machine.accelerators)})
    if missing:
        what = f"the plan gives a trial {missing[0]} accelerators, of which the profile has no speed-up"
        raise fail(what, key="profile.speedup", hint="measure it, or plan again")


def _fitting(plan: Plan, machine: Machine) -> None:
    for index, deal in enumerate(plan):
        if not deal.slots:
            held = f"{counted(deal.instances, 'instance')} of {machine.accelerators}"
            what = f"no trial of {counted(deal.gang, 'accelerator')} fits on {held}"
            raise fail(what, key=f"decision.stages[{index}].accelerators_per_trial")


def _from_decision(
    stored: Mapping[str, Any], stages: tuple[Stage, ...], machines: list[Machine], most: int
) -> tuple[Machine, Plan]:
    rows = stored.get("stages") or ()
    if [row.get("trials") for row in rows] != [stage.trials for stage in stages]:
        raise fail("the plan is for other stages than the spec's", hint="plan again")
    fitting = [m for m in machines if (m.name, m.market) == (stored.get("instance"), stored.get("market"))]
    if not fitting:
        raise fail(f"the plan is for {stored.get('instance')}, which the spec does not name", key="cloud.instances")
    each = fitting[0].accelerators
    return fitting[0], tuple(_deal(row, f"decision.stages[{index}]", each, most) for index, row in enumerate(rows))


def _deal(row: Mapping[str, Any], key: str, accelerators: int, most: int) -> Deal:
    """Return a stage of a plan, which may be edited: how many trials run at a time follows from the rest."""
    count, gang = (_whole(row.get(name), f"{key}.{name}") for name in ("instances", "accelerators_per_trial"))
    if count > most:
        raise fail(f"{counted(count, 'instance')}, and cloud.limit is {most}", key=f"{key}.instances")
    return Deal(count, gang, slots(count, gang, accelerators))


def _whole(value: object, key: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    raise fail(f"a whole number of at least 1, not {show(value)}", key=key)
