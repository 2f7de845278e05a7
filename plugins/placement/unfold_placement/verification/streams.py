"""Streams in real time, for policies that decide by the clock or by timers: no time passes in a search.

A victim arrives among other jobs that come at a steady rate, every few seconds to every hour. If it has not ended when
the last of them comes, the same must hold in a stream that is eight times as long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from unfold_placement.core import kernel
from unfold_placement.core.policy import Policy, describe_failure
from unfold_placement.core.types import Task
from unfold_placement.simulation.simulator import SimulationResult, collect_result, prepare_simulation, run_simulation
from unfold_placement.verification.counterexample import (
    VICTIM_STEPS,
    Counterexample,
    Instance,
    build_tasks,
    endless_evidence,
    stuck_evidence,
)
from unfold_placement.verification.scenario import ARRIVE, END, Action, Scenario
from unfold_placement.verification.search import LIVELOCK, PREEMPTION_LOOP, STARVATION, STUCK, Finding
from unfoldkit.api import UnfoldError

STEPS_S = (6.0, 60.0, 3600.0)
"""Times between two arrivals in seconds."""
OVERLAPS = (0.5, 1.0, 1.5)
"""Run times of the other jobs, as parts of the time between two arrivals."""
ROUNDS, LATER_ROUNDS = 40, 320
"""Jobs of a stream, and of the longer one that must show the same."""
MAX_IDLE_WAKES = 1000
"""Timers that may fire in vain at the end of a stream."""


@dataclass(frozen=True, slots=True)
class Stream:
    """Jobs of the same kinds that come in turn, at a steady rate.

    Attributes:
        scenario: Cluster and kinds; its victim comes once, as the second job, and takes as long as ten of the others.
        kinds: The kinds that come in turn.
        step_s: Time between two arrivals in seconds.
        overlap: Run time of these jobs, as a part of that time.
    """

    scenario: Scenario
    kinds: tuple[str, ...]
    step_s: float
    overlap: float

    def list_tasks(self, rounds: int) -> list[Task]:
        """Return the tasks of so many arrivals, the victim's besides."""
        run_s = self.step_s * self.overlap
        victim = self._instance(self.scenario.victim, 0, self.step_s / 2, VICTIM_STEPS * self.step_s)
        others = [
            self._instance(self.kinds[number % len(self.kinds)], number // len(self.kinds), number * self.step_s, run_s)
            for number in range(rounds)
        ]
        instances = [*others[:1], victim, *others[1:]]
        return build_tasks(instances, self.scenario, rounds * self.step_s)

    def finding(self, name: str, message: str = "") -> Finding:
        """Return a finding of this stream."""
        arrivals = [Action(ARRIVE, kind) for kind in self.kinds]
        loop = tuple(action for arrival in arrivals for action in (arrival, Action(END, arrival.target)))
        victim = self.scenario.victim
        return Finding(
            property_name=name,
            victim=victim,
            prefix=(arrivals[0], Action(ARRIVE, victim)),
            loop=loop,
            message=message,
            used=self._used_fraction(),
        )

    def _used_fraction(self) -> float:
        """Return the fraction of the scarcest kind of capacity that the jobs beside the victim use."""
        tasks = [task for kind in self.kinds for task in self.scenario.kind(kind).tasks]
        totals = {kind: sum(node.capacity.get(kind, 0) for node in self.scenario.nodes) for kind in tasks[0].demand}
        used = {kind: sum(task.demand.get(kind, 0) for task in tasks) * self.overlap for kind in totals}
        return max((used[kind] / len(self.kinds) / total for kind, total in totals.items() if total), default=0.0)

    def _instance(self, kind: str, number: int, arrival_s: float, run_s: float) -> Instance:
        return Instance(kind, number, arrival_s, arrival_s, arrival_s + run_s)


def find_in_stream(scenario: Scenario, new_policies: Callable[[], Sequence[Policy]]) -> Counterexample | None:
    """Return what the first stream shows: a victim that never ends, or a policy that fails once time has passed."""
    for stream in _list_streams(scenario, new_policies):
        found = _judge(stream, ROUNDS, new_policies)
        if found is None:
            continue
        later = _judge(stream, LATER_ROUNDS, new_policies)
        if later is not None and later[0] == found[0]:
            name, evidence = found
            finding = stream.finding(name, evidence if name == LIVELOCK else "")
            return Counterexample(finding, tuple(stream.list_tasks(ROUNDS)), scenario, evidence)
    return None


def _list_streams(scenario: Scenario, new_policies: Callable[[], Sequence[Policy]]) -> Iterator[Stream]:
    """Yield the streams of a scenario in which the victim, alone, would end."""
    others = [kind.name for kind in scenario.kinds if kind.name != scenario.victim]
    for step_s in STEPS_S:
        try:
            alone = _replay(Stream(scenario, (), step_s, 1.0), 0, new_policies)
        except UnfoldError:
            continue  # the search finds it
        if not np.isfinite(alone.end_s).all() or alone.rejections:
            continue
        for kinds in (*((kind,) for kind in others), tuple(others)):
            for overlap in OVERLAPS:
                yield Stream(scenario, kinds, step_s, overlap)


def _replay(stream: Stream, rounds: int, new_policies: Callable[[], Sequence[Policy]]) -> SimulationResult:
    tasks = stream.list_tasks(rounds)
    controller = prepare_simulation(stream.scenario.nodes, tasks, new_policies())
    return collect_result(run_simulation(controller, max_idle_wakes=MAX_IDLE_WAKES))


def _judge(stream: Stream, rounds: int, new_policies: Callable[[], Sequence[Policy]]) -> tuple[str, str] | None:
    """Return the property that a stream violates, and what shows it; None for none."""
    victim = stream.scenario.victim
    try:
        result = _replay(stream, rounds, new_policies)
    except UnfoldError as error:
        return LIVELOCK, describe_failure(error)
    if evidence := stuck_evidence(victim, result):
        return STUCK, evidence
    rows = [row for row, task in enumerate(result.tasks) if task.job == f"{victim}0"]
    is_stopped = np.isin(result.log.tasks[result.log.kinds == kernel.LOG_PREEMPTED], rows).any()
    evidence = endless_evidence(victim, result)
    return (PREEMPTION_LOOP if is_stopped else STARVATION, evidence) if evidence else None
