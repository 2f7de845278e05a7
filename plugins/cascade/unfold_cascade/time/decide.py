"""Train, search, certify, judge: the figures of a cascade over time on patients that nothing before has looked at."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from unfold_cascade.arrays import BoolArray, FloatArray
from unfold_cascade.spec import CascadeSpec
from unfold_cascade.time import measures
from unfold_cascade.time.alarms import Alarm
from unfold_cascade.time.choose import Choice, Reference, choose
from unfold_cascade.time.intervals import Interval, Intervals, intervals, lead_interval
from unfold_cascade.time.judge import Outcome, Quality, at_rate, outcome, quality, scale
from unfold_cascade.time.keys import Alerts, Moves
from unfold_cascade.time.monolith import decoded
from unfold_cascade.time.policy import Policy
from unfold_cascade.time.rivals import Rivals, rivals
from unfold_cascade.time.search import Front, Point, adequate, cheapest, nearest, parallel, search
from unfold_cascade.time.steps import Yard
from unfold_cascade.time.study import Part, Study, study
from unfoldkit.api import Run


@dataclass(frozen=True, slots=True)
class Judged:
    """A policy on the test patients."""

    name: str
    policy: Policy | None
    done: Outcome
    found: Quality


@dataclass(frozen=True, slots=True)
class Lead:
    """Mean hours of warning at exactly the same rate of alerts, the gain over the monolith, and the shares caught."""

    own: float
    base: float
    interval: Interval
    caught: float
    caught_base: float


@dataclass(frozen=True, slots=True)
class Searched:
    """What was found on the tuning patients: the monoliths to compare with, and the front of cascades."""

    study: Study
    known: Rivals
    front: Front
    moves: Moves
    alerts: Alerts


@dataclass(frozen=True, slots=True)
class Findings:
    """Everything that a report tells of."""

    study: Study
    front: Front
    choice: Choice
    naive: Choice
    cascade: Judged
    naive_cascade: Judged
    tuned: Judged
    latched: Judged
    argmax: Judged
    single: Judged
    one_stage: Judged
    sure: Intervals
    lead: Lead
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
    return Searched(whole, known, search(whole, known, yard, alerts), moves, alerts)


def swapped(given: Searched) -> Searched:
    """Return the same with the certifying and the test patients in each other's place."""
    whole = given.study
    return replace(given, study=replace(whole, calibrate=whole.test, test=whole.calibrate))


def judge(given: Searched, run: Run) -> Findings:
    """Choose and certify a cascade against each monolith, and judge all of it on the test patients."""
    whole, known, moves = given.study, given.known, given.moves
    flags, goal, by = parallel(whole), whole.spec.goal, whole.spec.cost.by
    fair, naive = (choose(whole, given.front, _reference(given, place), goal, by) for place in (0, 1))
    latched, argmax = known.both(whole.test, moves, whole)
    cascade = _on_test(whole, "cascade", fair.point.policy, flags, moves)
    return Findings(
        study=whole,
        front=given.front,
        choice=fair,
        naive=naive,
        cascade=cascade,
        naive_cascade=_on_test(whole, "cascade", naive.point.policy, flags, moves),
        tuned=_on_test(whole, "cascade", cheapest_within(given).policy, flags, moves),
        latched=Judged("monolith, latched", known.latched.policy, latched, quality(whole.test, latched)),
        argmax=Judged("monolith, argmax", known.argmax.policy, argmax, quality(whole.test, argmax)),
        single=_alone(given, longest=1),
        one_stage=_alone(given, longest=99),
        sure=intervals(whole.test, cascade.done, latched, whole.rates, run.seed),
        lead=_lead(given, fair.point.policy, flags, run.seed),
        rate=given.alerts.per_100h,
    )


def cheapest_within(given: Searched) -> Point:
    """Return the cheapest cascade that keeps the loss allowed on the tuning patients: what one would take untested."""
    allowed = given.known.latched_quality.loss + (given.study.spec.goal.max_loss or 0.0)
    within = [point for point in given.front.points if point.loss <= allowed]
    return min(within, key=lambda point: point.cost) if within else given.front.points[-1]


def _reference(given: Searched, place: int) -> Reference:
    parts = (given.study.train, given.study.calibrate)
    answers = [given.known.both(part, given.moves, given.study)[place].answer for part in parts]
    return Reference(answers[0], answers[1])


def _on_test(whole: Study, name: str, policy: Policy, flags: BoolArray, moves: Moves) -> Judged:
    """Judge a policy on the test patients; its scores are scaled by what the tuning patients showed."""
    tuned = outcome(whole.train, policy, flags, moves, whole.rates)
    scaling = scale(whole.train, policy[-1].chain, tuned.walk.asked[:, -1].astype(np.int64))
    done = outcome(whole.test, policy, flags, moves, whole.rates, scaling)
    return Judged(name, policy, done, quality(whole.test, done))


def _alone(given: Searched, *, longest: int) -> Judged:
    """Judge the cheapest alarm without any stage before it: a single model, or a cascade within the last stage."""
    whole, base = given.study, given.known.latched_quality
    tried = [one for one in given.front.watch if len(one.step.chain) <= longest]
    best: Alarm = cheapest(adequate(tried, base, given.alerts) or nearest(tried, base))[0]
    names = " → ".join(whole.models[model] for model in best.step.chain)
    return _on_test(whole, names, (best.step,), np.array([True]), given.moves)


def _lead(given: Searched, policy: Policy, flags: BoolArray, seed: int) -> Lead:
    """Compare warnings at exactly the same rate on the test patients: both final cuts are set there, alike."""
    whole, known, moves, rate = given.study, given.known, given.moves, given.alerts.per_100h
    test = whole.test
    exact = at_rate(test, policy, flags, moves, rate) or policy
    own = outcome(test, exact, flags, moves, whole.rates).alert
    base = at_rate(test, known.latched.policy, np.array([True]), moves, rate) or known.latched.policy
    other = decoded(test, replace(known.latched, policy=base), moves, whole.rates).alert
    hours = [measures.lead_hours(alert, test.events, test.clock.starts) for alert in (own, other)]
    means = [_mean(values) for values in hours]
    caught = [_mean((values > 0).astype(np.float64)) for values in hours]
    return Lead(means[0], means[1], lead_interval(hours[0] - hours[1], seed), caught[0], caught[1])


def _mean(values: FloatArray) -> float:
    return float(values.mean()) if values.size else float("nan")


def part_names(whole: Study) -> tuple[tuple[str, Part], ...]:
    """Return the parts of the split by name."""
    return ("train", whole.train), ("calibrate", whole.calibrate), ("test", whole.test)
