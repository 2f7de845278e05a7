"""The nodes that kube-scheduler accepts for a pod: selector, affinity, taints, spread, anti-affinity, ports.

The rules are those of the scheduler's filters (kubernetes.io/docs/concepts/scheduling-eviction). Their resources exist
in the controller alone: on the cluster a pod's own fields stand for them.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import ClassVar

import msgspec

from unfold_placement.core.cluster_view import View
from unfold_placement.core.types import (
    CLUSTER_RULE,
    ENDED,
    JOINED,
    LEFT,
    MANY,
    PREEMPTED,
    QUIET,
    REFUSED,
    STARTED,
    STATIC,
    SUBMITTED,
    Ask,
    Event,
    Node,
    Put,
    Task,
    Transactions,
    Wait,
)
from unfoldkit.api import user_error

BLOCKING_EFFECTS = frozenset({"NoSchedule", "NoExecute"})
INTEGER = re.compile(r"[+-]?[0-9]{1,19}")
"""What kube-scheduler compares as a number."""
NODE_NAME = ""
"""Key of the domain that a node is by itself; labels have other keys."""
MAX_SUMMARY = 80
HASH_LENGTH = 8


class Requirement(msgspec.Struct, frozen=True):
    """An expression on labels: ``In``, ``NotIn``, ``Exists``, ``DoesNotExist``, ``Gt`` or ``Lt``."""

    key: str
    operator: str
    values: tuple[str, ...] = ()
    is_field: bool = False
    """The expression is on the node's name rather than on its labels."""

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Return whether labels satisfy the expression."""
        value = labels.get(self.key)
        if self.operator in {"Exists", "DoesNotExist"}:
            return (value is not None) == (self.operator == "Exists")
        if self.operator == "NotIn":
            return value is None or value not in self.values
        if value is None:
            return False
        return value in self.values if self.operator == "In" else _compare(value, self.operator, self.values)


class Toleration(msgspec.Struct, frozen=True):
    """A toleration; an empty key with ``Exists`` tolerates every taint, an empty effect every effect."""

    key: str = ""
    operator: str = "Equal"
    value: str = ""
    effect: str = ""

    def tolerates(self, taint: Sequence[str]) -> bool:
        """Return whether it tolerates a taint: key, value and effect."""
        key, value, effect = taint
        if self.effect not in {"", effect} or (self.key and self.key != key):
            return False
        if self.operator in {"Gt", "Lt"}:
            return _compare(value, self.operator, (self.value,))
        return self.operator == "Exists" or (bool(self.key) and self.value == value)


class DomainLimit(msgspec.Struct, frozen=True):
    """How many pods that match a selector a topology domain may hold.

    Attributes:
        key: Node label that names the domain.
        selector: Expressions that counted pods satisfy.
        max_skew: Largest difference to the least loaded domain; 0 for anti-affinity, which allows no other pod.
        min_domains: With fewer domains the least loaded one counts as empty.
        honors_affinity: Only nodes that the pod's selector and affinity accept form domains.
        honors_taints: Only nodes with taints that the pod tolerates form domains.
    """

    key: str
    selector: tuple[Requirement, ...]
    max_skew: int = 0
    min_domains: int = 1
    honors_affinity: bool = True
    honors_taints: bool = False

    def selects(self, labels: Mapping[str, str]) -> bool:
        """Return whether a pod with these labels is counted."""
        return all(requirement.matches(labels) for requirement in self.selector)


class HostPort(msgspec.Struct, frozen=True):
    """A port of the node that a pod takes; without an address, on every address."""

    protocol: str
    port: int
    address: str = ""

    def conflicts(self, other: HostPort) -> bool:
        """Return whether a node cannot give both ports."""
        shares_address = not (self.address and other.address) or self.address == other.address
        return (self.protocol, self.port) == (other.protocol, other.port) and shares_address


class NodeFilter(msgspec.Struct, frozen=True):
    """The fields of a pod that restrict its nodes.

    Attributes:
        selector: Labels that a node must have.
        terms: Node affinity: one of the terms must hold, all of its expressions together; empty for none.
        tolerations: Its tolerations.
        limits: Topology spread constraints and anti-affinity.
        labels: The pod's labels.
        ports: Ports of the node that it takes.
        unsupported: Why the pod cannot be placed by a policy; empty if it can.
        volumes: Where the volume of each of its claims is or may be created: one of the terms must hold.
        awaits: What has to exist before it has any node; empty for nothing.
        claims: Its volume claims that only one pod may use at a time.
    """

    selector: dict[str, str] = {}
    terms: tuple[tuple[Requirement, ...], ...] = ()
    tolerations: tuple[Toleration, ...] = ()
    limits: tuple[DomainLimit, ...] = ()
    labels: dict[str, str] = {}
    ports: tuple[HostPort, ...] = ()
    unsupported: str = ""
    volumes: tuple[tuple[tuple[Requirement, ...], ...], ...] = ()
    awaits: str = ""
    claims: tuple[str, ...] = ()

    def accepts(self, node: Node) -> bool:
        """Return whether the pod may run on a node, if others leave it room."""
        is_within_reach = not self.awaits and all(_hold_on(terms, node) for terms in self.volumes)
        return is_within_reach and self.selects(node) and self.tolerates(node)

    def selects(self, node: Node) -> bool:
        """Return whether a node satisfies selector and affinity."""
        if any(node.labels.get(key) != value for key, value in self.selector.items()):
            return False
        return not self.terms or _hold_on(self.terms, node)

    def tolerates(self, node: Node) -> bool:
        """Return whether the pod tolerates every taint of a node that keeps pods away."""
        blocking = [taint for taint in node.taints if taint[2] in BLOCKING_EFFECTS]
        return all(any(toleration.tolerates(taint) for toleration in self.tolerations) for taint in blocking)

    def summarize(self) -> str:
        """Return the restrictions in a few words, for explanations."""
        if self.awaits:
            return self.awaits[:MAX_SUMMARY]
        selector = [f"{key}={value}" for key, value in self.selector.items()]
        parts = [*selector, *(["its node affinity"] if self.terms else []), *(["its volumes"] if self.volumes else [])]
        parts += ["tolerated taints"]
        return ", ".join(parts)[:MAX_SUMMARY]

    def summarize_limits(self) -> str:
        """Return in a few words what keeps the pod away from other pods, or these from it."""
        parts = ["topology spread"] if any(limit.max_skew for limit in self.limits) else []
        parts += ["anti-affinity"] if any(limit.max_skew == 0 for limit in self.limits) else []
        parts += [f"host port {port.port}" for port in self.ports]
        return ", ".join(parts or ["the anti-affinity of other pods"])[:MAX_SUMMARY]


def encode_filter(node_filter: NodeFilter) -> str:
    """Encode a filter, equal filters as equal texts."""
    return msgspec.json.encode(node_filter, order="sorted").decode()


@lru_cache(maxsize=10_000)
def decode_filter(text: str) -> NodeFilter:
    """Decode a filter; an empty text restricts nothing but tainted nodes."""
    return msgspec.json.decode(text or "{}", type=NodeFilter)


def has_domain_limits(task: Task) -> bool:
    """Return whether a task has a topology spread constraint, anti-affinity or a host port."""
    if not task.node_filter:
        return False
    node_filter = decode_filter(task.node_filter)
    return bool(node_filter.limits or node_filter.ports)


@dataclass(slots=True)
class AcceptedNodes:
    """A task runs only on nodes that its selector, its node affinity and its tolerations accept.

    A volume claim of one pod at a time is a resource of the cluster, of which there is one.

    Attributes:
        filters: Encoded filter of each mark.
    """

    filters: dict[str, str] = field(default_factory=dict)
    phase: ClassVar[int] = STATIC
    watches: ClassVar[frozenset[str]] = frozenset({SUBMITTED, JOINED})

    def request(self, task: Task) -> Iterable[Ask]:
        """Request a node that accepts the task, and the volume claims that it may not share.

        Raises:
            UnfoldError: The task has a field that no policy can honour.
        """
        node_filter = decode_filter(task.node_filter)
        if node_filter.unsupported:
            raise user_error(f"{task.name} cannot be placed by a policy: {node_filter.unsupported}")
        marks = [_accepted_mark(task.node_filter), *map(_claim_mark, node_filter.claims)]
        return [Ask(mark, gated=True) for mark in marks]

    def react(self, event: Event, view: View) -> Transactions:
        """Mark the accepting nodes when the first task of a filter is submitted, and nodes that join."""
        if event.kind == JOINED:
            joined = [node for node in view.nodes if node.name == event.node]
            yield [put for text in self.filters.values() for put in _mark_nodes(text, joined)]
        elif event.task is not None and _accepted_mark(event.task.node_filter) not in self.filters:
            text = event.task.node_filter
            self.filters[_accepted_mark(text)] = text
            claims = [Put(_claim_mark(claim)) for claim in decode_filter(text).claims]
            yield [*_mark_nodes(text, view.nodes), *claims]

    def describe_wait(self, task: Task, view: View) -> Wait | None:
        """Name what has to exist before the task has any node."""
        del view
        awaits = decode_filter(task.node_filter).awaits
        return Wait(f"waits for {awaits}") if awaits else None


@dataclass(slots=True)
class DomainLimits:
    """Topology spread constraints (``DoNotSchedule``), required anti-affinity and host ports of pods.

    Single tasks start one by one, each where the constraints allow it. The tasks of a gang start together, so the
    allowed numbers are shared out beforehand: always to the least loaded domain with room.

    Attributes:
        pins: Pods are pinned to nodes. Kube-scheduler then sees one domain where a constraint honors node affinity.
        absent: Nodes that are not ready: no task starts there, but they and the pods on them belong to domains.
        waiting: Waiting tasks, by name.
        running: Node of each running task, with the task, by name.
        amounts: Slots of each group by node.
    """

    pins: bool = True
    absent: tuple[Node, ...] = ()
    waiting: dict[str, Task] = field(default_factory=dict)
    running: dict[str, tuple[Task, str]] = field(default_factory=dict)
    amounts: dict[str, dict[str, int]] = field(default_factory=dict)
    phase: ClassVar[int] = STATIC
    watches: ClassVar[frozenset[str]] = frozenset({SUBMITTED, STARTED, ENDED, PREEMPTED, REFUSED, JOINED, LEFT, QUIET})

    def request(self, task: Task) -> Iterable[Ask]:
        """Request a slot in a domain that may hold one more of the task's kind."""
        # the anti-affinity of others concerns pods without limits of their own
        return [Ask(_domain_mark(task), gated=True)] if task.node_filter else []

    def react(self, event: Event, view: View) -> Transactions:
        """Follow what runs where, and set the slots of every group that waits."""
        task = event.task
        if task is not None:
            self.waiting.pop(task.name, None)
            self.running.pop(task.name, None)
            if event.kind == STARTED:
                self.running[task.name] = task, event.node
            elif event.kind in {SUBMITTED, PREEMPTED} and task.node_filter:
                self.waiting[task.name] = task
        if event.kind in {STARTED, QUIET, JOINED, LEFT}:
            for group, waiting in self._groups(view).items():
                if puts := self._set_slots(group, waiting, view):
                    yield puts

    def _groups(self, view: View) -> dict[str, tuple[Task, int]]:
        """Return a task of each group that may start, and how many of them start together."""
        groups: dict[str, tuple[Task, int]] = {}
        for task in self.waiting.values():
            if _domain_mark(task) not in groups and (unit := view.unit(task)):
                alike = sum(_domain_mark(mate) == _domain_mark(task) for mate in unit)
                groups[_domain_mark(task)] = task, alike
        return groups

    def _set_slots(self, group: str, waiting: tuple[Task, int], view: View) -> list[Put]:
        task, count = waiting
        allowed = self._share_out(task, count, view)
        held = Counter(node for mate, node in self.running.values() if _domain_mark(mate) == group)
        desired = {node.name: held[node.name] + allowed.get(node.name, 0) for node in view.nodes}
        before = self.amounts.get(group, {})
        self.amounts[group] = desired
        return [Put(group, node, amount) for node, amount in desired.items() if before.get(node) != amount]

    def _share_out(self, task: Task, count: int, view: View) -> dict[str, int]:
        """Return how many more tasks alike each node may take, when ``count`` of them start together.

        Where nodes have no room for all of them now, it is as if they were empty: the tasks lack nothing but room.
        """
        node_filter = decode_filter(task.node_filter)
        excluded = self._list_excluded(node_filter, view)
        accepting = [node for node in view.nodes if node_filter.accepts(node)]
        accepting = [node for node in accepting if not _is_in_any(node, excluded)]
        existing = [*view.nodes, *self.absent]
        counts = [self._count_matching(limit, node_filter, existing) for limit in node_filter.limits]
        if count == 1:
            return {node.name: 1 for node in accepting if self._may_add(node, node_filter, counts)}
        most = 1 if node_filter.ports else count
        for amounts in ({node.name: view.free_amounts(node.name) for node in accepting}, None):
            room = {
                node.name: min(most, _room(task, node.capacity if amounts is None else amounts[node.name]))
                for node in accepting
            }
            if shared := self._share_room(accepting, node_filter, [Counter(by) for by in counts], room, count):
                return shared
        return {}

    def _share_room(
        self,
        nodes: Sequence[Node],
        node_filter: NodeFilter,
        counts: Sequence[Counter[str]],
        room: Mapping[str, int],
        count: int,
    ) -> dict[str, int]:
        """Return how many tasks each node takes, always the least loaded one with room; empty if not all fit."""
        allowed: Counter[str] = Counter()
        for _ in range(count):
            candidates = [
                node
                for node in nodes
                if room[node.name] > allowed[node.name] and self._may_add(node, node_filter, counts)
            ]
            if not candidates:
                return {}
            chosen = min(candidates, key=lambda node: self._load(node, node_filter, counts))
            allowed[chosen.name] += 1
            for limit, by_domain in zip(node_filter.limits, counts, strict=True):
                if limit.selects(node_filter.labels) and limit.key in chosen.labels:
                    by_domain[chosen.labels[limit.key]] += 1
        return allowed

    def _load(self, node: Node, node_filter: NodeFilter, counts: Sequence[Counter[str]]) -> tuple[int, ...]:
        pairs = zip(node_filter.limits, counts, strict=True)
        return tuple(by_domain[node.labels.get(limit.key, "")] for limit, by_domain in pairs)

    def _may_add(self, node: Node, node_filter: NodeFilter, counts: Sequence[Counter[str]]) -> bool:
        for limit, by_domain in zip(node_filter.limits, counts, strict=True):
            domain = node.labels.get(limit.key)
            if limit.max_skew == 0:
                if domain is not None and by_domain[domain] > 0:
                    return False
                continue
            if domain is None:
                return False
            is_pinned = self.pins and limit.honors_affinity
            seen = 1 if is_pinned else len(by_domain)
            fewest = min(by_domain.values(), default=0) if seen >= limit.min_domains else 0
            if by_domain[domain] + limit.selects(node_filter.labels) - fewest > limit.max_skew:
                return False
        return True

    def _list_excluded(self, node_filter: NodeFilter, view: View) -> set[tuple[str, str]]:
        """Return the domains, by key and value, and the nodes from which other pods keep the pod away."""
        excluded = set()
        existing = [*view.nodes, *self.absent]
        labels = {node.name: node.labels for node in existing}
        others = [(task.node_filter, location) for task, location in self.running.values() if task.node_filter]
        others += [(text, node.name) for node in existing for text in node.repelling]
        for text, location in others:
            other = decode_filter(text)
            if any(port.conflicts(taken) for port in node_filter.ports for taken in other.ports):
                excluded.add((NODE_NAME, location))
            for limit in other.limits:
                domain = labels.get(location, {}).get(limit.key)
                if limit.max_skew == 0 and domain is not None and limit.selects(node_filter.labels):
                    excluded.add((limit.key, domain))
        return excluded

    def _count_matching(self, limit: DomainLimit, node_filter: NodeFilter, nodes: Sequence[Node]) -> Counter[str]:
        """Return the number of matching pods by domain; domains without any count too."""
        counts: Counter[str] = Counter()
        keys = [other.key for other in node_filter.limits if other.max_skew] if limit.max_skew else [limit.key]
        domains: dict[str, str] = {}
        for node in nodes:
            is_eligible = not limit.max_skew or (
                (not limit.honors_affinity or node_filter.selects(node))
                and (not limit.honors_taints or node_filter.tolerates(node))
            )
            if is_eligible and all(key in node.labels for key in keys):
                domains[node.name] = node.labels[limit.key]
                counts[node.labels[limit.key]] += sum(map(limit.selects, node.occupants))
        for task, location in self.running.values():
            if location in domains and task.node_filter and limit.selects(decode_filter(task.node_filter).labels):
                counts[domains[location]] += 1
        return counts


@lru_cache(maxsize=10_000)
def _accepted_mark(text: str) -> str:
    node_filter = decode_filter(text)
    accepting = NodeFilter(
        node_filter.selector,
        node_filter.terms,
        node_filter.tolerations,
        volumes=node_filter.volumes,
        awaits=node_filter.awaits,
        claims=node_filter.claims,
    )
    return f"{CLUSTER_RULE}{node_filter.summarize()} #{_hash(encode_filter(accepting))}"


def _claim_mark(claim: str) -> str:
    return f"{CLUSTER_RULE}volume claim {claim} of one pod at a time #{_hash(claim)}"


def _domain_mark(task: Task) -> str:
    return f"{_limits_mark(task.node_filter)} of {task.job}" if task.size > 1 else _limits_mark(task.node_filter)


@lru_cache(maxsize=10_000)
def _limits_mark(text: str) -> str:
    return f"{CLUSTER_RULE}{decode_filter(text).summarize_limits()} #{_hash(text)}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_LENGTH]


def _mark_nodes(text: str, nodes: Sequence[Node]) -> list[Put]:
    node_filter = decode_filter(text)
    return [Put(_accepted_mark(text), node.name, MANY) for node in nodes if node_filter.accepts(node)]


def _hold_on(terms: Iterable[Sequence[Requirement]], node: Node) -> bool:
    """Return whether all expressions of one of some terms hold on a node; an empty term never holds."""
    fields = {"metadata.name": node.name}
    return any(
        bool(term) and all(item.matches(fields if item.is_field else node.labels) for item in term) for term in terms
    )


def _is_in_any(node: Node, domains: Iterable[tuple[str, str]]) -> bool:
    return any((node.name if key == NODE_NAME else node.labels.get(key)) == value for key, value in domains)


def _room(task: Task, amounts: Mapping[str, int]) -> int:
    """Return how many tasks of this demand fit into some amounts."""
    return min((amounts.get(kind, 0) // amount for kind, amount in task.demand.items() if amount), default=1)


def _compare(value: str, operator: str, values: Sequence[str]) -> bool:
    # int() would read more, such as 1_000
    if not (values and all(map(INTEGER.fullmatch, (value, values[0])))):
        return False
    return int(value) > int(values[0]) if operator == "Gt" else int(value) < int(values[0])
