"""Carries a plan out, stage by stage: grow or shrink, train, rank, and go on after whatever happens.

The ledger is the only memory. What it does not hold did not happen, so that a run killed at any moment goes on from
the last checkpoint of each trial, with its spend.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from unfold_tuning.cluster.local import TICK, Cluster, Event
from unfold_tuning.executor.deadline import Pace, faster_by, ways_out
from unfold_tuning.executor.watchdog import STRANGE, Quiet
from unfold_tuning.format import dollars, span
from unfold_tuning.job.allocation import Deal, Plan
from unfold_tuning.job.profile import Machine, Profile
from unfold_tuning.job.schedule import Group, Stage
from unfold_tuning.planner.replan import Belief, believed, expected, leftover, noise_of, paces_of, plan_again, regrown
from unfold_tuning.schema.models import Trainable
from unfold_tuning.simulator.execution_model import Model, Paces, model
from unfold_tuning.trial.ledger import Ledger, Trial
from unfold_tuning.trial.trainable import sample
from unfold_tuning.trial.worker import Job, state_file, whole
from unfoldkit.api import fail

TRIES = 3
LOSSES = 12
"""So many spot instances lost without a checkpoint between, and it is the trial that ends them."""
REPLAN_SAMPLES = 1000
TELL_EVERY = 2.0


@dataclass(frozen=True, slots=True)
class Task:
    """A plan and everything that carrying it out needs. ``deadline`` is in seconds from the start of the run."""

    stages: tuple[Stage, ...]
    plan: Plan
    machine: Machine
    profile: Profile
    trainable: Trainable
    folder: Path
    seed: int
    every: int
    deadline: float | None = None
    budget: float | None = None
    share: float = 0.95
    replan: bool = True
    wall: Callable[[], float] = time.time
    progress: Callable[[str, int, int], None] = lambda _step, _done, _total: None
    log: logging.Logger = field(default_factory=lambda: logging.getLogger("unfoldkit"))


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it ended: ``stopped`` says why it did not run to its end; ``plans`` are the deals that were carried out."""

    winner: Trial | None
    began: float
    ended: float
    spent: float
    stopped: str
    plan: Plan
    replans: tuple[str, ...]
    lost: int


class OverBudget(Exception):  # noqa: N818 - not an error of the user's: the cap did its duty
    """The next moment would cost more than the cap allows."""


@dataclass(slots=True)
class Executor:
    """One process's attempt at a task."""

    task: Task
    ledger: Ledger
    cluster: Cluster
    lost: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    told: float = 0.0
    ends: float = 0.0
    quiet: Quiet = field(default_factory=Quiet)

    def run(self) -> Outcome:
        """Run every stage that the ledger does not hold yet."""
        plan, stopped, began = self.task.plan, "", 0.0
        done = {stage for stage, *_ in self.ledger.stages()}
        try:
            if len(done) < len(self.task.stages):
                self.cluster.open()
            began = self.ledger.fact("began", self.task.wall())
            for index, stage in enumerate(self.task.stages):
                if index in done:
                    plan = (*plan[:index], self._dealt(index), *plan[index + 1 :])
                else:
                    plan = self._stored(index, plan, began)
                    # a stage that was begun is ended with what it was begun with
                    plan = (*plan[:index], self._dealt(index, plan[index]), *plan[index + 1 :])
                    plan = self._stage(index, stage, plan, began)
                    plan = self._again(index, plan, began)
        except OverBudget as error:
            stopped = str(error)
        finally:
            ended = self._ended()
            self.cluster.close()
        return Outcome(
            self._winner(), began, ended, self.ledger.spent(), stopped, plan, tuple(self.notes), len(self.lost)
        )

    def _ended(self) -> float:
        """When the last stage ended, or now; what giving nodes back takes is in the bill only."""
        ends = [ended for _, _, ended, _ in self.ledger.stages()]
        return ends[-1] if len(ends) == len(self.task.stages) else self.task.wall()

    def _dealt(self, index: int, deal: Deal | None = None) -> Deal:
        """What a stage was begun with, or holds since a node of it was lost."""
        found = self.ledger.fact(f"deal-{index}", _row(deal) if deal else None)
        changed = [self.ledger.fact(f"deal-{index} after {count}") for count in range(1, self._losses(index) + 1)]
        return Deal(*(changed[-1] if changed else found))

    def _losses(self, index: int) -> int:
        """How often a stage went on with another number of instances."""
        return next(n for n in itertools.count() if self.ledger.fact(f"deal-{index} after {n + 1}") is None)

    def _stored(self, index: int, plan: Plan, began: float) -> Plan:
        """The plan from a stage on; made again where a deadline or a limit is another than it was made for."""
        stored = self.ledger.fact(self._key(index))
        if stored:
            return tuple(Deal(*deal) for deal in stored)
        return self._again(index - 1, plan, began) if index else plan

    def _key(self, index: int) -> str:
        return f"plan-{index} by {self.task.deadline} on {self.task.machine.limit}"

    def _stage(self, index: int, stage: Stage, plan: Plan, began: float) -> Plan:
        deal = plan[index]
        self.ledger.stage_begins(index, self.task.wall())
        self._afford(deal.instances)
        self.cluster.resize(deal.instances, self._watch)
        waiting = self._jobs(stage, deal)
        total, tries = len(waiting), Counter[int]()
        running: dict[int, Job] = {}
        # at the end of it the next best come in for trials that were left out
        while waiting or running or (waiting := self._jobs(stage, deal)):
            self._watch()
            self._fill(index, waiting, running)
            for event in self.cluster.events(TICK):
                if event.told is None:
                    plan = self._replaced(event.node, index, plan, [*waiting, *running.values()], began)
                self._heard(event, waiting, running, tries)
            self._tell(index, plan, [*waiting, *running.values()], began)
            self.task.progress(self._line(index), total - len(waiting) - len(running), total)
        keep = [trial.id for group in stage.groups for trial in self._ranked(group.bracket, group.done + group.iters)]
        self.ledger.stage_ends(index, self.task.wall(), keep)
        return plan

    def _replaced(self, node: str, index: int, plan: Plan, jobs: Sequence[Job], began: float) -> Plan:
        """Go on without a node that is lost: plan what is left again at once, and hold what that says."""
        if node not in self.lost:
            self.lost.add(node)
            self.task.log.warning("%s is lost; its trials go on from their checkpoints", node)
            plan = self._regrown(index, plan, jobs, began)
        self._afford(plan[index].instances)
        self.cluster.resize(plan[index].instances, self._watch)
        return plan

    def _regrown(self, index: int, plan: Plan, jobs: Sequence[Job], began: float) -> Plan:
        if self.task.deadline is None or not self.task.replan or not jobs:
            return plan
        left, task = began + self.task.deadline - self.task.wall(), self.task
        stages = (leftover(jobs), *task.stages[index + 1 :])
        drawn = model(stages, self.belief.applied(task.profile), task.machine, REPLAN_SAMPLES, task.seed)
        held = sum(life.until is None for life in self.ledger.lives())
        found = self._decided(replace(drawn, held=held), plan[index:], left, f"in stage {index + 1}, a node was lost")
        if found == plan[index:]:
            return plan
        deal = regrown(plan[index], found[0], task.machine.accelerators)
        self.ledger.fact(f"deal-{index} after {self._losses(index) + 1}", _row(deal))
        return (*plan[:index], deal, *found[1:])

    def _jobs(self, stage: Stage, deal: Deal) -> list[Job]:
        jobs = [self._job(trial, group, deal) for group in stage.groups for trial in self._entrants(group)]
        open_ = [job for job in jobs if job.done < job.target]
        return sorted(open_, key=lambda job: (job.done - job.target, job.trial))

    def _entrants(self, group: Group) -> list[Trial]:
        if group.done == 0:
            rng = np.random.default_rng([self.task.seed, 1000 + group.bracket])
            configs = [sample(self.task.trainable.space, rng) for _ in range(group.trials)]
            self.ledger.trial_starts(group.bracket, configs)
            return [trial for trial in self.ledger.trials(group.bracket) if not self._failed(trial.id)]
        return self._ranked(group.bracket, group.done)[: group.trials]

    def _ranked(self, bracket: int, iters: int) -> list[Trial]:
        metrics = {trial: metric for trial, at, metric, _, _ in self.ledger.steps() if at == iters}
        there = [trial for trial in self.ledger.trials(bracket) if trial.id in metrics and not self._failed(trial.id)]
        return sorted(there, key=lambda trial: (-metrics[trial.id], trial.id))

    def _job(self, trial: Trial, group: Group, deal: Deal) -> Job:
        folder = self.task.folder / f"trial-{trial.id:05d}"
        target = group.done + group.iters
        return Job(
            trial.id, dict(trial.config), trial.iters, target, self.task.every, deal.gang, self.task.seed, folder
        )

    def _fill(self, index: int, waiting: list[Job], running: dict[int, Job]) -> None:
        while waiting:
            node = self.cluster.free(waiting[0].gang)
            if node is None:
                return
            job = whole(waiting.pop(0), self.task.log)
            running[job.trial] = job
            self.ledger.part_begins(index, job.trial, node, self.task.wall(), job.gang)
            self.quiet.heard(job.trial)
            self.cluster.start(node, job)

    def _heard(self, event: Event, waiting: list[Job], running: dict[int, Job], tries: dict[int, int]) -> None:
        told, job = event.told, running.get(event.trial)
        if told is not None and told.what == "step" and job is not None:
            self.ledger.step(told.trial, told.iters, told.metric, told.seconds, job.gang)
            running[job.trial] = replace(job, done=told.iters)
            # over days a spot trial loses many instances; only one that comes no further is given up
            tries[job.trial] = 0
            self.quiet.heard(job.trial)
            self._superseded(job)
            if told.iters >= job.target:
                self._left(job.trial, running)
            return
        if told is not None and told.what == "unkept":
            raise fail(told.error, hint="make room; the same command goes on from here")
        if job is not None and not event.own:
            waiting.insert(0, self._left(job.trial, running))
        elif job is not None:
            ended = self.quiet.left(job.trial)
            most = TRIES if told or ended or not self.task.machine.hazard else LOSSES
            reason = ended or (told.error if told else "its node was lost")
            self._once_more(self._left(job.trial, running), tries, most, reason, waiting)

    def _superseded(self, job: Job) -> None:
        """Remove the checkpoint before the last one, which the ledger has by now: disks are finite."""
        if job.done:
            state_file(job.checkpoint, job.done).unlink(missing_ok=True)

    def _left(self, trial: int, running: dict[int, Job]) -> Job:
        self.ledger.part_ends(trial, self.task.wall())
        self.cluster.finished(trial)
        self.quiet.left(trial)
        return running.pop(trial)

    def _once_more(self, job: Job, tries: dict[int, int], most: int, reason: str, waiting: list[Job]) -> None:
        tries[job.trial] += 1
        if tries[job.trial] < most:
            waiting.insert(0, job)
            return
        self.ledger.fact(f"failed-{job.trial}", reason)
        self.task.log.warning("trial %d failed %d times and is left out: %s", job.trial, tries[job.trial], reason)
        if all(self._failed(trial.id) for trial in self.ledger.trials()):
            raise fail(f"every trial failed; the last said: {reason}", key="trainable", hint="mend it, run it again")

    def _failed(self, trial: int) -> bool:
        return self.ledger.fact(f"failed-{trial}") is not None

    def _watch(self) -> None:
        self.ledger.node_seen(self.task.wall())
        self._afford(0)

    def _afford(self, more: int) -> None:
        """Stop before the cap is passed: what is spent, one more second of all nodes, and new nodes' minimum."""
        if self.task.budget is None:
            return
        open_ = [life for life in self.ledger.lives() if life.until is None]
        rate = sum(life.price for life in open_) / 3600.0
        new = max(0, more - len(open_))
        least = float(self.task.machine.billing.cost(0.0, self.task.machine.price)) * new
        next_ = self.ledger.spent() + rate * max(1.0, self.task.machine.billing.increment) + least
        if next_ > self.task.budget:
            raise OverBudget(f"the budget of {dollars(self.task.budget)} would be passed")

    def _again(self, index: int, plan: Plan, began: float) -> Plan:
        rest = self.task.stages[index + 1 :]
        if not rest or self.task.deadline is None or not self.task.replan:
            return plan
        left = began + self.task.deadline - self.task.wall()
        found = self._decided(self._rest(index, plan), plan[index + 1 :], left, f"after stage {index + 1}")
        plan = (*plan[: index + 1], *found)
        self.ledger.fact(self._key(index + 1), [_row(deal) for deal in plan])
        return plan

    def _decided(self, rest: Model, plan: Plan, left: float, when: str) -> Plan:
        """Plan the rest again, and say what changes and whether it is late."""
        found = plan_again(rest, plan, left, self.task.share)
        if found.late:
            what = f"the deadline cannot be promised any more: {span(max(0.0, left))} left"
            likely = f"P(on time) {found.after:.0%}"
            self._say(f"{what}, {likely}", list(ways_out(rest, left, self.task.share)))
        if found.changed:
            note = f"{when}: instances {' '.join(str(deal.instances) for deal in found.plan)}"
            self.notes.append(note)
            self.task.log.warning("planned again %s", note)
        return found.plan if found.changed else plan

    def _rest(self, index: int, plan: Plan) -> Model:
        """The job after a stage, under what is believed by now, with the instances that it holds."""
        task = self.task
        drawn = model(task.stages, self.belief.applied(task.profile), task.machine, REPLAN_SAMPLES, task.seed)
        return drawn.rest(index + 1, plan[index].instances).paced(self._paces(index + 1))

    def _paces(self, index: int) -> Paces | None:
        """How slow the trials are that enter a stage, once all of them have come to it."""
        groups = self.task.stages[index].groups if index < len(self.task.stages) else ()
        if len(groups) != 1 or groups[0].done == 0:
            return None
        entrants, spent = self._entrants(groups[0]), self._spent()
        if len(entrants) < groups[0].trials:
            return None
        ratios = [spent[trial.id][0] for trial in entrants]
        return paces_of(ratios, groups[0].done, self.task.profile, self.belief)

    @property
    def belief(self) -> Belief:
        """How much slower the truth is than the profile, by what every trial has taken so far."""
        spent = self._spent().values()
        iters = sum(count for _, count in spent) / max(1, len(spent))
        return believed(self.task.profile).seen([ratio for ratio, _ in spent], noise_of(self.task.profile, iters))

    def _tell(self, index: int, plan: Plan, jobs: Sequence[Job], began: float) -> None:
        """Work out when the run will end, and say so at once when no number of instances can make it in time."""
        now = self.task.wall()
        if now - self.told < TELL_EVERY:
            return
        self.told = now
        pace = faster_by(self.task.profile, self.task.machine, math.exp(self.belief.mu))
        self._patience(jobs, pace)
        here, after = pace.left(jobs, plan[index]), self.task.stages[index + 1 :]
        self.ends = now + here + pace.planned(after, plan[index + 1 :])
        deadline = began + (self.task.deadline or math.inf)
        if now + here + pace.fastest(after) > deadline and self.ledger.fact("hopeless") is None:
            self.ledger.fact("hopeless", now)
            self._hopeless(index, plan, deadline - now - here)

    def _patience(self, jobs: Sequence[Job], pace: Pace) -> None:
        """End trials that come to no checkpoint within what the spec allows; tell of those that are strangely quiet."""
        most = self.task.trainable.timeout
        for job in jobs:
            waited, step = self.quiet.waited(job.trial), pace.step(job)
            if most is not None and waited > most:
                self.quiet.ended[job.trial] = f"no checkpoint in {span(most)}"
                self.task.log.warning("trial %d is ended: no checkpoint in %s", job.trial, span(most))
                self.cluster.end(job.trial)
            elif self.quiet.strange(job.trial, step):
                self.task.log.warning(STRANGE, job.trial, span(waited), span(step))

    def _hopeless(self, index: int, plan: Plan, left: float) -> None:
        late = span(max(0.0, self.ends - self.task.wall()))
        best = self._winner()
        shown = self.task.trainable.shown(best.metric) if best and best.metric is not None else None
        stop = f"stop: trial {best.id} has {shown:.4f}" if best and shown is not None else "stop"
        rest = self._rest(index, plan)
        ways = list(ways_out(rest, left, self.task.share)) if rest.stages else [f"finish late: {late} from now", stop]
        self._say("the deadline cannot be met any more", ways)

    def _say(self, what: str, ways: Sequence[str]) -> None:
        self.task.log.warning("%s. %s", what, "; ".join(ways))
        self.notes.append(f"{what}: {'; '.join(ways)}")

    def _line(self, index: int) -> str:
        """The line of the live table: stage, when it will all end, spend and what is left of the cap."""
        budget, spent = self.task.budget, self.ledger.spent()
        eta = f"ends in {span(max(0.0, self.ends - self.task.wall()))}" if self.ends else "starting"
        money = f"{dollars(spent)}, {dollars(max(0.0, budget - spent))} left" if budget is not None else dollars(spent)
        return f"stage {index + 1} of {len(self.task.stages)} · {eta} · {money}"

    def _spent(self) -> dict[int, tuple[float, int]]:
        """Return, for each trial that has come to a checkpoint, its time against the profile's, and its iterations."""
        totals: dict[int, tuple[float, float, int]] = {}
        for trial, iters, _, seconds, gang in self.ledger.steps():
            took, planned, done = totals.get(trial, (0.0, 0.0, 0))
            planned += (iters - done) * expected(self.task.profile, gang, self.task.machine)
            totals[trial] = (took + seconds, planned, iters)
        return {trial: (took / planned, done) for trial, (took, planned, done) in totals.items() if took > 0}

    def _winner(self) -> Trial | None:
        there = [trial for trial in self.ledger.trials() if trial.ranks and not self._failed(trial.id)]
        full = max((trial.iters for trial in there), default=0)
        return max((t for t in there if t.iters == full), key=lambda t: (t.metric or 0.0, -t.id), default=None)


def _row(deal: Deal) -> list[int]:
    return [deal.instances, deal.gang, deal.slots]
