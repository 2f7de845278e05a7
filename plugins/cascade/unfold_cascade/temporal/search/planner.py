"""Train, search, certify, judge: the figures of a cascade over time on patients that nothing before has looked at."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from unfold_cascade._types import BoolArray
from unfold_cascade.schema.cascade import CascadeSpec
from unfold_cascade.schema.temporal import Alerts, Moves
from unfold_cascade.temporal.evaluation.alerts import Warned, warned
from unfold_cascade.temporal.evaluation.baselines import Rivals, rivals, scaled
from unfold_cascade.temporal.evaluation.bootstrap import Interval, Intervals, intervals, mean_interval
from unfold_cascade.temporal.evaluation.evaluate import Outcome, Quality, at_rate, outcome, quality, scale
from unfold_cascade.temporal.evaluation.monolith import Monolith, decoded, tuned
from unfold_cascade.temporal.models.study import Part, Study, study
from unfold_cascade.temporal.search.alarms import Alarm
from unfold_cascade.temporal.search.candidates import Yard
from unfold_cascade.temporal.search.compose import Front, Point, adequate, cheapest, nearest, parallel, search
from unfold_cascade.temporal.search.select import Choice, Reference, choose
from unfold_cascade.temporal.simulation.policy import Policy
from unfoldkit.api import Run


@dataclass(frozen=True, slots=True)
class Judged:
    """A policy on the test patients: what it did, its figures, and how it warns."""

    name: str
    policy: Policy | None
    done: Outcome
    found: Quality
    warns: Warned


@dataclass(frozen=True, slots=True)
class Searched:
    """What was found on the tuning patients: the monoliths to compare with, and the front of cascades."""

    study: Study
    known: Rivals
    front: Front
    moves: Moves
    alerts: Alerts
    seed: int


@dataclass(frozen=True, slots=True)
class Findings:
    """Everything that a report tells of."""

    study: Study
    front: Front
    rule: Monolith
    choice: Choice
    naive: Choice
    cascade: Judged
    naive_cascade: Judged
    tuned: Judged
    latched: Judged
    argmax: Judged
    single: Judged
    one_stage: Judged
    others: tuple[Judged, ...]
    sure: Intervals
    lead_gain: Interval
    rate: float


def decide(spec: CascadeSpec, run: Run) -> Findings:
    """Fit what is missing, search on the tuning patients, certify on others, judge on yet others."""
    return judge(searched(spec, run), run)


def searched(spec: CascadeSpec, run: Run) -> Searched:
    """Fit what is missing, and search the front on the tuning patients."""
    whole, moves, alerts = study(spec, run), spec.moves or Moves(), spec.alerts or Alerts()
    run.log.info("searching the gates on %d hours", len(whole.train.highest))
    known = rivals(whole, moves, alerts.per_100h)
    yard = Yard(whole.rates, known.latched_quality.bill, spec.cost.by, moves)
    return Searched(whole, known, search(whole, known, yard, alerts), moves, alerts, run.seed)


def swapped(given: Searched) -> Searched:
    """Return the same with the certifying and the test patients in each other's place."""
    whole = given.study
    return replace(given, study=replace(whole, calibrate=whole.test, test=whole.calibrate))


def judge(given: Searched, run: Run) -> Findings:
    """Choose and certify a cascade against each monolith, and judge all of it on the test patients."""
    whole, known = given.study, given.known
    flags, goal, by = parallel(whole), whole.spec.goal, whole.spec.cost.by
    fronts = given.front, replace(given.front, points=given.front.loose)
    fair, naive = (choose(whole, front, _reference(given, place), goal, by) for place, front in enumerate(fronts))
    latched, argmax = (_monolith(given, name, rule) for name, rule in _rules(known))
    cascade = _on_test(given, "cascade", fair.point.policy, flags)
    return Findings(
        study=whole,
        front=given.front,
        rule=known.latched,
        choice=fair,
        naive=naive,
        cascade=cascade,
        naive_cascade=_on_test(given, "cascade", naive.point.policy, flags),
        tuned=_on_test(given, "cascade", cheapest_within(given).policy, flags),
        latched=latched,
        argmax=argmax,
        single=_alone(given, longest=1),
        one_stage=_alone(given, longest=99),
        others=tuple(_rival(given, model) for model in whole.rivals),
        sure=intervals(whole.test, cascade.done, latched.done, whole.rates, run.seed),
        lead_gain=mean_interval(cascade.warns.hours - latched.warns.hours, run.seed),
        rate=given.alerts.per_100h,
    )


def _rules(known: Rivals) -> list[tuple[str, Monolith]]:
    return [("monolith, latched", known.latched), ("monolith, argmax", known.argmax)]


def _rival(given: Searched, model: int) -> Judged:
    """Judge another monolith that remembers the stage, tuned as the one to compare with."""
    whole = given.study
    rule = tuned(whole.train, model, given.moves, whole.rates, given.alerts.per_100h)
    return _monolith(given, whole.models[model].split("/", 1)[1], rule)


def _monolith(given: Searched, name: str, rule: Monolith) -> Judged:
    whole, moves = given.study, given.moves
    scaling = scaled(whole, rule, moves)
    done = decoded(whole.test, rule, moves, whole.rates, scaling)
    exact = at_rate(whole.test, rule.policy, np.array([True]), moves, given.alerts.per_100h) or rule.policy
    at = decoded(whole.test, replace(rule, policy=exact), moves, whole.rates, scaling).alert
    return Judged(name, rule.policy, done, quality(whole.test, done), warned(whole.test, done.alert, at, given.seed))


def cheapest_within(given: Searched) -> Point:
    """Return the cheapest cascade that keeps the loss allowed on the tuning patients: what one would take untested."""
    allowed = given.known.latched_quality.loss + (given.study.spec.goal.max_loss or 0.0)
    within = [point for point in given.front.points if point.loss <= allowed]
    return min(within, key=lambda point: point.cost) if within else given.front.points[-1]


def _reference(given: Searched, place: int) -> Reference:
    parts = (given.study.train, given.study.calibrate)
    answers = [given.known.both(part, given.moves, given.study)[place].answer for part in parts]
    return Reference(answers[0], answers[1])


def _on_test(given: Searched, name: str, policy: Policy, flags: BoolArray) -> Judged:
    """Judge a policy on the test patients; its scores are scaled by what the tuning patients showed."""
    whole, moves, test = given.study, given.moves, given.study.test
    seen = outcome(whole.train, policy, flags, moves, whole.rates)
    scaling = scale(whole.train, policy[-1].chain, seen.walk.asked[:, -1].astype(np.int64))
    done = outcome(test, policy, flags, moves, whole.rates, scaling)
    exact = at_rate(test, policy, flags, moves, given.alerts.per_100h) or policy
    at = outcome(test, exact, flags, moves, whole.rates, scaling).alert
    return Judged(name, policy, done, quality(test, done), warned(test, done.alert, at, given.seed))


def _alone(given: Searched, *, longest: int) -> Judged:
    """Judge the cheapest alarm without any stage before it: a single model, or a cascade within the last stage."""
    whole, base = given.study, given.known.latched_quality
    tried = [one for one in given.front.watch if len(one.step.chain) <= longest]
    best: Alarm = cheapest(adequate(tried, base, given.alerts) or nearest(tried, base))[0]
    names = " → ".join(whole.models[model] for model in best.step.chain)
    return _on_test(given, names, (best.step,), np.array([True]))


def part_names(whole: Study) -> tuple[tuple[str, Part], ...]:
    """Return the parts of the split by name."""
    return ("train", whole.train), ("calibrate", whole.calibrate), ("test", whole.test)
