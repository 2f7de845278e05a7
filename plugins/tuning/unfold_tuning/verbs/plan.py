"""The verb ``plan``: how many instances of which type to hold in each stage."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from unfold_tuning.job.build import machines_of, profile_of, stages_of
from unfold_tuning.job.profile import Machine, Profile
from unfold_tuning.job.schedule import Stage
from unfold_tuning.job.trial_logs import resolved
from unfold_tuning.planner.baselines import Goal
from unfold_tuning.planner.planner import (
    Offer,
    affordable,
    cheapest_conceivable,
    finest,
    offers,
    rivals,
    soonest,
)
from unfold_tuning.report import plan as screen
from unfold_tuning.schema.models import ProfileSpec, TuningSpec
from unfold_tuning.simulator.plan_cost import Score
from unfoldkit.api import Metric, Report, Run, dump, fail, fingerprint

PROFILE = "profile.json"
MOST_DRAWS = 20_000_000
"""So many trials, over all simulated runs, of a stage: 160 MB for each of a dozen tables."""
LEAST_RUNS = 1000


def plan(spec: TuningSpec, run: Run) -> Report:
    """Search the plan and lay it beside those of the others."""
    began = run.clock()
    spec, record = resolved(spec, run)
    stages, machines, profile = stages_of(spec.search), machines_of(spec, run), known_profile(spec, run)
    found = offers(stages, profile, machines, spec.on_time, runs_of(spec, stages), run.seed, run.progress)
    run.progress("rivals and bound", 0, 1)
    report = _answer(spec, found, run.seed)
    run.progress("rivals and bound", 1, 1)
    facts = {"prices": {machine.name + " " + machine.market: machine.origin for machine in machines}}
    timed = {"planning_seconds": Metric(run.clock() - began, "s", timed=True)}
    return replace(
        report,
        subtitle=screen.subtitle(spec, stages),
        metrics={**report.metrics, **timed},
        lines=(*report.lines, *record, *_fewer(spec, stages), ("prices", screen.prices(machines))),
        provenance={**report.provenance, **facts},
    )


def known_profile(spec: TuningSpec, run: Run) -> Profile:
    """Return the profile of the spec, or the one that was measured in this run.

    Raises:
        UnfoldError: there is neither.
    """
    if spec.profile is not None:
        return profile_of(spec.profile)
    if run.directory.has(PROFILE, made_from=measured_for(spec)):
        with run.directory.decoding(PROFILE, "a profile") as data:
            return profile_of(ProfileSpec.model_validate_json(data))
    hint = "write profile: {iteration: {mean: 12 s}}" + (", or unfold profile SPEC" if spec.trainable else "")
    what = "no profile: nothing is known about how long an iteration takes"
    if run.directory.has(PROFILE):
        what, hint = "what was measured here was another trainable, or on other nodes", "unfold profile SPEC"
    raise fail(what, key="profile", hint=hint)


def runs_of(spec: TuningSpec, stages: Sequence[Stage]) -> int:
    """Return how many runs are simulated: as many as asked for, or fewer where so many trials would fill the memory."""
    return min(spec.samples, max(LEAST_RUNS, MOST_DRAWS // max(stage.trials for stage in stages)))


def _fewer(spec: TuningSpec, stages: Sequence[Stage]) -> tuple[tuple[str, str], ...]:
    runs = runs_of(spec, stages)
    return () if runs == spec.samples else (("samples", f"{runs:,} simulated runs, as a stage has so many trials"),)


def measured_for(spec: TuningSpec) -> str:
    """Return the fingerprint of what decides measured times: the trainable, its checkpoints and the nodes' sizes."""
    trainable = dump(spec.trainable) if spec.trainable else {}
    trainable.pop("timeout", None)
    sizes = [None if isinstance(item, str) else item.accelerators for item in spec.cloud.instances]
    return fingerprint(trainable, spec.cloud.checkpoint_iters, sizes)


def decision(stages: tuple[Stage, ...], machine: Machine, found: Score, share: float) -> Mapping[str, Any]:
    """Return a plan as data that can be committed, compared and carried out."""
    rows = [
        {
            "trials": stage.trials,
            "iterations": max(group.iters for group in stage.groups),
            "instances": deal.instances,
            "accelerators_per_trial": deal.gang,
            "at_a_time": deal.slots,
        }
        for stage, deal in zip(stages, found.plan, strict=True)
    ]
    return {
        "instance": machine.name,
        "market": machine.market,
        "usd_per_hour": machine.price,
        "stages": rows,
        "cost_usd": round(found.cost, 6),
        "mean_seconds": round(found.mean_seconds, 6),
        "promised_seconds": round(found.promise(share), 6),
    }


def _answer(spec: TuningSpec, found: list[Offer], seed: int) -> Report:
    if spec.deadline is None:
        return _fastest(spec, found, seed)
    picked = finest(found, spec.deadline)
    if picked is None:
        return screen.too_late(spec, found, soonest(found))
    if spec.budget is not None and picked[1].within(spec.budget) < spec.on_time:
        return screen.too_dear(spec, picked, affordable(found, spec.budget, spec.on_time))
    return _chosen(spec, found, picked, Goal(spec.deadline, spec.on_time), seed)


def _fastest(spec: TuningSpec, found: list[Offer], seed: int) -> Report:
    if spec.budget is None:
        raise fail("neither a deadline nor a budget", key="deadline")
    picked = affordable(found, spec.budget, spec.on_time)
    if picked is None:
        least = min((item for offer in found for item in offer.scores), key=lambda item: item.cost)
        return screen.too_poor(spec, least)
    deadline = picked[1].promise(spec.on_time)
    return _chosen(spec, found, picked, Goal(deadline, spec.on_time), seed)


def _chosen(spec: TuningSpec, found: list[Offer], picked: tuple[Offer, Score], goal: Goal, seed: int) -> Report:
    item, plan_ = picked
    others = rivals(item, goal)
    floor = cheapest_conceivable(found, goal)
    # a plan beside the curve may have deals that the bound does not know
    floor = floor if floor <= plan_.cost * (1 + 1e-9) else math.inf
    report = screen.chosen(spec, screen.Chosen(found, item, plan_, goal, others, floor, seed))
    return replace(report, decision=decision(item.model.stages, item.model.machine, plan_, goal.share))
