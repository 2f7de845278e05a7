"""A controller as a state: copies of it, and the canonical form by which equal states are recognized.

The objects are those that run in ``unfold plan`` and ``unfold serve``; nothing is translated. Two controllers are the
same state if their cluster, their queue and the fields of their policies are equal, apart from the names of jobs of
one kind.
"""

from __future__ import annotations

import copy
import functools
import math
import operator
import random
import re
import weakref
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from types import FunctionType, MethodType, UnionType
from typing import Any, NamedTuple, TypeGuard, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

from unfold_placement.core import kernel
from unfold_placement.core.cluster_view import View
from unfold_placement.core.controller import Controller
from unfold_placement.core.feasibility import EmptyCluster
from unfold_placement.core.policy import (
    POLICY_FAILURES,
    InstantBudget,
    Policy,
    call_hook,
    describe_error,
    is_shipped,
    policy_error,
)
from unfold_placement.core.resources import ResourceTable
from unfold_placement.core.state import StateArrays
from unfold_placement.core.types import Ask, EphemeralResource, Event, Node, Task
from unfold_placement.policies.shared.admission_queue import AdmissionQueue
from unfold_placement.policies.shared.pending import PendingUnits, UnitShapes
from unfold_placement.policies.shared.user_queue import UserQueue
from unfoldkit.api import UnfoldError

Running = Sequence[tuple[Task, str, float]]
"""The running tasks with node and start time (s), in order of start, as ``View.running`` lists them."""
ATOMS = frozenset({int, float, str, bool, bytes, type(None), FunctionType, type, re.Pattern, frozenset})
SHARED = frozenset({Task, Node, Ask, EphemeralResource, Event, InstantBudget})
"""Objects that copies share: they are immutable, or every action starts with a new one."""
FIXED_ARRAYS = frozenset(
    {
        "demand",
        "requested",
        "requested_amount",
        "request_phase",
        "run_s",
        "arrival_s",
        "arrival_order",
        "node_type",
        "device_kinds",
    }
)
"""Arrays that no action changes."""
CHANGED_ARRAYS = tuple(index for index, name in enumerate(StateArrays._fields) if name not in FIXED_ARRAYS)
"""Indices of all others."""
SLOT_MARK = "~"
"""Separates the kind of a job from the number of its slot in the job's name."""
DIGITS = 6
NAN = "NaN"
"""Form of a number that is not one."""
ENDED = "ended"
"""New name of a job that has ended."""
PICKLE_PROTOCOL = 4
FIRST = operator.itemgetter(0)
Found = TypeVar("Found")


class ByType(dict[Any, Found]):
    """What is found for each key, such as a type, kept: a look-up in a mapping is quicker than a call."""

    def __init__(self, find: Callable[[Any], Found]) -> None:
        super().__init__()
        self.find = find

    def __missing__(self, kind: Any) -> Found:
        """Find it for a key that was not seen before."""
        found = self[kind] = self.find(kind)
        return found


def copy_controller(controller: Controller) -> Controller:
    """Return an independent copy of a controller; tasks, nodes and other immutable objects are shared."""
    table = _copy_table(controller.table)
    memo: dict[int, Any] = {id(controller.table): table}
    view, duplicate = object.__new__(View), object.__new__(Controller)
    memo[id(controller.view)], memo[id(controller)] = view, duplicate
    _copy_fields(controller.view, view, memo)
    view.label_groups = controller.view.label_groups
    _fill_by_init(controller, duplicate, memo)
    return duplicate


class Renaming(dict[str, str]):
    """Texts in which the names of jobs are replaced by their order of arrival among the living jobs of their kind.

    Attributes:
        jobs: New names of the living jobs.
        kinds: Names of all kinds of jobs.
        keeps_empty: A mapping's zeros and empty values are part of its form: code outside this package may look for
            their keys.
        open_objects: Depth of each object of which the form is being built, by its id: a part of it may refer to it.
    """

    def __init__(self, jobs: Mapping[str, str], kinds: tuple[str, ...], *, keeps_empty: bool = False) -> None:
        super().__init__()
        self.jobs, self.kinds, self.keeps_empty = jobs, kinds, keeps_empty
        self.open_objects: dict[int, int] = {}

    def __missing__(self, text: str) -> str:
        """Return a text in which the names of jobs are replaced, and keep it."""
        # users and nodes hold no job's name
        renamed = text
        if SLOT_MARK in text:
            parts = list(_split_at_jobs(text, self.kinds))
            parts[1::2] = [self.jobs.get(job, ENDED) for job in parts[1::2]]
            renamed = "".join(parts)
        self[text] = renamed
        return renamed


@functools.lru_cache(maxsize=1 << 16)
def _split_at_jobs(text: str, kinds: tuple[str, ...]) -> tuple[str, ...]:
    """Split a text into other parts and names of jobs, in turn: names may stand within longer ones.

    Args:
        text: A text, such as the name of a resource.
        kinds: Names of all kinds of jobs.
    """
    names = "|".join(re.escape(kind) for kind in sorted(kinds, key=len, reverse=True))
    return tuple(re.split(rf"((?:{names}){SLOT_MARK}\d+)", text))


def list_running(controller: Controller) -> Running:
    """List the running tasks of a small cluster; ``View.running`` is made for large ones."""
    table, state = controller.table, controller.table.state
    rows = [row for row, status in enumerate(state.status.tolist()) if status == kernel.RUNNING]
    starts, nodes = state.start_s.tolist(), state.task_node.tolist()
    rows.sort(key=starts.__getitem__)
    return [(table.tasks[row], table.nodes[nodes[row]].name, starts[row]) for row in rows]


def canonical_key(controller: Controller, rename: Renaming, running: Running, *, is_coarse: bool = False) -> Hashable:
    """Return the canonical form of a controller's state.

    Args:
        controller: The controller, after its events have been processed.
        rename: Names of the living jobs.
        running: The running tasks.
        is_coarse: Of the numbers of a policy only signs and order count, so that tags and counters which grow for ever
            recur.
    """
    table, state, view = controller.table, controller.table.state, controller.view
    running_form = tuple([(rename[task.name], node) for task, node, _ in running])
    shares = _share_form(table, running) if state.device_kinds.size else ()
    status, tasks = state.status.tolist(), table.tasks
    queued = state.queue[: state.counters[kernel.QUEUED]].tolist()
    waiting = tuple([rename[tasks[row].name] for row in queued if status[row] == kernel.WAITING])
    entries = tuple(
        sorted(
            [
                (rename[name], node, entry.amount, rename[entry.until])
                for name, nodes in table.entries.items()
                for node, entry in nodes.items()
            ]
        )
    )
    reserved = (tuple([rename[task.name] for task in view.reserved_unit]), state.is_reserved.tobytes())
    finished = tuple(sorted([(rename[name], count) for name, count in view.finished.items() if count]))
    # timers of one instant fire once
    timers = tuple(sorted({round(timer - table.now, DIGITS) for timer in controller.timers}))
    policies = tuple([canonical_form(policy, rename) for policy in controller.policies])
    if is_coarse:
        policies = tuple(_ranked_form(form) for form in policies)
    # holders of a deleted resource still count against its successor
    columns = zip(table.columns, state.capacity.T.tolist(), state.available.T.tolist(), strict=False)
    held = tuple(sorted([(rename[name], *capacity, *available) for name, capacity, available in columns if name]))
    return running_form, shares, waiting, entries, held, reserved, finished, timers, state.is_up.tobytes(), policies


def _share_form(table: ResourceTable, running: Running) -> Hashable:
    """Return which running tasks share a device, whatever the order of a node's devices."""
    numbers: dict[tuple[str, int, int], int] = {}
    return tuple(
        numbers.setdefault((node, index, device), len(numbers))
        for task, node, _ in running
        for index, device in enumerate(table.state.device[table.task_rows[task.name]].tolist())
    )


def canonical_form(policy: Policy, rename: Renaming) -> Hashable:
    """Return the canonical form of what a policy keeps, or of its ``state()``.

    Raises:
        UnfoldError: What it keeps has no form: a list that contains itself, or a weak reference.
    """
    renaming = rename if IS_SHIPPED[type(policy)] else Renaming(rename.jobs, rename.kinds, keeps_empty=True)
    try:
        if getattr(policy, "state", None) is None:
            return _form(policy, renaming)
        return _form(call_hook(policy, "state"), renaming), _form(getattr(policy, "queue", None), renaming)
    except UnfoldError:
        raise
    except POLICY_FAILURES as error:
        is_endless = isinstance(error, RecursionError)
        cause = "it contains itself, or is nested too deeply" if is_endless else describe_error(error)
        message = f"equal states cannot be recognized by what it keeps: {cause}"
        raise policy_error(policy, "__init__", message, hint="define state()") from error


IS_SHIPPED = ByType(is_shipped)
"""Whether a class is one of this package."""


def _ranked_form(form: Hashable) -> Hashable:
    """Return a form in which numbers are replaced by their order, zero included."""
    ranks = {number: rank for rank, number in enumerate(sorted({0.0, *_list_numbers(form)}))}

    def ranked(part: Any) -> Hashable:
        if isinstance(part, tuple):
            return tuple([ranked(item) for item in part])
        return ("rank", ranks[part] - ranks[0.0]) if _is_number(part) else part

    return ranked(form)


def _list_numbers(form: Hashable) -> Iterator[float]:
    if _is_number(form):
        yield form
    elif isinstance(form, tuple):
        for part in form:
            yield from _list_numbers(part)


def _is_number(part: Hashable) -> TypeGuard[float]:
    return isinstance(part, int | float) and not isinstance(part, bool)


def _form(value: Any, rename: Renaming) -> Hashable:
    """Return a hashable form of a value: names of jobs replaced, numbers rounded, empty values left out."""
    return FORMER_OF[type(value)](value, rename)


def _find_former(kind: Any) -> Callable[[Any, Renaming], Hashable]:
    """Return how values of a type get their form."""
    for base, former in FORMERS.items():
        if issubclass(kind, base):
            return former
    names = _field_names(kind)
    if names and IS_SHIPPED[kind] and not kind.__dictoffset__:
        return lambda value, rename: _fields_form(value, names, rename)
    return _other_form


def _same_form(value: Hashable, _rename: Renaming) -> Hashable:
    return value


def _no_form(_value: object, _rename: Renaming) -> None:
    return None


def _text_form(value: str, rename: Renaming) -> str:
    return rename[value]


def _number_form(value: float, _rename: Renaming) -> float | str:
    # NaN is not equal to itself
    return NAN if math.isnan(value) else round(value, DIGITS)


def _scalar_form(value: np.generic, rename: Renaming) -> Hashable:
    item = value.item()
    # Python has no number of this precision
    return repr(value) if isinstance(item, np.generic) else _form(item, rename)


def _task_form(value: Task, rename: Renaming) -> str:
    return rename[value.name]


def _queue_form(value: AdmissionQueue, rename: Renaming) -> Hashable:
    ages = sorted([(age, rename[name]) for name, (age, _) in value.ages.items()])
    order = tuple([name for _, name in ages if name != ENDED])
    admitted = {user: list(tasks) for user, tasks in value.admitted.items()}
    parts = (value.queues, list(value.parked.values()), value.set_aside, value.used, admitted)
    return (order, *[_form(part, rename) for part in parts])


def _pending_form(value: PendingUnits, rename: Renaming) -> Hashable:
    flags = value.flags[: len(value.units)].tolist()
    units = zip(value.units, flags, strict=True)
    return tuple([(_form(unit, rename), flag) for (unit, _), flag in units if flag != kernel.LEFT_QUEUE])


def _mapping_form(value: Mapping[Any, Any], rename: Renaming) -> Hashable:
    """Return the form of a mapping without empty values; the order of jobs matters, that of users does not."""
    if not value:
        return ()
    kept, has_jobs, has_texts, formers = [], False, True, FORMER_OF
    name: Hashable
    for key, item in value.items():
        form = formers[type(item)](item, rename)
        # forms of zeros and empty values say no more than their absence
        if not rename.keeps_empty and not form:
            continue
        if isinstance(key, str):
            name, has_jobs = rename[key], has_jobs or SLOT_MARK in key
        else:
            name, has_texts = formers[type(key)](key, rename), False
        # of a job that has ended only values that may count are kept
        if name != ENDED or form:
            kept.append((name, form))
    if has_jobs or len(kept) < 2:
        return tuple(kept)
    # texts that name no job are distinct, and decide the order alone
    kept.sort(key=FIRST if has_texts else repr)
    return tuple(kept)


def _set_form(value: Iterable[Any], rename: Renaming) -> Hashable:
    return tuple(sorted((_form(item, rename) for item in value), key=repr))


def _sequence_form(value: Iterable[Any], rename: Renaming) -> Hashable:
    # texts are the most common, and cost no call
    return tuple([rename[item] if type(item) is str else FORMER_OF[type(item)](item, rename) for item in value])


def _array_form(value: NDArray[Any], rename: Renaming) -> Hashable:
    return value.shape, _sequence_form(value.ravel().tolist(), rename)


def _fields_form(value: object, names: Sequence[str], rename: Renaming) -> Hashable:
    items = [getattr(value, name, UNSET) for name in names]
    return tuple([FORMER_OF[type(item)](item, rename) for item in items])


def _other_form(value: Any, rename: Renaming) -> Hashable:
    """Return the form of an object; where one of its parts refers to it, its depth stands there."""
    depth = len(rename.open_objects)
    outer = rename.open_objects.setdefault(id(value), depth)
    if outer < depth:
        return ("outer object", outer)
    try:
        return _parts_form(value, rename)
    finally:
        del rename.open_objects[id(value)]


def _parts_form(value: Any, rename: Renaming) -> Hashable:
    """Return the form of an object's attributes, or of what pickle keeps of it if its class says so."""
    attributes = _list_attributes(value)
    if not HAS_OWN_PICKLE[type(value)] and (attributes or hasattr(value, "__dict__")):
        return tuple([(name, _form(item, rename)) for name, item in attributes])
    try:
        reduced = value.__reduce_ex__(PICKLE_PROTOCOL)
    except POLICY_FAILURES:
        return value if isinstance(value, Hashable) else repr(value)
    if isinstance(reduced, str):
        return reduced
    # iterators over the items of lists and mappings
    items = [list(part) for part in reduced[3:5] if part is not None]
    return (reduced[0].__qualname__, *[_form(part, rename) for part in (*reduced[1:3], *items)])


def _has_own_pickle(kind: Any) -> bool:
    """Whether a class says what pickle keeps of its objects: their attributes may hold caches and weak references."""
    return any(
        getattr(kind, name) is not getattr(object, name) for name in ("__reduce_ex__", "__reduce__", "__getstate__")
    )


HAS_OWN_PICKLE = ByType(_has_own_pickle)


def _reference_form(_value: object, _rename: Renaming) -> Hashable:
    message = "a weak reference of a copy refers to the original: hold the object itself"
    raise TypeError(message)


def _bytes_form(value: bytearray, _rename: Renaming) -> bytes:
    return bytes(value)


def _generator_form(value: random.Random, _rename: Renaming) -> Hashable:
    return value.getstate()


def _list_attributes(value: Any) -> list[tuple[str, Any]]:
    """List the attributes of an object that are set, in slots or not, in an order of their own."""
    names = dict.fromkeys(_field_names(cast("Hashable", type(value))))
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        names.update(dict.fromkeys((slots,) if isinstance(slots, str) else slots))
    names.update(dict.fromkeys(sorted(getattr(value, "__dict__", ()))))
    found = [(name, getattr(value, name, UNSET)) for name in names if name not in ("__dict__", "__weakref__")]
    return [(name, item) for name, item in found if item is not UNSET]


FORMERS: Mapping[type, Callable[[Any, Renaming], Hashable]] = {
    type(None): _same_form,
    int: _same_form,
    str: _text_form,
    float: _number_form,
    complex: _same_form,
    bytes: _same_form,
    bytearray: _bytes_form,
    np.generic: _scalar_form,
    Task: _task_form,
    AdmissionQueue: _queue_form,
    UserQueue: _sequence_form,
    PendingUnits: _pending_form,
    UnitShapes: _no_form,
    FunctionType: _no_form,
    MethodType: _no_form,
    EmptyCluster: _no_form,
    # the cluster and the queue have their own place in a state's form
    View: _no_form,
    Controller: _no_form,
    ResourceTable: _no_form,
    type: _same_form,
    Enum: _same_form,
    Mapping: _mapping_form,
    set: _set_form,
    frozenset: _set_form,
    list: _sequence_form,
    tuple: _sequence_form,
    deque: _sequence_form,
    np.ndarray: _array_form,
    random.Random: _generator_form,
    weakref.ReferenceType: _reference_form,
}
"""The form of a value by its type; a subclass has that of the first base in this order."""
FORMER_OF = ByType(_find_former)
"""How values of a type get their form."""


@functools.cache
def _field_names(kind: Hashable) -> tuple[str, ...]:
    return tuple(item.name for item in fields(kind)) if isinstance(kind, type) and is_dataclass(kind) else ()


Copier = Callable[[Any, dict[int, Any]], Any]
"""Copies a value; the second argument holds the copies of objects by the id of the original."""


def _copy_value(value: Any, memo: dict[int, Any]) -> Any:
    copier = COPIER_OF[type(value)]
    return value if copier is None else copier(value, memo)


def _find_copier(kind: Hashable) -> Copier | None:
    """Return how values of a type are copied; None where copies share them."""
    if kind in ATOMS or kind in SHARED:
        return None
    for base, copier in CONTAINER_COPIERS.items():
        if kind is base:
            return copier
    names = _field_names(kind)
    if names and cast("type", kind).__dictoffset__:
        return _attributes_copier(kind)
    return _fields_copier(kind) if names else copy.deepcopy


def _fields_copier(kind: Any) -> Copier:
    fill = _fill_by_init if _has_plain_init(kind) else _copy_fields

    def copy_fields(value: Any, memo: dict[int, Any]) -> Any:
        known = memo.get(id(value))
        if known is not None:
            return known
        duplicate = memo[id(value)] = object.__new__(kind)
        fill(value, duplicate, memo)
        return duplicate

    return copy_fields


def _has_plain_init(kind: Any) -> bool:
    """Whether the constructor of a class of this package only assigns its fields, in their order."""
    is_generated = not (kind.__dataclass_params__.frozen or hasattr(kind, "__post_init__"))
    return is_generated and IS_SHIPPED[kind] and all(item.init and not item.kw_only for item in fields(kind))


def _fill_by_init(value: object, duplicate: Any, memo: dict[int, Any]) -> None:
    # one call assigns all fields at half the price of an assignment each
    duplicate.__init__(*_copy_items(value, memo))


def _copy_items(value: object, memo: dict[int, Any]) -> list[Any]:
    """Return the copied values of an object's fields, in their order; ``UNSET`` for a field without one."""
    copiers = COPIERS_OF_FIELDS[type(value)]
    try:
        items = list(copiers.read(value))
        for index in copiers.flat:
            items[index] = items[index].copy()
        for index, copier in copiers.others:
            items[index] = copier(items[index], memo)
    except AttributeError:
        # a field has no value, or one from outside this package that is not what its annotation says
        found = [getattr(value, name, UNSET) for name in _field_names(cast("Hashable", type(value)))]
        return [UNSET if item is UNSET else _copy_value(item, memo) for item in found]
    return items


def _attributes_copier(kind: Any) -> Copier:
    """Return how objects are copied that have more attributes than the fields of their class."""

    def copy_attributes(value: Any, memo: dict[int, Any]) -> Any:
        known = memo.get(id(value))
        if known is not None:
            return known
        duplicate = memo[id(value)] = object.__new__(kind)
        for name, item in _list_attributes(value):
            object.__setattr__(duplicate, name, _copy_value(item, memo))
        return duplicate

    return copy_attributes


def _copy_fields(value: object, duplicate: object, memo: dict[int, Any]) -> None:
    assign, names = object.__setattr__, _field_names(cast("Hashable", type(value)))
    for name, item in zip(names, _copy_items(value, memo), strict=True):
        if item is not UNSET:
            assign(duplicate, name, item)


class FieldCopiers(NamedTuple):
    """How the fields of a class are copied.

    Attributes:
        read: Reads the fields of an object.
        flat: Indices of the fields for which their own ``copy`` suffices.
        others: Index and copier of further fields; copies share the rest.
    """

    read: Callable[[object], Sequence[Any]]
    flat: list[int]
    others: list[tuple[int, Copier]]


def _find_copiers_of_fields(kind: Any) -> FieldCopiers:
    """Return how the fields of a class are copied.

    The annotations of this package, which mypy checks, say of most fields what they hold: no look at each item of a
    mapping is needed then.
    """
    names = _field_names(kind)
    hints = get_type_hints(kind) if IS_SHIPPED[kind] else {}
    copiers = [_find_copier_of_hint(hints[name]) if name in hints else _copy_value for name in names]
    flat = [index for index, copier in enumerate(copiers) if copier is _copy_flat]
    others = [(index, copier) for index, copier in enumerate(copiers) if copier not in (None, _copy_flat)]
    return FieldCopiers(_find_reader(names), flat, others)


def _find_copier_of_hint(hint: Any) -> Copier | None:
    """Return how the values of an annotated field are copied; None where copies share them."""
    if hint in ATOMS or hint in SHARED:
        return None
    origin = get_origin(hint)
    if origin is np.ndarray:
        return _copy_flat
    if origin not in (*FLAT_CONTAINERS, tuple, frozenset, Union, UnionType):
        return _copy_value
    parts = [_find_copier_of_hint(part) for part in get_args(hint) if part is not Ellipsis]
    if not any(parts):
        return FLAT_CONTAINERS.get(origin)
    return _items_copier(parts[1]) if origin is dict and parts[1] is not None else _copy_value


def _items_copier(copier: Copier) -> Copier:
    """Return how to copy mappings that hold values of one kind."""

    def copy_items(value: dict[Any, Any], memo: dict[int, Any]) -> dict[Any, Any]:
        duplicate = value.copy()
        for key, item in value.items():
            duplicate[key] = copier(item, memo)
        return duplicate

    return copy_items


def _find_reader(names: Sequence[str]) -> Callable[[object], Sequence[Any]]:
    """Return a function which reads the named fields of a value at once."""
    return operator.attrgetter(*names) if len(names) > 1 else lambda value: [getattr(value, name) for name in names]


def _copy_tuple(value: tuple[Any, ...], memo: dict[int, Any]) -> tuple[Any, ...]:
    for item in value:
        if COPIER_OF[type(item)] is not None:
            items = _copy_list(value, memo)
            return tuple(items) if any(map(operator.is_not, items, value)) else value
    return value


def _copy_list(value: Iterable[Any], memo: dict[int, Any]) -> list[Any]:
    # most values are shared, and cost no call
    copiers = COPIER_OF
    return [item if (copier := copiers[type(item)]) is None else copier(item, memo) for item in value]


def _copy_deque(value: deque[Any], memo: dict[int, Any]) -> deque[Any]:
    return deque(_copy_list(value, memo), value.maxlen) if value else value.copy()


def _copy_dict(value: dict[Any, Any], memo: dict[int, Any]) -> dict[Any, Any]:
    duplicate = value.copy()
    for key, item in value.items():
        copier = COPIER_OF[type(item)]
        if copier is not None:
            duplicate[key] = copier(item, memo)
    return duplicate


def _copy_counter(value: Counter[Any], _memo: dict[int, Any]) -> Counter[Any]:
    # its own copy counts every entry again
    duplicate: Counter[Any] = Counter.__new__(Counter)
    dict.update(duplicate, value)
    return duplicate


def _copy_flat(value: Any, _memo: dict[int, Any]) -> Any:
    return value.copy()


def _copy_method(value: MethodType, memo: dict[int, Any]) -> MethodType:
    return MethodType(value.__func__, _copy_value(value.__self__, memo))


def _copy_empty_cluster(value: EmptyCluster, memo: dict[int, Any]) -> EmptyCluster:
    return value.copy_for(memo[id(value.table)])


UNSET = object()
"""Stands for a field without a value."""
FLAT_CONTAINERS: Mapping[Any, Copier] = {
    list: _copy_flat,
    dict: _copy_flat,
    set: _copy_flat,
    deque: _copy_flat,
    Counter: _copy_counter,
}
"""How mutable containers are copied if copies share their items."""
COPIERS_OF_FIELDS = ByType(_find_copiers_of_fields)
"""How the fields of a class are copied."""
CONTAINER_COPIERS: Mapping[type, Copier] = {
    tuple: _copy_tuple,
    list: _copy_list,
    deque: _copy_deque,
    dict: _copy_dict,
    Counter: _copy_counter,
    np.ndarray: _copy_flat,
    MethodType: _copy_method,
    EmptyCluster: _copy_empty_cluster,
}
"""How values of types without fields are copied."""
COPIER_OF = ByType(_find_copier)
"""How values of a type are copied; None where copies share them."""


def _copy_table(table: ResourceTable) -> ResourceTable:
    arrays: list[NDArray[Any]] = list(table.state)
    for index in CHANGED_ARRAYS:
        arrays[index] = arrays[index].copy()
    return ResourceTable(
        table.nodes,
        table.resource_kinds,
        StateArrays._make(arrays),
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
