"""The search finds what is known to be broken, reports nothing that is not, and claims only what it reached."""

from __future__ import annotations

import gc
import itertools
import logging
import math
import random
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from plugins.placement.tests.cases import cluster, job, policy
from unfold_placement.core.cluster_view import View
from unfold_placement.core.policy import Policy
from unfold_placement.core.types import (
    DOWN,
    ENDED,
    PREEMPTED,
    QUEUE,
    QUIET,
    SUBMITTED,
    TIMER,
    Ask,
    Drop,
    Event,
    Node,
    NodeChange,
    Put,
    Task,
    Transactions,
    Wake,
)
from unfold_placement.policies.fairness.quota import Limit
from unfold_placement.policies.ordering.gang import Gang
from unfold_placement.policies.registry import CUSTOM, PolicyRule, build_policies
from unfold_placement.policies.shared.admission_queue import AdmissionQueue
from unfold_placement.report.verification import verification_report
from unfold_placement.schema.placement import PlacementSpec
from unfold_placement.simulation.audit import AuditEvent
from unfold_placement.simulation.problem import Problem
from unfold_placement.simulation.simulator import simulate
from unfold_placement.simulation.starvation import find_starvation
from unfold_placement.verbs.verify import counterexample_spec
from unfold_placement.verification.counterexample import Counterexample, confirm
from unfold_placement.verification.model import Renaming, canonical_key, copy_controller
from unfold_placement.verification.scenario import Action, Jobs, Kind, Scenario, apply_action, build_initial
from unfold_placement.verification.search import Finding, search
from unfold_placement.verification.verify import Bound, Verification, check_replays, verify_policies
from unfoldkit.api import UnfoldError, Verdict
from unfoldkit.spec.validate import validate
from unfoldkit.spec.yaml_reader import parse

GUARDED: list[dict[str, Any]] = [
    {"fifo": {}}, {"drf": {}}, {"drf": {"backfill": True}}, {"wfq": {"backfill": True}}, {"edf": {"backfill": True}},
    {"hierarchy": {"backfill": True}}, {"priority": {"backfill": True}},
    {"quota": {"quotas": {"a": 1, "b": 1, "z": 2}}},
]  # fmt: skip


def verified(bound: Bound | None = None, **parts: Any) -> Verification:
    """Verify a composition on the standard menu."""
    problem = Problem(name="x", nodes=(), tasks=(), rules=policy(**parts), is_recorded=True)
    return verify_policies(problem, bound or Bound(), lambda *_: None)


@pytest.mark.e2e
@pytest.mark.parametrize("gang", [{}, {"gang": {}}])
@pytest.mark.parametrize("parts", GUARDED)
def test_guarded_policies_have_no_counterexample(parts: dict[str, Any], gang: dict[str, Any]) -> None:
    """Under every queue policy with its default guard the search is complete and finds nothing that fails."""
    found = verified(**parts, **gang)
    assert (found.counterexamples, found.unconfirmed, found.is_complete) == ((), 0, True)


@pytest.mark.parametrize(
    "parts", [{}, *({name: {"backfill": True, "guard": "none"}} for name in ("drf", "edf", "fifo"))]
)
def test_passing_without_a_guard_starves_a_large_task(parts: dict[str, Any]) -> None:
    """The known starvation is found, as a loop of two actions, and the plan of its workload says no."""
    (example,) = verified(**parts).counterexamples
    assert (example.finding.property_name, len(example.finding.loop)) == ("starvation", 2)
    rules = policy(**parts)
    result = simulate(example.scenario.nodes, example.tasks, build_policies(rules))
    starving = find_starvation(example.scenario.nodes, result, lambda: build_policies(rules))
    assert starving is not None
    assert (starving.task.job, starving.is_by_design) == ("large0", False)


def test_written_jobs_are_searched_task_by_task_and_on_fewer_nodes() -> None:
    """Jobs of several tasks hid that a large task starves: no gang holds them together, and two nodes had room."""
    tasks = (*job("s", 4, user="a"), *job("l", 2, demand={"gpu": 2000}, user="b"))
    problem = Problem(name="x", nodes=tuple(cluster(2, 2, racks=1)), tasks=tasks, rules=())
    found = verify_policies(problem, Bound(), lambda *_: None)
    assert [example.finding.property_name for example in found.counterexamples] == ["starvation"]
    victims = ("s of a", "l of b", "s-0 of a", "l-1 of b")
    searched = {(record.nodes, record.victim) for record in found.searches}
    assert searched == set(itertools.product((1, 2), victims))
    gang = Problem(name="x", nodes=problem.nodes, tasks=tasks, rules=policy(gang={}, fifo={}))
    assert len(verify_policies(gang, Bound(), lambda *_: None).searches) == 4


def test_a_part_of_a_cluster_with_different_nodes_is_not_searched() -> None:
    """A task may need a node that the part lacks: all nodes are searched together."""
    nodes = (Node("cpu", {"cpu": 2000}), *cluster(1, 2))
    tasks = (*job("s", 1, user="a"), *job("c", 1, demand={"cpu": 1000}, user="b"))
    problem = Problem(name="x", nodes=nodes, tasks=tasks, rules=policy(fifo={}))
    found = verify_policies(problem, Bound(), lambda *_: None)
    assert not found.counterexamples
    assert {record.nodes for record in found.searches} == {2}


def lose_nodes(*lost: str, gang_by: str = "job", **parts: Any) -> Verification:
    """Verify a gang of two and a filler on two nodes, some of which may be lost and return."""
    tasks = (*job("gang", 2, user="z"), *job("filler", 1, user="a"))
    changes = tuple(NodeChange(1.0, node, DOWN) for node in lost)
    rules = policy(**parts, gang={"by": gang_by})
    problem = Problem(name="x", nodes=tuple(cluster(2, 1)), tasks=tasks, rules=rules, node_changes=changes)
    return verify_policies(problem, Bound(), lambda *_: None)


@pytest.mark.parametrize(
    ("parts", "lost"),
    [
        ({"fifo": {}}, ["n1"]),
        ({"drf": {}}, ["n0", "n1"]),
        ({"quota": {"quotas": {"a": 1, "z": 1}}}, ["n1"]),
        ({"value": {}}, ["n1"]),
    ],
)
def test_guarded_policies_survive_the_loss_of_nodes(parts: dict[str, Any], lost: list[str]) -> None:
    """Whatever node is lost and whenever it returns, nothing is torn, stuck or starved, and the search is complete."""
    found = lose_nodes(*lost, **parts)
    assert ([example.evidence for example in found.counterexamples], found.is_complete) == ([], True)
    assert any(record.states > 50 for record in found.searches)


def test_a_gang_that_goes_on_without_a_lost_member_is_torn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of a node finds what no order of arrivals shows, and the written spec replays it."""
    remove = Gang._remove_member

    def keep_the_rest(gang: Gang, key: str, view: View, *, is_preempted: bool) -> list[Put | Drop]:
        return [] if is_preempted else remove(gang, key, view, is_preempted=False)

    monkeypatch.setattr(Gang, "_remove_member", keep_the_rest)
    assert lose_nodes(fifo={}).counterexamples == ()
    (example, *_) = lose_nodes("n1", fifo={}).counterexamples
    assert [str(action) for action in example.finding.prefix] == ["+gang", "!n1"]
    assert (example.finding.property_name, example.finding.used) == ("torn gang", 1.0)
    text = "{version: 1, kind: placement, name: x, cluster: {nodes: [{cpu: 1}]}}"
    written = counterexample_spec(validate(PlacementSpec, parse(text, "x.yaml")), example)
    assert written["cluster"]["events"] == [{"at": "60 s", "nodes": ["n1"], "change": "down"}]


def test_a_search_that_stops_early_claims_nothing() -> None:
    """With too few states the verification is incomplete."""
    assert not verified(Bound(max_states=5), drf={}).is_complete


def test_jobs_that_have_ended_leave_no_state_behind() -> None:
    """A barrier forgets a job that has ended, so that its states recur and the search ends."""
    assert verified(Bound(node_counts=(1,), max_states=1000), barrier={}).is_complete


def test_a_quota_without_a_bound_on_preemptions_loops() -> None:
    """Preemptions that no bound counts are no state: the search finds the gang that is stopped over and over."""
    quota = {"quotas": {"a": 1, "b": 1, "z": 2}, "max_preemptions": None}
    names = {example.finding.property_name for example in verified(quota=quota, gang={}).counterexamples}
    assert "preemption loop" in names


def test_a_policy_that_depends_on_time_is_never_proven() -> None:
    """History integrates a real number, so that the search cannot cover it."""
    found = verified(Bound(node_counts=(1,)), history={})
    assert (found.time_dependent, found.is_complete) == (("history",), False)


def test_equal_states_have_equal_keys_whatever_the_names() -> None:
    """Two jobs of a kind that swap their slots are the same state; a copy shares nothing with its original."""
    kind = Kind("a", (Task("", {"gpu": 1000}, 60.0),))
    scenario = Scenario(tuple(cluster(1, 2)), (kind, Kind("v", kind.tasks)), "v")

    def key(actions: Sequence[Action]) -> object:
        controller, jobs = build_initial(scenario, build_policies(policy(drf={}))), Jobs()
        for action in actions:
            frozen = canonical_key(controller, jobs.renaming(scenario.kinds), controller.view.running())
            following = copy_controller(controller)
            jobs_after = apply_action(scenario, following, jobs, action)
            assert canonical_key(controller, jobs.renaming(scenario.kinds), controller.view.running()) == frozen
            controller, jobs = following, jobs_after
        return canonical_key(controller, jobs.renaming(scenario.kinds), controller.view.running())

    first, second = Action("-", "a~0"), Action("-", "a~1")
    arrive = Action("+", "a")
    assert key([arrive, first]) == key([])
    assert key([arrive, arrive, first, arrive]) == key([arrive, first, arrive, arrive])
    assert key([arrive, arrive, second]) == key([arrive])


SMALL = Kind("small", (Task("", {"gpu": 1000}, 60.0),))


@dataclass
class Undo:
    """Stops what it has just started, for ever."""

    tasks: dict[str, Task] = field(default_factory=dict)
    phase: int = QUEUE
    watches: frozenset[str] = frozenset({SUBMITTED, ENDED, QUIET})

    def request(self, task: Task) -> Iterable[Ask]:
        return [Ask(f"turn-{task.name}", gated=True)]

    def react(self, event: Event, view: View) -> Transactions:
        if event.task is not None:
            self.tasks[event.task.name] = event.task
        for name, task in self.tasks.items():
            if view.is_waiting(task):
                yield [Put(f"turn-{name}", until=name)]
                yield [Drop(f"turn-{name}", force=True)]


@dataclass
class Clock(Undo):
    """Wakes itself at once, for ever."""

    watches: frozenset[str] = frozenset({SUBMITTED, "timer"})

    def react(self, event: Event, view: View) -> Transactions:
        yield [Wake(view.now)]


@dataclass
class Chatter(Undo):
    """Responds without end."""

    def react(self, event: Event, view: View) -> Transactions:
        while True:
            yield []


@dataclass
class Broken(Undo):
    """Raises."""

    def react(self, event: Event, view: View) -> Transactions:
        raise ZeroDivisionError("oops")


@dataclass
class Bully(Undo):
    """Admits every task, and stops all that run whenever a task ends: nothing new starts then."""

    def react(self, event: Event, view: View) -> Transactions:
        if event.kind == SUBMITTED and event.task is not None:
            yield [Put(f"turn-{event.task.name}", until=event.task.name)]
        if event.kind == ENDED:
            running = [task for task, _, _ in view.running()]
            yield [Drop(f"turn-{task.name}", force=True) for task in running]
            yield [Put(f"turn-{task.name}", until=task.name) for task in running]


@dataclass
class OneAtATime(Undo):
    """Admits every task, although its audit says that one may run."""

    def react(self, event: Event, view: View) -> Transactions:
        if event.kind == SUBMITTED and event.task is not None:
            yield [Put(f"turn-{event.task.name}", until=event.task.name)]

    def audit(self, log: Sequence[AuditEvent]) -> Iterator[str]:
        running = 0
        for event in log:
            running += (event.kind == "started") - (event.kind == "ended")
            if running > 1:
                yield f"{event.time:g} s: {running} tasks run, 1 is allowed"


@pytest.mark.parametrize(
    ("kind", "name", "evidence"),
    [
        (Bully, "lost work", "is stopped at 120 s, and no other job starts"),
        (OneAtATime, "broken rule", "60 s: 2 tasks run, 1 is allowed"),
    ],
)
def test_lost_work_and_broken_rules_are_found_in_custom_policies(kind: type[Policy], name: str, evidence: str) -> None:
    """A stop after which no other job starts, and a breach that the policy's audit reports, each with its replay."""
    scenario = Scenario(
        tuple(cluster(1, 2)), (Kind("v", (Task("", {"gpu": 1000}, 60.0),)), SMALL), "v", has_gangs=False
    )
    (finding,) = [item for item in search(scenario, [kind()], 1000).findings if item.property_name == name]
    example = confirm(finding, scenario, lambda: [kind()], ())
    assert example is not None
    assert evidence in example.evidence


def test_the_breach_of_a_limit_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit that grants one licence too many breaks its own rule; the shipped one does not."""
    limit = {"most": 1, "by": "user"}
    assert verified(limit=limit).counterexamples[0].finding.property_name == "starvation"
    react = Limit.react

    def grant_more(policy: Limit, event: Event, view: View) -> Transactions:
        for operations in react(policy, event, view):
            yield [replace(item, amount=item.amount + 1) for item in operations if isinstance(item, Put)]

    monkeypatch.setattr(Limit, "react", grant_more)
    names = {example.finding.property_name for example in verified(limit=limit).counterexamples}
    assert "broken rule" in names


def test_a_starving_user_is_found_although_tags_grow_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """The virtual finish of a user that waits falls behind without bound: only the order of tags recurs."""
    monkeypatch.setattr(AdmissionQueue, "_reserve_oldest", lambda *_args, **_options: None)
    found = verified(Bound(node_counts=(1,), max_states=1000), wfq={"backfill": True})
    assert [example.finding.property_name for example in found.counterexamples] == ["starvation"]
    assert not found.is_complete


@dataclass
class Grants:
    """Grants a turn to every task: what a custom policy does besides is what the subclasses add."""

    phase = QUEUE
    watches = frozenset({SUBMITTED})

    def request(self, task: Task) -> Iterable[Ask]:
        return [Ask(f"turn-{task.name}", gated=True)]

    def react(self, event: Event, view: View) -> Transactions:
        if event.task is not None and self.admits(event.task, view):
            yield [Put(f"turn-{event.task.name}", until=event.task.name)]

    def admits(self, _task: Task, _view: View) -> bool:
        return True


class Tires(Grants):
    """Counts in an attribute that is no field of the dataclass above it, and grants three turns."""

    def __init__(self) -> None:
        self.count = 0

    def admits(self, _task: Task, _view: View) -> bool:
        self.count += 1
        return self.count <= 3


class Remembers(Grants):
    """Keeps the users that it has seen as keys alone, and grants one turn to each."""

    def __init__(self) -> None:
        self.seen: dict[str, None] = {}

    def admits(self, task: Task, _view: View) -> bool:
        is_new = task.user not in self.seen
        self.seen[task.user] = None
        return is_new


class Draws(Grants):
    """Grants turns by chance, from a generator of its own that tires too."""

    def __init__(self) -> None:
        self.rng = random.Random(1)  # noqa: S311 - of turns

    def admits(self, _task: Task, _view: View) -> bool:
        return self.rng.random() < 0.7


class KeepsView(Tires):
    """Keeps the view that it is given, and its own methods."""

    def admits(self, task: Task, view: View) -> bool:
        self.view, self.hook = view, self.admits
        return super().admits(task, view)


class KeepsObjects(Tires):
    """Keeps objects of which only pickle describes the state; that of an iterator is a number."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = (itertools.count(3), Decimal("0.1"), iter([1, 2]))


@pytest.mark.filterwarnings("ignore:Pickle, copy, and deepcopy support:DeprecationWarning")
@pytest.mark.parametrize("kind", [Tires, Remembers, Draws, KeepsView, KeepsObjects])
def test_what_a_custom_policy_keeps_is_part_of_the_state(kind: type[Policy]) -> None:
    """Attributes, keys without values and generators count: jobs of a single kind come until none starts any more."""
    rule = PolicyRule(CUSTOM, {"policy": f"{__name__}:{kind.__name__}", "options": {}})
    tasks = tuple(job("a", 1))
    problem = Problem(name="x", nodes=tuple(cluster(1, 2)), tasks=tasks, rules=(rule,), allow_code=True)
    found = verify_policies(problem, Bound(max_states=2000), lambda *_: None)
    assert "stuck" in {example.finding.property_name for example in found.counterexamples}


@dataclass(slots=True)
class Helper:
    """Belongs to the policy that keeps it, and refers to it."""

    owner: object
    label: bytearray


class KeepsValues(Grants):
    """Keeps values of which a copy has an equal form, whatever they refer to, and sets timers that pile up."""

    watches = frozenset({SUBMITTED, QUIET})

    def __init__(self) -> None:
        self.kept = [
            np.float32(1), np.int64(2), np.bool_(1), np.longdouble(3), float("nan"), 1j, b"a", date(2026, 1, 2),
            datetime(2026, 1, 2, tzinfo=UTC), np.datetime64("2026-01-02"), np.array(["a"]), np.array([True]),
            np.array([1, None, "a"], dtype=object), np.array([math.nan]), logging.getLogger("a"),
        ]  # fmt: skip
        self.me, self.node = self, Helper(self, bytearray(b"a"))

    def react(self, event: Event, view: View) -> Transactions:
        yield from super().react(event, view)
        yield [Wake(np.float32(view.now + 5))]


def test_values_of_any_type_make_states_that_recur() -> None:
    """Numbers of NumPy, dates, bytes, objects that refer to each other and many timers: the search is complete."""
    scenario = Scenario(tuple(cluster(1, 2)), (SMALL, Kind("v", SMALL.tasks)), "v", has_gangs=False)
    result = search(scenario, [KeepsValues()], 1000)
    assert result.is_complete
    assert result.states < 50


def test_a_weak_reference_is_no_state() -> None:
    """It refers to the object of another state after a copy, so the search reports it at once."""
    policy_with_reference = KeepsValues()
    policy_with_reference.me = weakref.ref(policy_with_reference)
    scenario = Scenario(tuple(cluster(1, 2)), (SMALL, Kind("v", SMALL.tasks)), "v", has_gangs=False)
    with pytest.raises(UnfoldError, match="weak reference"):
        search(scenario, [policy_with_reference], 1000)


class Leaks(Grants):
    """Has three places, and gets none back from a task of two GPUs."""

    watches = frozenset({SUBMITTED, ENDED, PREEMPTED, QUIET})

    def __init__(self) -> None:
        self.places = 3
        self.queue: dict[str, Task] = {}

    def react(self, event: Event, view: View) -> Transactions:
        if event.task is None:
            yield from self.admit_first(view)
        elif event.kind == SUBMITTED:
            self.queue[event.task.name] = event.task
        else:
            self.lose(event.kind, event.task)

    def admit_first(self, view: View) -> Transactions:
        for name, task in list(self.queue.items()):
            if view.why_impossible((task,)):
                continue
            if self.places <= 0 or not view.fits(task, QUEUE):
                return
            del self.queue[name]
            self.places -= 1
            yield [Put(f"turn-{name}", until=name)]

    def lose(self, _kind: str, task: Task) -> None:
        self.places += task.demand["gpu"] < 2000


class LeaksStops(Leaks):
    """Stops tasks for one of a higher class, and queues them again without their places."""

    def admit_first(self, view: View) -> Transactions:
        yield from super().admit_first(view)
        for task in list(self.queue.values()):
            lower = [other for other, _, _ in view.running() if other.priority < task.priority]
            if lower and not view.fits(task, QUEUE):
                yield [Drop(f"turn-{other.name}", force=True) for other in lower]
                del self.queue[task.name]
                self.places -= 1
                yield [Put(f"turn-{task.name}", until=task.name)]

    def lose(self, kind: str, task: Task) -> None:
        if kind == PREEMPTED:
            self.queue[task.name] = task
        else:
            self.places += 1


@pytest.mark.parametrize("kind", [Leaks, LeaksStops])
def test_what_a_custom_policy_loses_at_each_end_or_stop_is_found(kind: type[Policy]) -> None:
    """Large jobs and a higher class come again and again on the standard menu, until no place is left."""
    rule = PolicyRule(CUSTOM, {"policy": f"{__name__}:{kind.__name__}", "options": {}})
    problem = Problem(name="x", nodes=(), tasks=(), rules=(rule,), allow_code=True, is_recorded=True)
    found = verify_policies(problem, Bound(), lambda *_: None)
    assert "stuck" in {example.finding.property_name for example in found.counterexamples}


def test_a_job_that_no_node_can_hold_confirms_nothing() -> None:
    """It waits forever in every replay, so another job that is said to be stuck must be seen to wait itself."""
    impossible = Kind("impossible", (Task("", {"gpu": 3000}, 60.0),))
    scenario = Scenario(tuple(cluster(1, 2)), (SMALL, impossible), "impossible", has_gangs=False)
    actions = (Action("+", "impossible"), Action("+", SMALL.name))
    finding = Finding(property_name="stuck", victim=SMALL.name, prefix=actions)
    assert confirm(finding, scenario, lambda: [Grants()], ()) is None


class Reminds(Grants):
    """Sets one timer with its first task, and another one only when that has fired."""

    watches = frozenset({SUBMITTED, TIMER})

    def __init__(self) -> None:
        self.is_set = False

    def react(self, event: Event, view: View) -> Transactions:
        yield from super().react(event, view)
        if event.kind == TIMER:
            self.is_set = False
        elif not self.is_set:
            self.is_set = True
            yield [Wake(view.now + 10.0)]


def test_a_custom_policy_with_timers_is_never_proven() -> None:
    """No time passes in a search, so what a policy does when a timer fires is not searched, however few the states."""
    rule = PolicyRule(CUSTOM, {"policy": f"{__name__}:Reminds", "options": {}})
    tasks = tuple(job("a", 1))
    problem = Problem(name="x", nodes=tuple(cluster(1, 2)), tasks=tasks, rules=(rule,), allow_code=True)
    found = verify_policies(problem, Bound(), lambda *_: None)
    assert all(record.is_complete for record in found.searches)
    assert (found.time_dependent, found.is_complete) == (("Reminds",), False)


class Polls(Grants):
    """Wakes every second, for ever, and counts it."""

    watches = frozenset({SUBMITTED, TIMER})
    timers = 0

    def react(self, event: Event, view: View) -> Transactions:
        Polls.timers += event.kind == TIMER
        yield [Wake(view.now + 1.0)]


def test_the_check_before_a_search_does_not_wait_for_timers() -> None:
    """A job that never starts beside a policy that wakes for ever: a thousand timers are enough."""
    rule = PolicyRule(CUSTOM, {"policy": f"{__name__}:Polls", "options": {}})
    tasks = tuple(job("a", 1))
    problem = Problem(name="x", nodes=tuple(cluster(1, 2)), tasks=tasks, rules=(rule,), allow_code=True)
    assert check_replays(problem, Bound()) is None
    assert 0 < Polls.timers < 5000


class Tosses(Grants):
    """Grants turns by chance, from a generator that all policies share."""

    def admits(self, _task: Task, _view: View) -> bool:
        return random.random() < 0.5  # noqa: S311 - of turns


class Shares(Grants):
    """Counts in an attribute of the class."""

    count = 0

    def admits(self, _task: Task, _view: View) -> bool:
        type(self).count += 1
        return self.count % 2 == 0


@pytest.mark.parametrize("kind", [Tosses, Shares])
def test_a_policy_that_decides_otherwise_in_the_same_state_is_refused(kind: type[Policy]) -> None:
    """No search covers what random numbers or globals may do, so none claims it."""
    scenario = Scenario(tuple(cluster(1, 2)), (SMALL, Kind("v", SMALL.tasks)), "v", has_gangs=False)
    with pytest.raises(UnfoldError, match="decides differently when the same state is continued") as error:
        search(scenario, [kind()], 1000)
    assert error.value.diagnostics[0].file == __file__


def test_names_of_jobs_are_found_within_longer_names() -> None:
    """A resource may be named after a job, and a job of the spec after anything."""
    renaming = Renaming({"a.~1": "a.~0"}, ("small", "a."))
    assert renaming["slot-a.~1-0"] == "slot-a.~0-0"
    assert renaming["slot-small~2"] == "slot-ended"
    assert renaming["z~3"] == "z~3"


@pytest.mark.parametrize("kind", [Undo, Clock, Chatter, Broken])
def test_a_policy_that_loops_or_raises_is_named_within_a_second(kind: type[Policy]) -> None:
    """The simulator ends with an error that has the policy's name, file and line; the search reports it."""
    began = time.process_time()
    with pytest.raises(UnfoldError, match=kind.__name__) as error:
        simulate(cluster(), job("a", 3), [kind()])
    assert time.process_time() - began < 1.0
    (diagnostic,) = error.value.diagnostics
    assert diagnostic.file == __file__
    assert diagnostic.line > 0
    scenario = Scenario(tuple(cluster(1, 2)), (Kind("v", (Task("", {"gpu": 1000}, 60.0),)),), "v", has_gangs=False)
    findings = {item.property_name for item in search(scenario, [kind()], 100).findings}
    assert "livelock" in findings or kind is Clock


def test_a_report_shows_percentages_and_trusts_no_finding_that_the_replay_lacks() -> None:
    """Capacity in use is a percentage; a verification with an unconfirmed finding answers no."""
    problem = Problem(name="x", nodes=(), tasks=(), rules=policy(fifo={"guard": "none"}), is_recorded=True)
    found = verify_policies(problem, Bound(node_counts=(1,)), lambda *_: None)
    report = verification_report(problem, found, {})
    used = found.counterexamples[0].finding.used
    assert 0.5 <= used <= 1
    assert report.tables[0].rows[0][3] == used * 100
    clean = replace(found, counterexamples=(), by_design=())
    assert verification_report(problem, clean, {}).verdict == Verdict.YES
    doubtful = verification_report(problem, replace(clean, unconfirmed=1), {})
    assert (doubtful.verdict, doubtful.headline) == (Verdict.NO, "1 finding of the search did not appear in the replay")


def test_a_job_that_can_never_start_is_named() -> None:
    """A gang of two under a limit of one blocks no other, and the report does not vouch for the gang itself."""
    tasks = (*job("wide", 2, user="ann"), *job("single", 1, user="bob"))
    rules = policy(gang={}, limit={"most": 1, "by": "user"})
    problem = Problem(name="x", nodes=tuple(cluster(1)), tasks=tasks, rules=rules)
    found = verify_policies(problem, Bound(), lambda *_: None)
    lines = [line for label, line in verification_report(problem, found, {}).lines if label == "never starts"]
    assert len(lines) == 1
    assert lines[0].startswith("wide cannot start even alone")


def test_the_spec_of_a_counterexample_keeps_deadlines() -> None:
    """The spec is replayed with the deadlines of the search, written as times after the arrival."""
    text = (
        "{version: 1, kind: placement, name: x, cluster: {nodes: [{cpu: 1}]}, workload: {tasks: [{job: a, run: 1 s}]}}"
    )
    tasks = tuple(job("a", 1, at=30, deadline=120.0, demand={"cpu": 1000}))
    finding = Finding(property_name="starvation", victim="a", prefix=())
    scenario = Scenario(tuple(cluster()), (Kind("a", tasks),), "a")
    spec = validate(PlacementSpec, parse(text, "x.yaml"))
    written = counterexample_spec(spec, Counterexample(finding, tasks, scenario, ""))
    assert [task["deadline"] for task in written["workload"]["tasks"]] == ["90 s"]


def test_a_search_leaves_the_collection_of_garbage_as_it_was() -> None:
    """It is rare while a search runs, and as before afterwards."""
    before = gc.get_threshold(), list(gc.callbacks)
    kind = Kind("small", (Task("", {"gpu": 1000}, 60.0),))
    assert search(Scenario(tuple(cluster(1)), (kind,), "small", 2), [], 100).is_complete
    assert (gc.get_threshold(), list(gc.callbacks)) == before
