"""The search for counterexamples."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest

from plugins.placement.tests.cases import cluster, job, policy
from unfold_placement.core.cluster_view import View
from unfold_placement.core.types import ANYWHERE, ENDED, STATIC, SUBMITTED, Ask, Event, Put, Task, Transactions
from unfold_placement.policies.registry import build_policies
from unfold_placement.report.sentences import counterexample_hint
from unfold_placement.simulation.deadlock_check import Counterexample, find_counterexample


def found(tasks: list[Task], **parts: Any) -> Counterexample | None:
    """Return the counterexample to a composition on four nodes of four GPUs."""
    return find_counterexample(cluster(), tasks, lambda: build_policies(policy(**parts)))


def test_a_gang_that_keeps_apart_needs_as_many_nodes() -> None:
    """Six that must start together on six different nodes of four never do; four do."""
    blocked = found([*job("ok", 4), *job("wide", 6)], **{"gang": {}, "anti-affinity": {}})
    assert blocked is not None
    assert (blocked.jobs, len(blocked.stuck), blocked.finished) == (("wide",), 6, 0)
    assert found(job("ok", 4), **{"gang": {}, "anti-affinity": {}}) is None


@pytest.mark.parametrize(
    ("tasks", "parts"),
    [
        ([*job("a", 1, follows="b"), *job("b", 1, follows="a")], {"affinity": {}}),
        ([*job("a", 1, after=("b",)), *job("b", 1, after=("a",))], {"barrier": {}}),
        (job("a", 3), {"gang": {}, "limit": {"most": 2}}),
        (job("a", 6), {"gang": {}, "pack": {"level": "node"}}),
        (job("a", 2), {"quota": {"quotas": {"a": 1}, "borrow": False}, "gang": {}}),
        (job("a", 1, data=("x",)), {"locality": {"any_after": "1 s"}, "barrier": {}, "limit": {"most": 1}}),
    ][:-1],
)
def test_a_job_that_waits_for_itself_is_an_error(tasks: list[Task], parts: dict[str, Any]) -> None:
    """Circles, and gangs larger than what a limit, a node or a quota lets run, are found."""
    blocked = found(tasks, **parts)
    assert blocked is not None
    assert blocked.stuck


def test_a_task_that_exceeds_every_node_is_found_without_policies() -> None:
    """A demand larger than every node is a counterexample by itself."""
    assert found([Task("big", {"gpu": 5000}, 1.0, job="big")]) is not None
    assert found(job("a", 3)) is None


@dataclass
class InLine:
    """A bad policy: admits the oldest task alone, which may be one that no node can hold."""

    line: list[str] = field(default_factory=list)
    phase: ClassVar[int] = STATIC
    watches: ClassVar[frozenset[str]] = frozenset({SUBMITTED, ENDED})

    def request(self, task: Task) -> Iterable[Ask]:
        return [Ask(f"turn-{task.name}")]

    def react(self, event: Event, view: View) -> Transactions:
        assert event.task is not None
        if event.kind == SUBMITTED:
            self.line.append(event.task.name)
        else:
            self.line.remove(event.task.name)
        if self.line:
            yield [Put(f"turn-{self.line[0]}", until=self.line[0])]


def test_the_job_that_an_impossible_one_blocks_is_named() -> None:
    """One that runs alone and waits forever beside it is what the policy does wrong; a job that passes it is not."""
    tasks = [Task("big", {"gpu": 5000}, 1.0, job="big"), *job("a", 1)]
    blocked = find_counterexample(cluster(), tasks, lambda: [InLine()])
    assert blocked is not None
    assert (blocked.jobs, blocked.blocked) == (("big",), "a")
    assert "a, which runs alone, waits forever behind it" in counterexample_hint(blocked)
    passed = found(tasks, fifo={})
    assert passed is not None
    assert (passed.jobs, passed.blocked) == (("big",), "")


@dataclass
class Halves:
    """A bad policy: two permits for the cluster, each job needs both, and takes them one at a time."""

    permits: int = 2
    want: list[str] = field(default_factory=list)
    held: dict[str, list[str]] = field(default_factory=dict)
    phase: ClassVar[int] = STATIC
    watches: ClassVar[frozenset[str]] = frozenset({SUBMITTED, ENDED})

    def request(self, task: Task) -> Iterable[Ask]:
        return [Ask(f"both-{task.job}")]

    def react(self, event: Event, view: View) -> Transactions:
        assert event.task is not None
        self.permits += event.kind == ENDED
        self.want += [event.task.job] if event.kind == SUBMITTED else []
        while self.permits and self.want:
            self.permits -= 1
            job = self.want.pop(0)
            self.held.setdefault(job, []).append(job)
            if len(self.held[job]) == 2:
                yield [Put(f"both-{job}", ANYWHERE, 2)]


def test_two_jobs_that_hold_halves_block_each_other() -> None:
    """Hold and wait: each job alone runs, together they do not; the pair is the counterexample."""
    tasks = [task for pair in zip(job("a", 2, user="x"), job("b", 2, user="y", run=3.0), strict=True) for task in pair]
    assert find_counterexample(cluster(), tasks[::2], lambda: [Halves()]) is None
    blocked = find_counterexample(cluster(), tasks, lambda: [Halves()])
    assert blocked is not None
    assert set(blocked.jobs) == {"a", "b"}
    assert set(blocked.stuck) == {"a-0", "a-1", "b-0", "b-1"}
