"""ClusterQueues, LocalQueues, cohorts, ResourceFlavors and Workloads of Kueue (v1beta1, v1beta2), read from a file.

What the replay cannot express is refused by name where it would change admissions, and stated otherwise.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from pathlib import Path
from statistics import median
from typing import Any

from unfold_placement.kubernetes.objects.codec import Scope, parse_time
from unfold_placement.kubernetes.objects.node_rules import pod_filter
from unfold_placement.kubernetes.objects.requests import sum_pod_requests
from unfold_placement.kueue.objects import (
    ANY,
    BEST_EFFORT_FIFO,
    LOWER_OR_NEWER,
    LOWER_PRIORITY,
    MAY_STOP_SEARCH,
    NEVER,
    PREFER_PREEMPTION,
    STRICT_FIFO,
    TRY_NEXT_FLAVOR,
    ClusterQueue,
    Cohort,
    Flavor,
    FlavorResource,
    Fungibility,
    PodSet,
    PreemptionRules,
    QueueSnapshot,
    Quota,
    ResourceGroup,
    Workload,
)
from unfold_placement.policies.affinity.node_filter import NodeFilter, Requirement, Toleration, decode_filter
from unfold_placement.report import sentences
from unfold_placement.workload.manifests import COMMAND, Manifest, read_manifests
from unfoldkit.api import user_error

GROUP = "kueue.x-k8s.io"
VERSIONS = ("v1beta1", "v1beta2")
OLD_FUNGIBILITY = {"Borrow": MAY_STOP_SEARCH, "Preempt": MAY_STOP_SEARCH}
"""Words of v1beta1 for ``MayStopSearch``."""
HOLD, HOLD_AND_DRAIN = "Hold", "HoldAndDrain"
REQUEUED_AT_THE_END = frozenset({"PodsReadyTimeout", "AdmissionCheck"})
"""Reasons of evictions after which a workload waits until ``requeueAt``, and then queues up behind the others."""
REQUEUED_LATER = REQUEUED_AT_THE_END | {"ClusterQueueStopped", "LocalQueueStopped", "Deactivated"}
"""Reasons of ``Requeued: False`` that Kueue withdraws by itself, once what stops the workload is over."""
NAME_LABEL = "kubernetes.io/metadata.name"
FACTORS = {"": Decimal(1), "n": Decimal("1e-9"), "u": Decimal("1e-6"), "m": Decimal("1e-3")} | {
    prefix + binary: Decimal(base) ** (power + 1)
    for binary, base in (("", 1000), ("i", 1024))
    for power, prefix in enumerate("KMGTPE")
} | {"k": Decimal(1000)}  # fmt: skip
_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))(?:([numkMGTPE]|[KMGTPE]i)|[eE]([+-]?\d{1,3}))?")


CONFIGURATION = ("ClusterQueue", "Cohort", "LocalQueue", "ResourceFlavor")
"""Kinds that a change may replace."""
READ_KINDS = (*CONFIGURATION, "Workload")
TOPOLOGY_REQUESTS = frozenset(
    {
        "required",
        "preferred",
        "unconstrained",
        "podSetGroupName",
        "podSetSliceRequiredTopology",
        "podsetSliceRequiredTopologyConstraints",
    }
)
"""Fields of a pod set by which its placement, or that of its flavors, depends on a topology."""
CHECK_FIELDS = ("admissionChecks", "admissionChecksStrategy")


@dataclass(frozen=True, slots=True)
class Conditions:
    """The conditions of an object: status, reason and time of change by type."""

    by_type: Mapping[str, tuple[str, str, float]]

    def is_true(self, name: str) -> bool:
        """Return whether a condition holds."""
        return self.by_type.get(name, ("", "", 0.0))[0] == "True"

    def is_false(self, name: str) -> bool:
        """Return whether a condition was set to false."""
        return self.by_type.get(name, ("", "", 0.0))[0] == "False"

    def changed_s(self, name: str) -> float:
        """Return when a condition changed, in seconds of the epoch."""
        return self.by_type[name][2]

    def reason(self, name: str) -> str:
        """Return the ``reason`` of the condition of a type, such as ``Evicted``; empty if the object has none."""
        return self.by_type.get(name, ("", "", 0.0))[1]


@dataclass(frozen=True, slots=True)
class WorkloadRecord:
    """A Workload of a file, with the times that it shows, in seconds of the epoch; None where it has not yet."""

    item: Manifest
    conditions: Conditions
    created_s: float
    admitted_s: float | None
    finished_s: float | None

    @property
    def local_queue(self) -> str:
        """Namespace and name of its LocalQueue."""
        namespace = self.item.part("metadata").text("namespace", "default")
        return f"{namespace}/{self.item.part('spec').text('queueName', '')}"

    @property
    def queued_s(self) -> float:
        """The time by which Kueue orders its queue, in seconds of the epoch."""
        is_last = self.conditions.is_true("Evicted") and self.conditions.reason("Evicted") in REQUEUED_AT_THE_END
        return self.conditions.changed_s("Evicted") if is_last else self.created_s

    @property
    def is_set_aside(self) -> bool:
        """Whether Kueue does not queue it again by itself."""
        return self.conditions.is_false("Requeued") and self.conditions.reason("Requeued") not in REQUEUED_LATER


@dataclass(slots=True)
class SnapshotReader:
    """Reads the objects of a file.

    Attributes:
        run_s: Run time of workloads without a better estimate; None for none.
        notes: What is assumed.
        left_out: Workloads that are left out, by reason.
        estimates: Workloads by what their run time was taken from.
        overdue: Workloads that already ran longer than estimated.
    """

    run_s: float | None = None
    notes: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    estimates: Counter[str] = field(default_factory=Counter)
    overdue: int = 0

    def read(self, manifests: Iterable[Manifest]) -> QueueSnapshot:
        """Build the snapshot.

        Raises:
            UnfoldError: An object is malformed, or would change admissions in a way that the replay cannot express.
        """
        by_kind: dict[str, dict[str, Manifest]] = {}
        for item in manifests:
            is_read = item.group == GROUP and item.kind in READ_KINDS
            if is_read and item.text("apiVersion").rpartition("/")[2] not in VERSIONS:
                raise item.fault("apiVersion", f"{item.text('apiVersion')} is unknown", f"use {' or '.join(VERSIONS)}")
            if is_read or (item.kind == "Namespace" and item.group == ""):
                objects = by_kind.setdefault(item.kind, {})
                if item.label in objects:
                    raise item.fault("metadata.name", "the file has this object twice")
                objects[item.label] = item
        cohorts = {_name(item): _read_cohort(item) for item in by_kind.get("Cohort", {}).values()}
        for item in by_kind.get("Cohort", {}).values():
            _check_ancestors(item, cohorts)
        flavors = {flavor.name: flavor for flavor in map(_read_flavor, by_kind.get("ResourceFlavor", {}).values())}
        queues = [self._read_queue(item, flavors) for item in by_kind.get("ClusterQueue", {}).values()]
        self._note_missing_flavors(queues, flavors)
        records = [_read_record(item) for item in by_kind.get("Workload", {}).values()]
        admitted = self._find_queues(records, by_kind, {queue.name: queue for queue in queues})
        is_history = not any(record.finished_s is None for record, _ in admitted)
        began_s = _find_beginning(records, is_history=is_history)
        workloads = self._build_workloads(admitted, began_s, is_history=is_history)
        return QueueSnapshot(
            queues={queue.name: queue for queue in queues},
            cohorts=cohorts,
            flavors=flavors,
            workloads=tuple(workloads),
            began_s=began_s,
            notes=tuple(self._list_notes(is_history=is_history)),
            is_history=is_history,
        )

    def _read_queue(self, item: Manifest, flavors: dict[str, Flavor]) -> ClusterQueue:
        name, spec = _name(item), item.part("spec")
        if spec.body.get("admissionScope"):
            raise spec.fault("admissionScope", "admission fair sharing cannot be replayed", "remove it from the file")
        groups, quotas = _read_groups(spec)
        used = dict.fromkeys(flavor for group in groups for flavor in group.flavors)
        missing = [flavor for flavor in used if flavor not in flavors] if flavors else []
        conditions = _read_conditions(item)
        reason = conditions.reason("Active") if conditions.is_false("Active") else ""
        stop = spec.choice("stopPolicy", ("None", HOLD, HOLD_AND_DRAIN), "None")
        if missing:
            self.notes.append(sentences.missing_flavor_line(name, missing[0]))
        elif stop != "None":
            self.notes.append(sentences.stopped_queue_line(name, stop))
        elif reason:
            self.notes.append(sentences.stopped_queue_line(name, reason))
        if spec.body.get("fairSharing"):
            self.notes.append(sentences.fair_sharing_line(name))
        if any(spec.body.get(key) for key in CHECK_FIELDS):
            self.notes.append(sentences.admission_check_line(name))
        return ClusterQueue(
            name=name,
            cohort=spec.text("cohortName", "") or spec.text("cohort", ""),
            groups=groups,
            quotas=quotas,
            strategy=spec.choice("queueingStrategy", (BEST_EFFORT_FIFO, STRICT_FIFO), BEST_EFFORT_FIFO),
            preemption=_read_preemption(spec.part("preemption")),
            fungibility=_read_fungibility(spec.part("flavorFungibility")),
            is_stopped=stop != "None" or bool(missing) or bool(reason),
            is_drained=stop == HOLD_AND_DRAIN,
        )

    def _note_missing_flavors(self, queues: list[ClusterQueue], flavors: dict[str, Flavor]) -> None:
        """Take flavors for unlabelled and untainted ones where the file has no ResourceFlavor at all."""
        if flavors or not queues:
            return
        self.notes.append(sentences.no_flavors_line())
        flavors.update({name: Flavor(name) for queue in queues for group in queue.groups for name in group.flavors})

    def _find_queues(
        self,
        records: list[WorkloadRecord],
        by_kind: Mapping[str, Mapping[str, Manifest]],
        queues: Mapping[str, ClusterQueue],
    ) -> list[tuple[WorkloadRecord, str]]:
        """Pair the workloads with their ClusterQueues, and leave out those that cannot be admitted."""
        local_queues = by_kind.get("LocalQueue", {})
        selectors = {item.label.split(" ")[1]: item for item in by_kind.get("ClusterQueue", {}).values()}
        namespaces = {
            _name(item): item.part("metadata").texts("labels") for item in by_kind.get("Namespace", {}).values()
        }
        accepts = NamespaceFilter(selectors, namespaces)
        paired = []
        for record in records:
            queue, reason = _find_queue(record, local_queues, queues)
            if (
                not reason
                and record.admitted_s is None
                and not accepts.matches(queue, record.local_queue.split("/")[0])
            ):
                reason = f"the namespaceSelector of {queue} excludes their namespace"
            if reason:
                self.left_out[reason] += 1
            else:
                paired.append((record, queue))
        self.notes += accepts.notes
        return paired

    def _build_workloads(
        self, records: list[tuple[WorkloadRecord, str]], began_s: float, *, is_history: bool
    ) -> Iterator[Workload]:
        history = _Durations()
        for record, _ in records:
            if record.finished_s is not None and record.admitted_s is not None:
                history.add(record.local_queue, record.finished_s - record.admitted_s)
        for record, queue in records:
            if record.finished_s is None or (is_history and record.admitted_s is not None):
                yield self._build_workload(record, queue, history, began_s)

    def _build_workload(self, record: WorkloadRecord, queue: str, history: _Durations, began_s: float) -> Workload:
        item, spec = record.item, record.item.part("spec")
        is_running = record.admitted_s is not None and record.finished_s is None
        arrival_s = record.created_s - began_s
        requeue = item.part("status.requeueState").text("requeueAt", "")
        if not is_running and requeue:
            arrival_s = max(arrival_s, _time(item.part("status.requeueState"), "requeueAt") - began_s)
        pod_sets = tuple(_read_pod_set(part, item) for part in spec.parts("podSets"))
        if not pod_sets:
            raise spec.fault("podSets", "is missing")
        run_s = self._estimate_run(record, history)
        if is_running and record.admitted_s is not None and record.admitted_s + run_s <= began_s:
            self.overdue += 1
        return Workload(
            name=item.label.split(" ")[1],
            queue=queue,
            priority=spec.integer("priority", 0, least=None),
            created_s=record.queued_s,
            uid=item.part("metadata").text("uid", item.label),
            arrival_s=arrival_s,
            run_s=run_s,
            pod_sets=pod_sets,
            admitted_s=record.admitted_s - began_s if is_running and record.admitted_s is not None else None,
            usage=_read_usage(item, pod_sets) if is_running else {},
        )

    def _estimate_run(self, record: WorkloadRecord, history: _Durations) -> float:
        spec = record.item.part("spec")
        limit_s = spec.integer("maximumExecutionTimeSeconds", 0)
        if limit_s:
            # earlier admissions that ended in an eviction count
            limit_s = max(1, limit_s - record.item.part("status").integer("accumulatedPastExecutionTimeSeconds", 0))
        if record.finished_s is not None and record.admitted_s is not None:
            return record.finished_s - record.admitted_s
        run_s, source = self.run_s, "workload.replay.run"
        if run_s is None:
            run_s, source = history.estimate(record.local_queue)
        if run_s is None and limit_s:
            run_s, source = float(limit_s), "maximumExecutionTimeSeconds"
        if run_s is None:
            message = "nothing shows how long it runs: no workload in the file has ended"
            raise record.item.fault("spec", message, "write workload.replay.run: 30 min")
        self.estimates[source] += 1
        return min(run_s, float(limit_s)) if limit_s else run_s

    def _list_notes(self, *, is_history: bool) -> Iterator[str]:
        yield sentences.replay_start_line(is_history=is_history)
        for source, count in self.estimates.items():
            yield sentences.run_time_line(count, source)
        if self.overdue:
            yield sentences.overdue_line(self.overdue)
        for reason, count in self.left_out.items():
            yield sentences.left_out_line(count, reason)
        yield from self.notes


@dataclass(slots=True)
class _Durations:
    """Run times of workloads that have ended, by LocalQueue."""

    by_queue: dict[str, list[float]] = field(default_factory=dict)

    def add(self, queue: str, run_s: float) -> None:
        self.by_queue.setdefault(queue, []).append(run_s)

    def estimate(self, queue: str) -> tuple[float | None, str]:
        """Return the median run time of a LocalQueue, or of all, and where it comes from."""
        if queue in self.by_queue:
            return median(self.by_queue[queue]), "the median of the ended workloads in the same LocalQueue"
        runs_s = [run_s for values in self.by_queue.values() for run_s in values]
        return (median(runs_s), "the median of all ended workloads") if runs_s else (None, "")


@dataclass(slots=True)
class NamespaceFilter:
    """Which namespaces ClusterQueues accept.

    Attributes:
        queues: ClusterQueues by name.
        labels: Labels of the namespaces that the file shows.
        notes: Selectors that could not be evaluated.
    """

    queues: Mapping[str, Manifest]
    labels: Mapping[str, Mapping[str, str]]
    notes: list[str] = field(default_factory=list)

    def matches(self, queue: str, namespace: str) -> bool:
        """Return whether a ClusterQueue accepts a namespace; one with unknown labels is accepted, and noted."""
        spec = self.queues[queue].part("spec")
        if spec.body.get("namespaceSelector") is None:
            return False
        selector = spec.part("namespaceSelector")
        required = [Requirement(key, "In", (value,)) for key, value in selector.texts("matchLabels").items()]
        required += [
            Requirement(part.text("key"), part.text("operator"), part.names("values"))
            for part in selector.parts("matchExpressions")
        ]
        known = {NAME_LABEL: namespace, **self.labels.get(namespace, {})}
        if namespace not in self.labels and any(item.key != NAME_LABEL for item in required):
            note = sentences.unknown_namespace_line(queue, namespace)
            self.notes += [note] if note not in self.notes else []
            required = [item for item in required if item.key == NAME_LABEL]
        return all(item.matches(known) for item in required)


def read_queue_snapshot(path: Path, run_s: float | None = None, applied: Path | None = None) -> QueueSnapshot | None:
    """Read the quota system of a file; None if it has no ClusterQueue.

    Args:
        path: JSON or YAML of ``kubectl get clusterqueues,cohorts,resourceflavors,localqueues,workloads -A``.
        run_s: Run time in seconds of workloads that have not ended.
        applied: Manifests that replace the objects of their kind and name, as if they were applied.

    Raises:
        UnfoldError: A file or an object is malformed, or cannot be expressed in the replay.
    """
    manifests = read_manifests(path)
    kinds = {item.kind for item in manifests if item.group == GROUP}
    if "ClusterQueue" not in kinds:
        if "Workload" in kinds and not any(item.kind == "Pod" for item in manifests):
            raise user_error("it has Kueue's Workloads, but no ClusterQueue", file=str(path), hint=COMMAND)
        return None
    if applied is not None:
        manifests = replace_objects(manifests, read_manifests(applied))
    snapshot = SnapshotReader(run_s).read(manifests)
    if not snapshot.workloads:
        raise user_error("no Workload that could be admitted", file=str(path), hint=COMMAND)
    return snapshot


def replace_objects(manifests: list[Manifest], applied: list[Manifest]) -> list[Manifest]:
    """Replace objects by those of the same kind and name, and add the others.

    Raises:
        UnfoldError: An object is none of Kueue's configuration.
    """
    for item in applied:
        if item.group != GROUP or item.kind not in CONFIGURATION:
            hint = f"write only {', '.join(CONFIGURATION)} of {GROUP}"
            raise item.fault("kind", f"{item.kind} is not a configuration of Kueue", hint)
    replaced = {item.label for item in applied}
    return [*(item for item in manifests if item.label not in replaced), *applied]


def parse_quantity(resource: str, value: object) -> int:
    """Return a Kubernetes quantity in Kueue's integer units: thousandths of a core, else units, both rounded up.

    Raises:
        ValueError: It is not a quantity, or negative.
    """
    match = _QUANTITY.fullmatch(str(value)) if isinstance(value, str | int | float) else None
    if match is None or isinstance(value, bool):
        raise ValueError(f"{value!r:.60} is not a quantity")
    try:
        exact = Decimal(match[1]) * (Decimal(10) ** int(match[3]) if match[3] else FACTORS[match[2] or ""])
    except (InvalidOperation, ArithmeticError) as error:
        raise ValueError(f"{value!r:.60} is not a quantity") from error
    if exact < 0 or exact > 1 << 63:
        raise ValueError(f"{value!r:.60} is negative or too large")
    return math.ceil(exact * 1000 if resource == "cpu" else exact)


def _name(item: Manifest) -> str:
    return item.part("metadata").text("name")


def _time(part: Manifest, key: str) -> float:
    text = part.text(key)
    try:
        return parse_time(text)
    except ValueError:
        raise part.fault(key, f"{text!r:.60} is not a time", "such as 2026-03-01T10:00:00Z") from None


def _read_conditions(item: Manifest) -> Conditions:
    by_type = {}
    for part in item.part("status").parts("conditions"):
        changed_s = _time(part, "lastTransitionTime") if part.body.get("lastTransitionTime") else 0.0
        by_type[part.text("type")] = part.text("status"), part.text("reason", ""), changed_s
    return Conditions(by_type)


def _read_quantity(part: Manifest, key: str, resource: str) -> int:
    try:
        return parse_quantity(resource, part.body[key])
    except ValueError as error:
        raise part.fault(key, str(error), "such as 16, 500m or 64Gi") from None


def _read_groups(spec: Manifest) -> tuple[tuple[ResourceGroup, ...], dict[FlavorResource, Quota]]:
    groups: list[ResourceGroup] = []
    quotas: dict[FlavorResource, Quota] = {}
    for part in spec.parts("resourceGroups"):
        covered = part.names("coveredResources")
        names: list[str] = []
        for flavor in part.parts("flavors"):
            names.append(flavor.text("name"))
            for resource in flavor.parts("resources"):
                kind = resource.text("name")
                if kind not in covered:
                    raise resource.fault("name", f"{kind} is not in coveredResources")
                if (names[-1], kind) in quotas:
                    raise resource.fault("name", f"{kind} of flavor {names[-1]} has two quotas")
                limits = [
                    _read_quantity(resource, key, kind) if resource.body.get(key) is not None else None
                    for key in ("borrowingLimit", "lendingLimit")
                ]
                nominal = (
                    0 if resource.body.get("nominalQuota") is None else _read_quantity(resource, "nominalQuota", kind)
                )
                quotas[names[-1], kind] = Quota(nominal, *limits)
        groups.append(ResourceGroup(frozenset(covered), tuple(names)))
    return tuple(groups), quotas


def _read_preemption(part: Manifest) -> PreemptionRules:
    policies = (NEVER, LOWER_PRIORITY, LOWER_OR_NEWER, ANY)
    borrow = part.part("borrowWithinCohort")
    threshold = borrow.integer("maxPriorityThreshold", 0, least=None) if "maxPriorityThreshold" in borrow.body else None
    return PreemptionRules(
        part.choice("withinClusterQueue", (NEVER, LOWER_PRIORITY, LOWER_OR_NEWER), NEVER),
        part.choice("reclaimWithinCohort", policies, NEVER),
        borrow.choice("policy", (NEVER, LOWER_PRIORITY), NEVER) != NEVER,
        threshold,
    )


def _read_fungibility(part: Manifest) -> Fungibility:
    words = (MAY_STOP_SEARCH, TRY_NEXT_FLAVOR, *OLD_FUNGIBILITY)
    borrow = part.choice("whenCanBorrow", words, MAY_STOP_SEARCH)
    preempt = part.choice("whenCanPreempt", words, TRY_NEXT_FLAVOR)
    preference = part.choice("preference", ("", "BorrowingOverPreemption", PREFER_PREEMPTION), "")
    return Fungibility(OLD_FUNGIBILITY.get(borrow, borrow), OLD_FUNGIBILITY.get(preempt, preempt), preference)


def _read_cohort(item: Manifest) -> Cohort:
    spec = item.part("spec")
    return Cohort(_name(item), spec.text("parentName", ""), _read_groups(spec)[1])


def _check_ancestors(item: Manifest, cohorts: Mapping[str, Cohort]) -> None:
    """Refuse a cohort that is its own ancestor."""
    path = [_name(item)]
    while (parent := cohorts[path[-1]].parent if path[-1] in cohorts else "") and parent not in path[1:]:
        path.append(parent)
        if parent == path[0]:
            raise item.part("spec").fault("parentName", f"cohorts form a cycle: {' -> '.join(path)}")


def _read_flavor(item: Manifest) -> Flavor:
    spec = item.part("spec")
    if spec.body.get("topologyName"):
        raise spec.fault("topologyName", "topology-aware scheduling cannot be replayed", "remove it from the file")
    taints = [(part.text("key"), part.text("value", ""), part.text("effect")) for part in spec.parts("nodeTaints")]
    tolerations = tuple(
        Toleration(
            part.text("key", ""), part.text("operator", "Equal"), part.text("value", ""), part.text("effect", "")
        )
        for part in spec.parts("tolerations")
    )
    return Flavor(_name(item), spec.texts("nodeLabels"), tuple(taints), tolerations)


def _read_record(item: Manifest) -> WorkloadRecord:
    conditions = _read_conditions(item)
    created_s = _time(item.part("metadata"), "creationTimestamp")
    start = next((name for name in ("Admitted", "QuotaReserved") if conditions.is_true(name)), "")
    admitted_s = conditions.changed_s(start) if start else None
    is_over = conditions.is_true("Finished")
    if conditions.is_true("Evicted") and not is_over:
        # it is about to give its quota back
        admitted_s = None
    return WorkloadRecord(
        item, conditions, created_s, admitted_s, conditions.changed_s("Finished") if is_over else None
    )


def _find_queue(
    record: WorkloadRecord, local_queues: Mapping[str, Manifest], queues: Mapping[str, ClusterQueue]
) -> tuple[str, str]:
    """Return the ClusterQueue of a workload, or why it has none."""
    item, is_held = record.item, record.admitted_s is not None
    if record.finished_s is None and item.part("metadata").text("deletionTimestamp", ""):
        return "", "they are being deleted"
    if record.finished_s is not None and record.admitted_s is not None and record.finished_s < record.admitted_s:
        return "", "their conditions say that they ended before they were admitted"
    local = local_queues.get(f"LocalQueue {record.local_queue}")
    admission = item.part("status.admission")
    name = admission.text("clusterQueue", "") if is_held else ""
    if not name and local is not None:
        name = local.part("spec").text("clusterQueue")
    if not name:
        return "", f"the file has no LocalQueue {record.local_queue}"
    if name not in queues:
        return "", f"the file has no ClusterQueue {name}"
    if is_held or record.finished_s is not None:
        return name, ""
    obstacles = {
        "not active": item.part("spec").body.get("active") is False,
        f"LocalQueue {record.local_queue} is stopped": local is not None and _is_stopped(local),
        "not queued again by Kueue (Requeued is False)": record.is_set_aside,
        "preemptionGates cannot be replayed": bool(item.part("spec").body.get("preemptionGates")),
    }
    return name, next((reason for reason, applies in obstacles.items() if applies), "")


def _is_stopped(local_queue: Manifest) -> bool:
    return local_queue.part("spec").choice("stopPolicy", ("None", HOLD, HOLD_AND_DRAIN), "None") != "None"


def _find_beginning(records: Iterable[WorkloadRecord], *, is_history: bool) -> float:
    """Return the first arrival of a history, or the latest time of a snapshot."""
    if is_history:
        return min((record.created_s for record in records), default=0.0)
    times = [time_s for record in records for _, _, time_s in record.conditions.by_type.values()]
    return max([*times, *(record.created_s for record in records)], default=0.0)


def _read_pod_set(part: Manifest, item: Manifest) -> PodSet:
    # Kueue itself writes the index labels of every Job, which request nothing
    for key in TOPOLOGY_REQUESTS & part.part("topologyRequest").body.keys():
        hint = "remove it from the file"
        raise part.fault(f"topologyRequest.{key}", "topology-aware scheduling cannot be replayed", hint)
    name, count = part.text("name", "main"), part.integer("count", 1)
    freed = {entry.text("name"): entry.integer("count", 0) for entry in item.part("status").parts("reclaimablePods")}
    template = part.part("template.spec")
    remaining = max(0, count - freed.get(name, 0))
    least = min(remaining, part.integer("minCount", count))
    return PodSet(
        name, remaining, least if part.body.get("minCount") else remaining, _read_requests(template), _filter(template)
    )


def _read_requests(template: Manifest) -> dict[str, int]:
    try:
        return sum_pod_requests(
            template.body, lambda texts: {kind: parse_quantity(kind, value) for kind, value in texts.items()}
        )
    except ValueError as error:
        raise template.fault("containers", str(error), "such as 16, 500m or 64Gi") from None
    except (AttributeError, TypeError, KeyError) as error:
        raise template.fault("containers", f"not the containers of a pod: {error!r:.80}") from error


def _filter(template: Manifest) -> NodeFilter:
    spec: dict[str, Any] = {
        key: template.body[key] for key in ("nodeSelector", "affinity", "tolerations") if key in template.body
    }
    try:
        return decode_filter(pod_filter({"spec": spec, "metadata": {}}, Scope("kueue", "")))
    except (AttributeError, TypeError, KeyError, ValueError) as error:
        raise template.fault("affinity", f"not the fields of a pod: {error!r:.80}") from error


def _read_usage(item: Manifest, pod_sets: tuple[PodSet, ...]) -> dict[FlavorResource, int]:
    """Return what an admitted workload holds, without pods that it has given back."""
    usage: dict[FlavorResource, int] = {}
    remaining = {pod_set.name: pod_set.count for pod_set in pod_sets}
    for part in item.part("status.admission").parts("podSetAssignments"):
        flavors, amounts = part.texts("flavors"), part.part("resourceUsage")
        name = part.text("name", "main")
        count = part.integer("count", remaining.get(name, 1))
        for resource in amounts.body:
            amount = _read_quantity(amounts, resource, resource)
            held = min(count, remaining.get(name, count))
            amount = amount // count * held if count and held != count else amount
            key = flavors.get(resource, ""), resource
            if not key[0]:
                raise part.fault("flavors", f"no flavor of {resource}")
            usage[key] = usage.get(key, 0) + amount
    return {key: amount for key, amount in usage.items() if amount}
