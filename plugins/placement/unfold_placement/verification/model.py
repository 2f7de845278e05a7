"""A controller as a state: copies of it, and the canonical form by which equal states are recognised.

The objects are those that run in ``unfold plan`` and ``unfold serve``; nothing is translated. Two controllers are the
same state if their cluster, their queue and the fields of their policies are equal, apart from the names of jobs of
one kind.
"""

from __future__ import annotations

import copy
import functools
import re
from collections import Counter, deque
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from types import FunctionType, MethodType
from typing import Any, cast

import numpy as np

from unfold_placement.core import kernel
from unfold_placement.core.controller import Controller
from unfold_placement.core.feasibility import EmptyCluster
from unfold_placement.core.resources import ResourceTable
from unfold_placement.core.state import StateArrays
from unfold_placement.core.types import Ask, EphemeralResource, Event, Node, Task
from unfold_placement.core.view import View
from unfold_placement.policies.shared.admission_queue import AdmissionQueue
from unfold_placement.policies.shared.pending import PendingUnits, UnitShapes
from unfold_placement.policies.shared.unit_queue import UnitQueue

ATOMS = (int, float, str, bool, bytes, type(None), FunctionType, type, re.Pattern, frozenset)
SHARED = (Task, Node, Ask, EphemeralResource, Event)
"""Immutable objects that copies share."""
FIXED_ARRAYS = frozenset(
    {"demand", "requested", "requested_amount", "request_phase", "run_s", "arrival_s", "arrival_order", "node_type"}
)
"""Arrays that no action changes."""
SLOT_MARK = "~"
"""Separates the kind of a job from the number of its slot in the job's name."""
_SLOT = re.compile(rf"[\w-]+{SLOT_MARK}\d+")
DIGITS = 6


def copy_controller(controller: Controller) -> Controller:
    """Return an independent copy of a controller; tasks, nodes and other immutable objects are shared."""
    table = _copy_table(controller.table)
    memo: dict[int, Any] = {id(controller.table): table}
    view = object.__new__(View)
    memo[id(controller.view)] = view
    for name in _field_names(View):
        value = getattr(controller.view, name)
        setattr(view, name, value if name == "label_groups" else _copy_value(value, memo))
    duplicate = object.__new__(Controller)
    memo[id(controller)] = duplicate
    for name in _field_names(Controller):
        setattr(duplicate, name, _copy_value(getattr(controller, name), memo))
    return duplicate


@dataclass(frozen=True, slots=True)
class Renaming:
    """Names of jobs by the order of their arrival among the living jobs of their kind.

    Attributes:
        jobs: New names of the living jobs.
    """

    jobs: Mapping[str, str]

    def __call__(self, text: str) -> str:
        """Return a text in which the names of jobs are replaced."""
        if SLOT_MARK not in text:
            return text
        return _SLOT.sub(lambda match: self.jobs.get(match[0], "ended"), text)


def canonical_key(controller: Controller, rename: Renaming) -> Hashable:
    """Return the canonical form of a controller's state.

    Args:
        controller: The controller, after its events have been processed.
        rename: Names of the living jobs.
    """
    table, state, view = controller.table, controller.table.state, controller.view
    running = tuple((rename(task.name), node) for task, node, _ in view.running())
    waiting = tuple(rename(task.name) for task in view.waiting())
    entries = tuple(
        sorted(
            (rename(name), node, entry.amount, rename(entry.until))
            for name, nodes in table.entries.items()
            for node, entry in nodes.items()
        )
    )
    reserved = (tuple(rename(task.name) for task in view.reserved_unit), state.is_reserved.tobytes())
    finished = tuple(sorted((rename(name), count) for name, count in view.finished.items() if count))
    timers = tuple(round(timer - table.now, DIGITS) for timer in sorted(controller.timers))
    policies = tuple(_policy_form(policy, rename) for policy in controller.policies)
    # holders of a deleted resource still count against its successor
    held = tuple(
        sorted(
            (rename(name), state.capacity[:, column].tobytes(), state.available[:, column].tobytes())
            for name, number in table.name_ids.items()
            if (column := int(state.column[number])) >= 0
        )
    )
    return running, waiting, entries, held, reserved, finished, timers, state.is_up.tobytes(), policies


def _policy_form(policy: object, rename: Renaming) -> Hashable:
    own_form: Callable[[], Hashable] | None = getattr(policy, "state", None)
    if own_form is None:
        return _form(policy, rename)
    queue = getattr(policy, "queue", None)
    return _form(own_form(), rename), _form(queue, rename)


def _mapping_form(value: Mapping[Any, Any], rename: Renaming) -> Hashable:
    """Return the form of a mapping without empty values; the order of jobs matters, that of users does not."""
    pairs = [(_form(key, rename), _form(item, rename)) for key, item in value.items()]
    kept = [pair for pair in pairs if not _is_empty(pair[1])]
    has_jobs = any(isinstance(key, str) and SLOT_MARK in key for key in value)
    return tuple(kept if has_jobs else sorted(kept, key=repr))


def _form(value: Any, rename: Renaming) -> Hashable:  # noqa: C901, PLR0911, PLR0912
    """Return a hashable form of a value: names of jobs replaced, numbers rounded, empty values left out."""
    # the most frequent types first: the instance checks below take longer than the rest of a search
    if value is None or type(value) in {int, bool}:
        return cast("Hashable", value)
    if isinstance(value, str):
        return rename(value)
    if type(value) in {tuple, list}:
        return tuple([_form(item, rename) for item in value])
    if isinstance(value, float):
        return round(value, DIGITS)
    if isinstance(value, Task):
        return rename(value.name)
    if isinstance(value, AdmissionQueue):
        ages = sorted((age, rename(name)) for name, (age, _) in value.ages.items())
        order = tuple(name for _, name in ages if name != "ended")
        admitted = {user: list(tasks) for user, tasks in value.admitted.items()}
        parts = (value.queues, list(value.parked.values()), value.set_aside, value.used, admitted)
        return (order, *(_form(part, rename) for part in parts))
    if isinstance(value, UnitQueue):
        return tuple(_form(unit, rename) for unit in value)
    if isinstance(value, PendingUnits):
        flags = value.flags[: len(value.units)].tolist()
        return tuple(
            (_form(unit, rename), flag)
            for (unit, _), flag in zip(value.units, flags, strict=True)
            if flag != kernel.LEFT_QUEUE
        )
    if isinstance(value, (UnitShapes, FunctionType, MethodType, EmptyCluster)):
        return None
    if isinstance(value, Mapping):
        return _mapping_form(value, rename)
    if isinstance(value, (set, frozenset)):
        return tuple(sorted((_form(item, rename) for item in value), key=repr))
    if isinstance(value, (list, tuple, deque)):
        return tuple(_form(item, rename) for item in value)
    if isinstance(value, np.ndarray):
        return tuple(np.round(value, DIGITS).ravel().tolist())
    if names := _field_names(cast("Hashable", type(value))):
        return tuple(_form(getattr(value, name), rename) for name in names if hasattr(value, name))
    if hasattr(value, "__dict__"):
        return tuple(_form(item, rename) for _, item in sorted(vars(value).items()))
    return value if isinstance(value, Hashable) else repr(value)


def _is_empty(value: Hashable) -> bool:
    return value is None or value in (0, (), "")


@functools.cache
def _field_names(kind: Hashable) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind)) if isinstance(kind, type) and is_dataclass(kind) else ()


def _copy_value(value: Any, memo: dict[int, Any]) -> Any:  # noqa: C901, PLR0911
    kind = type(value)
    if kind in ATOMS or kind in SHARED:
        return value
    known = memo.get(id(value))
    if known is not None:
        return known
    if kind is tuple:
        items = tuple([_copy_value(item, memo) for item in value])
        return value if all(new is old for new, old in zip(items, value, strict=True)) else items
    if kind is list:
        return [_copy_value(item, memo) for item in value]
    if kind is deque:
        return deque((_copy_value(item, memo) for item in value), value.maxlen)
    if kind is dict:
        return {key: _copy_value(item, memo) for key, item in value.items()}
    if kind is Counter or kind is np.ndarray:
        return value.copy()
    if kind is MethodType:
        return MethodType(value.__func__, _copy_value(value.__self__, memo))
    if kind is EmptyCluster:
        return EmptyCluster(
            memo[id(value.table)], value.rules_version, value.seen_version, value.capacity, None, dict(value.reasons)
        )
    names = _field_names(cast("Hashable", kind))
    if not names:
        return copy.deepcopy(value, memo)
    duplicate = object.__new__(kind)
    memo[id(value)] = duplicate
    for name in names:
        if hasattr(value, name):
            object.__setattr__(duplicate, name, _copy_value(getattr(value, name), memo))
    return duplicate


def _copy_table(table: ResourceTable) -> ResourceTable:
    arrays = {name: array if name in FIXED_ARRAYS else array.copy() for name, array in table.state._asdict().items()}
    return ResourceTable(
        table.nodes,
        table.resource_kinds,
        StateArrays(**arrays),
        table.tasks,
        table.task_rows,
        table.node_rows,
        dict(table.name_ids),
        list(table.columns),
        {name: dict(nodes) for name, nodes in table.entries.items()},
        {name: list(bound) for name, bound in table.task_bound.items()},
        table.epoch,
        table.next_expiry_s,
    )
