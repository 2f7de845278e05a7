"""The admission queue: pending units by user, what each user holds, and admission of units while they fit."""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from unfold_placement.core.cluster_view import Unit, View
from unfold_placement.core.types import (
    ENDED,
    PREEMPTED,
    QUEUE,
    QUIET,
    REFUSED,
    ROOM,
    SUBMITTED,
    Ask,
    Event,
    Put,
    Task,
    Transactions,
    Wait,
    describe_lack,
    is_slot,
)
from unfold_placement.policies.shared.pending import UnitShapes
from unfold_placement.policies.shared.user_queue import UserQueue

QUEUE_EVENTS = frozenset({SUBMITTED, ENDED, PREEMPTED, REFUSED, QUIET})
"""Event kinds that a policy with an admission queue watches."""
RESERVE = "reserve"
"""Guards against starvation: nodes are reserved for the unit that waits longest, or nothing is."""
EVERYBODY = ""
"""The user of all units where the order of units is static."""
Rank = Callable[[str, Unit, View], Any]
"""Order of a user with its next unit."""


def admission_resource(task: Task) -> str:
    """Return the name of the ephemeral resource with which a task is admitted."""
    return f"turn-{task.name}"


def _allow_all(_user: str, _unit: Unit) -> bool:
    return True


def _ignore(_user: str, _unit: Unit) -> None:
    return None


def _rank_alike(_user: str, _unit: Unit, _view: View) -> int:
    return 0


@dataclass(slots=True)
class Round:
    """One round of admissions.

    Attributes:
        passing: Units may pass one that does not fit.
        lowest: First index to consider, by user.
        candidates: Index of the next unit, by user; -1 for none.
        ranked: Heap of users with their next units, the lowest rank first; None where an admission may have changed it.
        claimed: Cluster-scoped resources for which a passed unit waits: no later unit of the round takes them.
    """

    passing: bool
    lowest: dict[str, int] = field(default_factory=dict)
    candidates: dict[str, int] = field(default_factory=dict)
    ranked: list[tuple[Any, str, int]] | None = None
    claimed: set[int] = field(default_factory=set)

    def advance(self, user: str, index: int, *, has_changed: bool = False) -> None:
        """Consider a user's units from an index on; all users are ranked again if what they hold has changed."""
        self.lowest[user] = index
        self.candidates.pop(user, None)
        if has_changed:
            self.ranked = None


@dataclass(slots=True)
class AdmissionQueue:
    """Pending units by user; each user's units are in order of age.

    Attributes:
        group_by: Task field that names the user.
        static_rank: Order of units that never changes. All units are then of one user, in this order.
        guard: ``RESERVE`` keeps nodes free for the unit that waits longest where others may pass it.
        why_never: Returns why the policy never admits a unit of a user; empty if it may.
        queues: Pending units by user.
        shapes: Shapes of units, and which of them fit nowhere.
        parked: Units that request a resource which exists nowhere, such as the end of a stage, by its id. Neither room
            nor admission helps them, so they block no other unit.
        set_aside: Units that do not fit even on the empty cluster, with the reason. They block no other unit.
        rules_version: Version of the standing rules under which they were set aside.
        ages: Number of joining of each waiting or running task, and the time (s); a preempted task keeps both.
        joined: Number of tasks that ever joined.
        used: Amounts held by admitted tasks, by user and kind.
        admitted: Admitted tasks by user, in order of admission.
    """

    group_by: str
    static_rank: Callable[[Unit], Any] | None = None
    guard: str = RESERVE
    why_never: Callable[[str, Unit], str] | None = None
    queues: dict[str, UserQueue] = field(default_factory=dict)
    shapes: UnitShapes = field(default_factory=lambda: UnitShapes(QUEUE))
    parked: dict[int, list[Unit]] = field(default_factory=dict)
    set_aside: list[tuple[Unit, str]] = field(default_factory=list)
    rules_version: int = 0
    ages: dict[str, tuple[int, float]] = field(default_factory=dict)
    joined: int = 0
    used: dict[str, dict[str, int]] = field(default_factory=dict)
    admitted: dict[str, dict[str, Task]] = field(default_factory=dict)

    def request(self, task: Task) -> list[Ask]:
        """Return the request for the task's admission."""
        return [Ask(admission_resource(task), gated=True)]

    def observe(self, event: Event, view: View) -> bool:
        """Update queues and holdings after an event; return whether it is time to admit units."""
        task = event.task
        if task is None:
            if self.parked:
                self._unpark(view)
            if self.set_aside:
                self._return_possible(view)
            return event.kind == QUIET
        if event.kind != SUBMITTED and self.admitted.get(task.key(self.group_by), {}).pop(task.name, None) is not None:
            self._count_holding(task, -1)
        if event.kind in {ENDED, REFUSED}:
            self.ages.pop(task.name, None)
        if event.kind in {SUBMITTED, PREEMPTED}:
            unit = view.unit(task)
            # of a preempted gang, the event of the last member enqueues the unit
            if unit is not None and not any(self._is_admitted(member) for member in unit):
                self._enqueue(unit, view)
        return False

    def iter_waiting(self) -> Iterator[Task]:
        """Yield the tasks that wait for admission, parked and set aside ones included."""
        aside = [unit for unit, _ in self.set_aside]
        for unit in itertools.chain(*self.queues.values(), *self.parked.values(), aside):
            yield from unit

    def waiting_users(self) -> list[str]:
        """Return the users with pending units."""
        return list(self.queues)

    def first_unit(self, user: str) -> Unit:
        """Return the first pending unit of a user."""
        queue = self.queues[user]
        return queue.units[queue.next_live(0)]

    def age(self, unit: Unit) -> int:
        """Return the number of joining of a unit: of two units that rank alike, the older is first."""
        return self.ages.get(unit[0].name, (self.joined, 0.0))[0]

    def admit(
        self,
        rank: Rank,
        view: View,
        *,
        backfill: bool = False,
        is_allowed: Callable[[str, Unit], bool] = _allow_all,
        on_admit: Callable[[str, Unit], None] = _ignore,
        guard_rank: Rank = _rank_alike,
    ) -> Transactions:
        """Admit units while they fit: of each user in order of age, the user with the lowest rank first.

        A unit is passed in any case that waits for a used-up limit, or for a resource that exists nowhere or is used up
        on every node. One that
        does not fit even on the empty cluster is set aside.

        Args:
            rank: Order of a user with its next unit; of equal ranks the older unit is first.
            view: The cluster.
            backfill: Any unit may pass one that does not fit. With the guard ``RESERVE``, nodes are then reserved for
                the unit that waits longest; a gang can be passed for ``view.patience_s`` before.
            is_allowed: A user is skipped while it is false for its next unit.
            on_admit: Called with every admitted unit.
            guard_rank: Which unit gets the reservation: the lowest, of equal ones the oldest.
        """
        if view.reserved_unit:
            view.check_reservation()
        if not self.queues:
            return
        if self.shapes.revive(view) and view.reserved_unit:
            yield from self.admit_reserved(view, is_allowed, on_admit)
        yield from self._admit_by_rank(Round(passing=backfill), rank, view, is_allowed, on_admit)
        if backfill:
            self._reserve_oldest(view, is_allowed, guard_rank)

    def admitted_below(self, level: int) -> Iterator[Task]:
        """Yield the admitted tasks of classes below a level: lowest class first, latest admission first."""
        for lower in sorted((key for key in self.admitted if int(key) < level), key=int):
            yield from reversed(self.admitted[lower].values())

    def discard(self, unit: Unit, view: View) -> None:
        """Remove a pending unit, wherever it waits."""
        row = view.table.task_rows[unit[0].name]
        for user in list(self.queues):
            if (index := self.queues[user].index_of(unit, row)) >= 0:
                self._remove(user, index)
        self.set_aside = [pair for pair in self.set_aside if pair[0] != unit]

    def dominant_share(self, user: str, view: View) -> float:
        """Return the largest fraction of any kind that a user holds (Ghodsi et al., NSDI 2011)."""
        used = self.used.get(user, {})
        shares = (amount / total for kind, amount in used.items() if (total := view.total_capacity(kind)))
        return max(shares, default=0.0)

    def dominant_resource(self, unit: Unit, view: View) -> str:
        """Return the kind that a unit demands the largest fraction of; empty if it demands nothing."""
        demand = Counter[str]()
        for task in unit:
            demand.update({kind: amount for kind, amount in task.demand.items() if not is_slot(kind)})
        return max(demand, key=lambda kind: demand[kind] / (view.total_capacity(kind) or 1), default="")

    def describe_wait(self, task: Task, view: View) -> Wait | None:
        """Return why a task is not admitted and which task is in its way; None if it is admitted."""
        for unit, reason in self.set_aside:
            if task in unit:
                return Wait(f"set aside: {reason}")
        for resource, units in self.parked.items():
            if any(task in unit for unit in units):
                return describe_lack(view.resource_name(resource), "which exists nowhere yet")
        pending = [unit for queue in self.queues.values() for unit in queue]
        own = next((unit for unit in pending if task in unit), None)
        return None if own is None else _describe_pending(own, pending, view)

    def _admit_by_rank(
        self,
        progress: Round,
        rank: Rank,
        view: View,
        is_allowed: Callable[[str, Unit], bool],
        on_admit: Callable[[str, Unit], None],
    ) -> Transactions:
        """Admit units by rank until none fits, or until the next one does not fit and may not be passed."""
        while (best := self._choose(progress, rank, view, is_allowed)) is not None:
            user, index = best
            unit, shape = self.queues[user].units[index], self.queues[user].shapes[index]
            if not all(view.is_waiting(task) for task in unit):
                self._skip(user, index, view)
                progress.advance(user, 0, has_changed=True)
            elif progress.claimed and progress.claimed & view.cluster_requests(unit, QUEUE):
                progress.advance(user, index + 1)
            elif view.room(unit, QUEUE) is not None:
                yield self._admit_unit(user, index, on_admit)
                progress.advance(user, index + 1, has_changed=True)
                if self.parked and self._unpark(view):
                    # indices have changed
                    progress.lowest, progress.candidates = {}, {}
            elif progress.passing:
                self._claim(unit, view, progress)
                self.shapes.hopeless[shape, 0] = 1
                progress.advance(user, index + 1)
            elif self._let_pass(user, index, view, progress):
                progress.advance(user, index + 1)
            else:
                return

    def _choose(
        self,
        progress: Round,
        rank: Rank,
        view: View,
        is_allowed: Callable[[str, Unit], bool],
    ) -> tuple[str, int] | None:
        """Return the user and index of the unit that is next, or None."""
        if progress.ranked is None:
            progress.ranked, unranked = [], list(self.queues)
        else:
            # since the last choice, only its user has another unit
            user = heapq.heappop(progress.ranked)[1]
            unranked = [user] if user in self.queues else []
        for user in unranked:
            queue = self.queues[user]
            if user not in progress.candidates:
                low = progress.lowest.get(user, 0)
                index = queue.next_index(view, self.shapes, low) if progress.passing else queue.next_live(low)
                progress.candidates[user] = index
            index = progress.candidates[user]
            if index >= 0 and is_allowed(user, queue.units[index]):
                unit = queue.units[index]
                heapq.heappush(progress.ranked, ((rank(user, unit, view), self.age(unit)), user, index))
        return progress.ranked[0][1:] if progress.ranked else None

    def _let_pass(self, user: str, index: int, view: View, progress: Round) -> bool:
        """Return whether a unit lacks something else than room, so that it blocks no other unit."""
        unit = self.queues[user].units[index]
        if (missing := view.missing_resource(unit, QUEUE)) is not None:
            self._remove(user, index)
            self.parked.setdefault(missing, []).append(unit)
            return True
        if self._claim(unit, view, progress):
            return True
        if reason := view.why_impossible(unit):
            self._set_aside(user, index, reason, view)
            return True
        return view.scarce_resource(unit) is not None

    def _claim(self, unit: Unit, view: View, progress: Round) -> bool:
        """Keep a used-up limit for the unit that is first to wait for it; return whether there is one."""
        short = view.short_resources(unit, QUEUE) if not progress.passing or len(unit) > 1 else set()
        progress.claimed |= short
        return bool(short)

    def admit_reserved(
        self,
        view: View,
        is_allowed: Callable[[str, Unit], bool] = _allow_all,
        on_admit: Callable[[str, Unit], None] = _ignore,
    ) -> Transactions:
        """Admit the unit for which nodes are reserved, if it fits by now."""
        unit = view.reserved_unit
        user = self._user(unit) if unit else ""
        if not unit or user not in self.queues or not is_allowed(user, unit):
            return
        if view.room(unit, QUEUE) is None:
            return
        index = self.queues[user].index_of(unit, view.table.task_rows[unit[0].name])
        if index >= 0:
            yield self._admit_unit(user, index, on_admit)
            view.release_reservation()
            self.shapes.revive(view)

    def _reserve_oldest(self, view: View, is_allowed: Callable[[str, Unit], bool], guard_rank: Rank) -> None:
        """Reserve nodes for the unit that waits longest, unless another policy has reserved some."""
        owner = view.reserved_unit
        if owner and self._user(owner) not in self.queues:
            return
        if owner and guard_rank is _rank_alike and view.scarce_resource(owner) is None:
            return
        while (oldest := self._find_oldest(view, is_allowed, guard_rank)) is not None:
            user, index = oldest
            unit = self.queues[user].units[index]
            if view.reserve(unit):
                return
            reason = view.why_impossible(unit) or "no nodes suffice for it"
            self._set_aside(user, index, reason, view)
        view.release_reservation()

    def _find_oldest(
        self, view: View, is_allowed: Callable[[str, Unit], bool], guard_rank: Rank
    ) -> tuple[str, int] | None:
        best, best_rank = None, None
        scarce: set[int] = set()
        for user, queue in self.queues.items():
            index = queue.next_live(0)
            while index >= 0 and not self._needs_room(queue.units[index], queue.shapes[index], scarce, view):
                index = queue.next_live(index + 1)
            if index < 0 or not is_allowed(user, queue.units[index]):
                continue
            unit = queue.units[index]
            unit_rank: Any = (guard_rank(user, unit, view), self.age(unit))
            if best_rank is None or unit_rank < best_rank:
                best, best_rank = (user, index), unit_rank
        return best

    def _needs_room(self, unit: Unit, shape: int, scarce: set[int], view: View) -> bool:
        """Return whether nodes should be reserved for a unit; ``scarce`` collects shapes that lack something else."""
        if shape in scarce or not self._lacks_only_room(unit, view):
            return False
        if view.scarce_resource(unit) is not None:
            scarce.add(shape)
        return shape not in scarce

    def _lacks_only_room(self, unit: Unit, view: View) -> bool:
        """Return whether nodes should be reserved for a unit if it is the oldest."""
        if self.guard != RESERVE and not (view.gang_key and len(unit) > 1):
            return False
        since_s = self.ages[unit[0].name][1] if unit[0].name in self.ages else view.now
        has_waited = view.now - since_s >= view.patience_s
        return has_waited and view.missing_resource(unit, QUEUE) is None and not view.short_resources(unit, QUEUE)

    def _is_admitted(self, task: Task) -> bool:
        return task.name in self.admitted.get(task.key(self.group_by), {})

    def _user(self, unit: Unit) -> str:
        return EVERYBODY if self.static_rank is not None else unit[0].key(self.group_by)

    def _enqueue(self, unit: Unit, view: View) -> None:
        for task in unit:
            if task.name not in self.ages:
                self.joined += 1
                self.ages[task.name] = self.joined, view.now
        user = self._user(unit)
        if self.why_never is not None and (reason := self.why_never(user, unit)):
            self.set_aside.append((unit, reason))
            return
        if (missing := view.missing_resource(unit, QUEUE)) is not None:
            self.parked.setdefault(missing, []).append(unit)
            return
        rows = [view.table.task_rows[task.name] for task in unit]
        key = (self.static_rank(unit), self.age(unit)) if self.static_rank is not None else self.age(unit)
        queue = self.queues.setdefault(user, UserQueue())
        queue.compact()
        shape = self.shapes.shape_number(rows, view)
        queue.insert(unit, key, rows[0], shape)

    def _remove(self, user: str, index: int) -> None:
        queue = self.queues[user]
        queue.remove(index)
        if queue.next_live(0) < 0:
            del self.queues[user]

    def _set_aside(self, user: str, index: int, reason: str, view: View) -> None:
        self.set_aside.append((self.queues[user].units[index], reason))
        self.rules_version = view.empty_cluster.rules_version
        self._remove(user, index)

    def _unpark(self, view: View) -> bool:
        """Enqueue the parked units again that wait for resources which exist by now; return whether there were any."""
        resources = [resource for resource in self.parked if view.exists(resource)]
        for resource in resources:
            for unit in self.parked.pop(resource):
                self._enqueue(unit, view)
        return bool(resources)

    def _return_possible(self, view: View) -> None:
        """Enqueue the units again that were set aside and fit on the empty cluster since the rules or nodes changed."""
        if not self.set_aside or self.rules_version == view.empty_cluster.rules_version:
            return
        self.rules_version = view.empty_cluster.rules_version
        units, self.set_aside = self.set_aside, []
        for unit, reason in units:
            if not any(view.is_waiting(task) for task in unit):
                continue
            if view.why_impossible(unit) or (self.why_never is not None and self.why_never(self._user(unit), unit)):
                self.set_aside.append((unit, reason))
            else:
                self._enqueue(unit, view)

    def _admit_unit(self, user: str, index: int, on_admit: Callable[[str, Unit], None]) -> list[Put]:
        unit = self.queues[user].units[index]
        self._remove(user, index)
        for task in unit:
            self._add_admitted(task)
        on_admit(user, unit)
        return [Put(admission_resource(task), until=task.name) for task in unit]

    def _skip(self, user: str, index: int, view: View) -> None:
        # on a live cluster tasks are withdrawn, and a restarted controller finds some running
        unit = self.queues[user].units[index]
        self._remove(user, index)
        if remaining := view.remaining_unit(unit):
            self._enqueue(remaining, view)
        for task in unit:
            if view.is_running(task):
                self._add_admitted(task)

    def _add_admitted(self, task: Task) -> None:
        self.admitted.setdefault(task.key(self.group_by), {})[task.name] = task
        self._count_holding(task, 1)

    def _count_holding(self, task: Task, sign: int) -> None:
        used = self.used.setdefault(task.key(self.group_by), {})
        for kind, amount in task.demand.items():
            if not is_slot(kind):
                used[kind] = used.get(kind, 0) + sign * amount


def _describe_pending(own: Unit, pending: Sequence[Unit], view: View) -> Wait | None:
    if short := view.short_resources(own, QUEUE):
        return describe_lack(view.resource_name(min(short)), "which is used up")
    if (scarce := view.scarce_resource(own)) is not None:
        return describe_lack(view.resource_name(scarce), "which is used up on every node")
    if view.reserved_unit == own:
        return Wait("is next: nodes are kept free for it until it fits")
    if view.reserved_unit:
        return Wait("waits for its turn", view.reserved_unit[0].name, "for which nodes are kept free")
    if view.room(own, QUEUE) is None:
        return Wait(ROOM)
    ahead = next((unit for unit in pending if unit != own and view.room(unit, QUEUE) is None), ())
    return Wait("waits for its turn", ahead[0].name, "which is ahead and does not fit") if ahead else None
