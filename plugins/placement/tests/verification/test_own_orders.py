"""Policies of a user's own that order jobs by their times or names, or decide by the clock."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import pytest

from plugins.placement.tests.cases import cluster, job, policy
from unfold_placement.core.cluster_view import View
from unfold_placement.core.types import (
    ENDED,
    PREEMPTED,
    QUEUE,
    QUIET,
    STARTED,
    SUBMITTED,
    TIMER,
    Ask,
    Drop,
    Event,
    Put,
    Refuse,
    Task,
    Transactions,
    Wake,
)
from unfold_placement.policies.registry import CUSTOM, PolicyRule
from unfold_placement.simulation.problem import Problem
from unfold_placement.simulation.simulator import simulate
from unfold_placement.verification.verify import Bound, Verification, forms_gangs, verify_policies


@dataclass
class Ordered:
    """The first by a key is next, and nothing passes it."""

    waiting: list[Task] = field(default_factory=list)
    phase = QUEUE
    watches = frozenset({SUBMITTED, QUIET})

    def request(self, task: Task) -> Iterable[Ask]:
        return [Ask(f"turn-{task.name}", gated=True)]

    def react(self, event: Event, view: View) -> Transactions:
        if event.kind == SUBMITTED and event.task is not None:
            self.waiting += [] if view.why_impossible((event.task,)) else [event.task]
            return
        while self.waiting:
            task = min(self.waiting, key=self.rank)
            if view.room([task], QUEUE) is None:
                return
            self.waiting.remove(task)
            yield [Put(f"turn-{task.name}", until=task.name)]

    def rank(self, task: Task) -> float:
        """Order tasks by arrival, although the names do not."""
        return task.arrival


class ByName(Ordered):
    """The order is that of the hashes of names, as in a set; those of Python differ from run to run."""

    def rank(self, task: Task) -> float:
        return zlib.crc32(task.name.encode())


class NewestFirst(Ordered):
    """Last come, first served."""

    def rank(self, task: Task) -> float:
        return -task.arrival


class ShortestFirst(Ordered):
    """Long jobs never get their turn."""

    def rank(self, task: Task) -> float:
        return task.run


class NearestDeadline(Ordered):
    """Jobs without a deadline never get their turn."""

    def rank(self, task: Task) -> float:
        return task.deadline


@dataclass
class GivesUp(Ordered):
    """Forgets what has waited for two minutes."""

    since: dict[str, float] = field(default_factory=dict)

    def react(self, event: Event, view: View) -> Transactions:
        if event.kind == SUBMITTED and event.task is not None:
            self.since[event.task.name] = event.time
        self.waiting = [task for task in self.waiting if view.now < self.since[task.name] + 120]
        yield from super().react(event, view)


@dataclass
class RejectsTwo(Ordered):
    """Rejects two jobs, and lets none start after that."""

    rejected: int = 0

    def react(self, event: Event, view: View) -> Transactions:
        if event.kind == SUBMITTED and event.task is not None and self.rejected < 2:
            self.rejected += 1
            yield [Refuse(event.task.name, "too many")]


def own(kind: Callable[[], Ordered], tasks: tuple[Task, ...] = ()) -> Problem:
    """Return a problem with a policy of this file: with these tasks on a node of one GPU, or with the menu."""
    rule = PolicyRule(CUSTOM, {"policy": f"{__name__}:{kind.__name__}", "options": {}})
    nodes = tuple(cluster(1, 1)) if tasks else ()
    return Problem(name="x", nodes=nodes, tasks=tasks, rules=(rule,), is_recorded=not tasks, allow_code=True)


def verify(problem: Problem, **bound: int) -> Verification:
    """Verify a problem on one node."""
    return verify_policies(problem, Bound(node_counts=(1,), **bound), lambda *_: None)


def starving(found: Verification) -> list[tuple[str, str]]:
    """Return the confirmed properties with the kinds that suffer."""
    return [(item.finding.property_name, item.finding.victim.rstrip(".")) for item in found.counterexamples]


@pytest.mark.e2e
def test_an_order_by_arrival_is_searched_as_it_is() -> None:
    """Every task of a search came at 0 s: oldest first was not seen to be fair, nor newest first to be unfair."""
    found = verify(own(Ordered))
    assert (starving(found), found.unconfirmed, found.is_complete) == ([], 0, True)
    assert starving(verify(own(NewestFirst))) == [("starvation", "large")]


@pytest.mark.e2e
def test_the_menu_has_a_long_job() -> None:
    """Where all jobs ran equally long, shortest first was first come, first served."""
    assert starving(verify(own(ShortestFirst))) == [("starvation", "long")]


@dataclass
class Demotes(Ordered):
    """The first user with a job that ends comes after the others from then on."""

    demoted: str = ""
    watches = frozenset({SUBMITTED, ENDED, QUIET})

    def react(self, event: Event, view: View) -> Transactions:
        if event.kind == ENDED and event.task is not None:
            self.demoted = self.demoted or event.task.user
        else:
            yield from super().react(event, view)

    def rank(self, task: Task) -> float:
        return task.user == self.demoted


@pytest.mark.e2e
def test_the_menu_has_earlier_jobs_of_the_user() -> None:
    """The victim was its user's first job, so that what a policy holds against a user was never held against it."""
    assert starving(verify(own(Demotes)))[0] == ("starvation", "single")


def late_tasks(slack_s: float) -> tuple[Task, ...]:
    """Return two jobs, one with a deadline and the other with one at that time, or none."""
    due, late = job("due", 1, user="u"), job("late", 1, at=5.0, user="u")
    return replace(due[0], deadline=600.0), replace(late[0], deadline=5.0 + slack_s)


@pytest.mark.parametrize("problem", [own(NearestDeadline, late_tasks(math.inf)), None])
def test_jobs_with_different_deadlines_are_of_different_kinds(problem: Problem | None) -> None:
    """They counted as alike, so that no job without a deadline was seen to starve behind those that have one."""
    edf = Problem(name="x", nodes=tuple(cluster(1, 1)), tasks=late_tasks(math.inf), rules=policy(edf={}))
    assert starving(verify(problem or edf)) == [("starvation", "late")]


def test_a_later_deadline_comes_at_last() -> None:
    """A stream of nearer ones passes it in a search without time, not in the replay: nothing is found or claimed."""
    tasks = late_tasks(7200.0)
    edf = Problem(name="x", nodes=tuple(cluster(1, 1)), tasks=tasks, rules=policy(edf={}))
    found = verify(edf)
    assert (starving(found), found.time_dependent) == ([], ("edf",))
    assert starving(verify(own(NearestDeadline, tasks))) == []


def test_nothing_is_claimed_of_decisions_by_the_clock() -> None:
    """No time passes in a search, so it never saw the job that is given up after two minutes, and claimed it fair."""
    tasks = (*job("a", 1), *job("b", 1))
    found = verify(own(GivesUp, tasks))
    assert (found.time_dependent, found.is_complete) == (("GivesUp",), False)
    assert verify(own(Ordered, tasks)).is_complete


def test_nothing_is_claimed_of_decisions_by_name() -> None:
    """Equal states have other names, in which a search saw one order only, and claimed that no job starves."""
    tasks = (*job("a", 1), *job("b", 1))
    found = verify(own(ByName, tasks))
    assert (found.name_dependent, found.is_complete) == (("ByName",), False)
    assert verify(own(Ordered, tasks)).name_dependent == ()


def test_rejected_jobs_make_room_for_others() -> None:
    """They counted as jobs in flight for ever, so that the search ended before what follows."""
    found = verify(own(RejectsTwo, tuple(job("a", 1))), jobs_in_flight=2)
    assert starving(found) == [("stuck", "a")]


@dataclass
class LatestTicket(Ordered):
    """Draws a number for every job, and serves the latest first."""

    drawn: int = 0
    tickets: dict[str, int] = field(default_factory=dict)

    def react(self, event: Event, view: View) -> Transactions:
        if event.kind == SUBMITTED and event.task is not None:
            self.drawn += 1
            self.tickets[event.task.name] = self.drawn
        yield from super().react(event, view)
        self.tickets = {task.name: self.tickets[task.name] for task in self.waiting}

    def rank(self, task: Task) -> float:
        return -self.tickets[task.name]


@pytest.mark.e2e
def test_counters_that_grow_for_ever_recur_by_their_order() -> None:
    """The second search compared whole numbers by value, so that no state with a ticket came again."""
    found = verify(own(LatestTicket), max_states=2000)
    assert (starving(found), found.is_complete) == ([("starvation", "large")], False)


@dataclass
class Feedback:
    """A feedback queue of two levels: a job that runs for 45 s while others wait is stopped, and demoted."""

    queues: list[list[Task]] = field(default_factory=lambda: [[], []])
    demoted: set[str] = field(default_factory=set)
    raised_s: float = 0.0
    phase = QUEUE
    watches = frozenset({SUBMITTED, PREEMPTED, STARTED, TIMER, QUIET})

    def request(self, task: Task) -> Iterable[Ask]:
        return [Ask(f"turn-{task.name}", gated=True)]

    def react(self, event: Event, view: View) -> Transactions:
        task = event.task
        if task is not None and event.kind in {SUBMITTED, PREEMPTED}:
            self.queues[task.name in self.demoted] += [] if view.why_impossible((task,)) else [task]
        elif task is not None and task.name not in self.demoted:
            yield [Wake(view.now + 45)]
        elif event.kind == TIMER and any(self.queues):
            for running, _, since_s in view.running():
                if running.name not in self.demoted and view.now >= since_s + 45:
                    self.demote(running)
                    yield [Drop(f"turn-{running.name}", force=True)]
        elif event.kind == QUIET:
            self.raise_all(view.now)
            yield from self.admit(view)

    def admit(self, view: View) -> Transactions:
        for queue in self.queues:
            while queue:
                if view.room(queue[:1], QUEUE) is None:
                    return
                task = queue.pop(0)
                yield [Put(f"turn-{task.name}", until=task.name)]

    def demote(self, task: Task) -> None:
        """Let the job run without a limit at its next turn."""
        self.demoted.add(task.name)

    def raise_all(self, now_s: float) -> None:
        """Let those that wait longest come first, every ten minutes."""
        if now_s > self.raised_s + 600:
            self.raised_s, self.queues = now_s, [[*self.queues[1], *self.queues[0]], []]


class NeverRaises(Feedback):
    """A stream of short jobs keeps out what was stopped once."""

    def raise_all(self, now_s: float) -> None: ...


class NeverDemotes(Feedback):
    """A long job is stopped at every turn, and starts over."""

    def demote(self, task: Task) -> None: ...


@pytest.mark.slow
@pytest.mark.e2e
def test_streams_show_what_timers_do() -> None:
    """No time passes in a search, so that no job was ever stopped or raised: all three looked alike."""
    assert starving(verify(own(Feedback))) == []
    for kind in (NeverRaises, NeverDemotes):
        found = verify(own(kind))
        (loop,) = [item for item in found.counterexamples if item.finding.property_name == "preemption loop"]
        assert "0 has not ended" in loop.evidence
        result = simulate(loop.scenario.nodes, loop.tasks, own(kind).new_policies())
        ends = dict(zip((task.job for task in result.tasks), result.end_s.tolist(), strict=True))
        assert ends[f"{loop.finding.victim}0"] > max(task.arrival for task in loop.tasks)


@dataclass
class HalfGangs:
    """Starts a job once half of its tasks are there."""

    parts: dict[str, list[Task]] = field(default_factory=dict)
    share: float = 0.5
    phase = QUEUE
    watches = frozenset({SUBMITTED, QUIET})

    def request(self, task: Task) -> Iterable[Ask]:
        return [Ask(f"job-{task.job}", gated=True)]

    def react(self, event: Event, view: View) -> Transactions:
        if event.kind == SUBMITTED and event.task is not None:
            self.parts.setdefault(event.task.job, []).append(event.task)
        for name, tasks in list(self.parts.items()) if event.kind == QUIET else ():
            if len(tasks) < tasks[0].size * self.share:
                continue
            if view.why_impossible(tuple(tasks)):
                # a list that grew with each impossible job would be a new state each time
                del self.parts[name]
                continue
            if view.room(tasks, QUEUE) is None:
                return
            del self.parts[name]
            yield [Put(f"job-{name}", amount=len(tasks))]


class WholeGangs(HalfGangs):
    """Waits for all tasks."""

    def __init__(self) -> None:
        super().__init__(share=1.0)


def test_a_policy_that_admits_jobs_by_one_resource_meets_gangs() -> None:
    """The menu had gangs only for policies of this package, so that gangs of others were never torn."""
    assert [forms_gangs(kind()) for kind in (HalfGangs, WholeGangs, Ordered)] == [True, True, False]
    tasks = (*job("a", 2), *job("b", 2))
    half, whole = (replace(own(kind, tasks), nodes=tuple(cluster(1, 2))) for kind in (HalfGangs, WholeGangs))
    assert "torn gang" in dict(starving(verify(half)))
    assert starving(verify(whole)) == []
