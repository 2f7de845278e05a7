"""The schema of ``policy`` in a spec: one options model per policy."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from unfold_placement.core.types import Node
from unfoldkit.api import Duration, Model, Problem, did_you_mean, user_error

Count = Annotated[int, Field(ge=1, le=1_000_000)]
Weights = Annotated[dict[str, Annotated[float, Field(gt=0, le=1e6)]], Field(max_length=10_000)]
QUEUE_POLICIES = ("fifo", "priority", "wfq", "drf", "hierarchy", "history", "quota", "edf")
"""Policies that order the queue; a spec has at most one of them."""
Guard = Literal["reserve", "none"]
GUARD_TEXT = "with backfill, reserve nodes for the task that waits longest, or nothing (none)"
BACKFILL_TEXT = "other tasks may pass one that does not fit"
GROUP_TEXT = "task field that names the group"
USER_TEXT = "task field that names the user or team"
WEIGHTS_TEXT = "weight by user; 1 unless set"
Preemptions = Annotated[int, Field(ge=0, le=1000)]
GROUP_FIELDS = ("job", "user", "role", "name", "priority")
"""Task fields by which policies may group tasks."""


def parse_fallback(value: Any) -> tuple[str, float]:
    """Parse text such as ``any after 30 s`` into a level and seconds.

    Raises:
        PydanticCustomError: It is no such text.
    """
    match = re.fullmatch(r"\s*(\w+)\s+after\s+(.+)", value) if isinstance(value, str) else None
    try:
        return (match[1], TypeAdapter(Duration).validate_python(match[2])) if match else _reject_fallback(value)
    except ValidationError:
        return _reject_fallback(value)


def _reject_fallback(value: Any) -> tuple[str, float]:
    context = {"value": str(value)[:60], "hint": 'write "any after 30 s"'}
    raise PydanticCustomError("fallback", '"{value}" is not a level and a time', context)


def _format_fallback(pair: tuple[str, float]) -> str:
    return f"{pair[0]} after {TypeAdapter(Duration).dump_python(pair[1])}"


Fallback = Annotated[
    tuple[str, float],
    BeforeValidator(parse_fallback),
    PlainSerializer(_format_fallback),
    WithJsonSchema({"type": "string", "pattern": r"^\s*\w+\s+after\s+.+$", "examples": ["any after 30 s"]}),
]


class SpreadOptions(Model):
    """No node runs more than ``skew`` tasks of a group above the least loaded node."""

    by: str = Field(default="job", description=GROUP_TEXT)
    skew: Count = Field(default=1, description="largest difference between the most and the least loaded node")
    soft: bool = Field(default=False, description="ignore nodes on which the task does not fit")


class AffinityOptions(Model):
    """Tasks with ``follows`` run on nodes of that job."""


class AntiAffinityOptions(Model):
    """At most ``density`` tasks of a group on one node."""

    by: str = Field(default="job", description=GROUP_TEXT)
    density: Count = Field(default=1, description="maximum tasks of a group on one node")


class AvoidOptions(Model):
    """Tasks with ``avoids`` never start where that job runs."""


class TypesOptions(Model):
    """Tasks with ``types`` run only on nodes of these types."""

    label: str = Field(default="type", description="node label that holds the node type")


class LocalityOptions(Model):
    """Tasks with ``data`` run where it is stored, later in the same rack, later anywhere."""

    rack_after: Duration = Field(default=10.0, description="wait after which any node of the rack will do")
    any_after: Duration = Field(default=30.0, description="wait after which any node will do")


class GangOptions(Model):
    """All tasks of a job start at once, or none does."""

    by: Literal["job"] = Field(default="job", description="task field that names the gang")
    patience: Duration = Field(default=0.0, description="how long others may pass a gang that does not fit")


class PackOptions(Model):
    """Best fit: each task on the node with the least free capacity; a gang within one node, rack or other label."""

    level: str = Field(default="node", description="what a gang must fit into: node, or a label such as rack")
    fallback: tuple[Fallback, ...] = Field(
        default=(), description="wider levels and when they apply, such as any after 30 s"
    )


class FifoOptions(Model):
    """First come, first served; others may pass a task that does not fit."""

    backfill: bool = Field(default=True, description=BACKFILL_TEXT)
    guard: Guard = Field(default="reserve", description=GUARD_TEXT)


class PriorityOptions(Model):
    """Higher classes first."""

    preempt: bool = Field(default=True, description="stop tasks of lower classes if a higher one needs their room")
    backfill: bool = Field(default=False, description=BACKFILL_TEXT)
    guard: Guard = Field(default="reserve", description=GUARD_TEXT)
    max_preemptions: Preemptions | None = Field(
        default=None, description="preemptions after which a task runs to its end; no bound by default"
    )


class FairOptions(Model):
    """Weighted shares by user."""

    by: str = Field(default="user", description=USER_TEXT)
    weights: Weights = Field(default_factory=dict, description=WEIGHTS_TEXT)
    backfill: bool = Field(default=False, description=BACKFILL_TEXT)
    guard: Guard = Field(default="reserve", description=GUARD_TEXT)


class HierarchyOptions(Model):
    """Shares down a tree of users; user names are paths."""

    weights: Weights = Field(default_factory=dict, description="weight by path, such as research/vision; 1 unless set")
    backfill: bool = Field(default=False, description=BACKFILL_TEXT)
    guard: Guard = Field(default="reserve", description=GUARD_TEXT)


class HistoryOptions(Model):
    """The user with the least past use goes first; past use halves with every half-life."""

    half_life: Annotated[Duration, Field(gt=0)] = Field(
        default=86400.0, description="time after which past use counts half"
    )
    by: str = Field(default="user", description=USER_TEXT)
    weights: Weights = Field(default_factory=dict, description=WEIGHTS_TEXT)
    backfill: bool = Field(default=False, description=BACKFILL_TEXT)
    guard: Guard = Field(default="reserve", description=GUARD_TEXT)


class QuotaOptions(Model):
    """A quota for each team; unused quota is lent and reclaimed. ``team-a: 16`` is short for ``quotas: {team-a: 16}``.

    With a file of Kueue's objects, the quotas replace the nominal quotas of ClusterQueues.
    """

    model_config = ConfigDict(json_schema_extra={"additionalProperties": {"type": "number", "minimum": 0}})

    quotas: dict[str, Annotated[float, Field(ge=0, le=1e9)]] = Field(
        default_factory=dict, description="cores, MiB of memory, or units of another resource, by team"
    )
    resource: str = Field(default="gpu", description="the resource that the quotas limit")
    by: str = Field(default="user", description=USER_TEXT)
    borrow: bool = Field(default=True, description="teams may use quota that others leave unused")
    reclaim: bool = Field(default=True, description="a team that needs lent quota stops tasks of its borrowers")
    backfill: bool = Field(default=True, description="tasks of teams within their quota may pass one that does not fit")
    guard: Guard = Field(default="reserve", description=GUARD_TEXT)
    max_preemptions: Preemptions | None = Field(
        default=3, description="preemptions after which a borrowing task runs to its end; null for no bound"
    )

    @model_validator(mode="before")
    @classmethod
    def collect_teams(cls, value: Any) -> Any:
        """Move amounts under unknown keys to ``quotas``; a key that resembles an option stays, and is an error."""
        if not isinstance(value, dict):
            return value
        teams = {
            key: amount
            for key, amount in value.items()
            if isinstance(amount, int | float | str | None)
            and not isinstance(amount, bool)
            and key not in cls.model_fields
            and not get_close_matches(str(key), list(cls.model_fields))
        }
        written = value.get("quotas", {})
        if not teams or not isinstance(written, dict) or teams.keys() & written.keys():
            return value
        rest = {key: item for key, item in value.items() if key not in teams}
        return {**rest, "quotas": {**written, **teams}}


class EdfOptions(Model):
    """The nearest deadline first."""

    admit: bool = Field(default=True, description="reject tasks on arrival that cannot be on time")
    backfill: bool = Field(default=False, description=BACKFILL_TEXT)
    guard: Guard = Field(default="reserve", description=GUARD_TEXT)


class ValueOptions(Model):
    """Each task runs where it ends first, waiting included."""

    ahead: Duration = Field(default=3600.0, description="how long a task waits for a faster node at most")


class LimitOptions(Model):
    """At most ``most`` tasks of a group at any time."""

    most: Count = Field(description="maximum tasks of a group at any time")
    by: str = Field(default="job", description="task field that names the group; empty means one limit for all")
    jobs: tuple[str, ...] = Field(default=(), description="limit these jobs only; empty means all")
    name: str = Field(default="limit", description="name of the resource that counts it; distinguishes several limits")


class BarrierOptions(Model):
    """Tasks with ``after`` wait until these jobs have ended."""


class ServersOptions(Model):
    """Each parameter server on a node of its own, with the workers on these nodes or on others."""

    near: bool = Field(default=True, description="workers run on the servers' nodes")


class OwnOptions(Model):
    """Your own policy; ``module:Class`` needs ``--allow-code``."""

    policy: Annotated[str, Field(min_length=1)] = Field(description="module:Class, or the name of an entry point")
    options: dict[str, Any] = Field(default_factory=dict, description="arguments of the class")


class PolicySpec(Model):
    """Policies that apply together: a task starts only where all of them allow it."""

    spread: SpreadOptions | None = None
    affinity: AffinityOptions | None = None
    anti_affinity: AntiAffinityOptions | None = Field(default=None, alias="anti-affinity")
    avoid: AvoidOptions | None = None
    types: TypesOptions | None = None
    locality: LocalityOptions | None = None
    servers: ServersOptions | None = None
    barrier: BarrierOptions | None = None
    limit: LimitOptions | None = None
    fifo: FifoOptions | None = None
    priority: PriorityOptions | None = None
    wfq: FairOptions | None = Field(
        default=None, description="weighted fair queueing by user: every task counts as one, whatever it demands"
    )
    drf: FairOptions | None = Field(
        default=None, description="dominant resource fairness: the user whose largest share of any resource is least"
    )
    hierarchy: HierarchyOptions | None = None
    history: HistoryOptions | None = None
    quota: QuotaOptions | None = None
    edf: EdfOptions | None = None
    pack: PackOptions | None = None
    value: ValueOptions | None = None
    gang: GangOptions | None = None
    own: OwnOptions | None = None
    all_: tuple[PolicySpec, ...] = Field(default=(), alias="all", description="additional policies")

    def parts(self, path: tuple[str | int, ...] = ("policy",)) -> Iterator[tuple[str, Model, tuple[str | int, ...]]]:
        """Yield every policy with its options and path, those of ``all`` last."""
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if isinstance(value, Model):
                yield name, value, (*path, field.alias or name)
        for index, nested in enumerate(self.all_):
            yield from nested.parts((*path, "all", index))

    def problems(self, path: tuple[str | int, ...]) -> Iterator[Problem]:
        """Yield contradictions that are visible without a workload."""
        labels: dict[tuple[str, str], str] = {}
        for name, options, policy_path in self.parts(path):
            label, group_field = str(policy_path[-1]), str(getattr(options, "by", ""))
            is_queue_policy = name in QUEUE_POLICIES
            identity = ("order", "") if is_queue_policy else (name, f"{group_field}/{getattr(options, 'name', '')}")
            if identity in labels and name != "own":
                yield _duplicate_problem(label, labels[identity], policy_path)
            labels[identity] = label
            if group_field and group_field not in GROUP_FIELDS:
                hint = did_you_mean(group_field, GROUP_FIELDS)
                yield Problem((*policy_path, "by"), f"tasks have no {group_field!r}", hint=hint)
            if isinstance(options, QuotaOptions) and not options.quotas:
                yield Problem(policy_path, "no team has a quota", hint="write team-a: 16")
            if isinstance(options, PackOptions):
                times_s = [seconds for _, seconds in options.fallback]
                if times_s != sorted(times_s):
                    hint = "write the shortest time first"
                    yield Problem((*policy_path, "fallback"), "wider levels come later", hint=hint)


def check_pack_levels(policy: PolicySpec, nodes: Sequence[Node]) -> None:
    """Check that some node has each label by which tasks are packed; otherwise every placement would satisfy it.

    Raises:
        UnfoldError: No node has a label.
    """
    labels = {"node", "any"}.union(*(node.labels for node in nodes))
    for _, options, path in policy.parts():
        if not isinstance(options, PackOptions):
            continue
        for level in (options.level, *(level for level, _ in options.fallback)):
            if level not in labels:
                key = ".".join(str(part) for part in path)
                raise user_error(f"no node has the label {level!r}", key=key, hint=did_you_mean(level, labels))


def _duplicate_problem(name: str, earlier: str, path: tuple[str | int, ...]) -> Problem:
    if name == earlier:
        return Problem(path, f"{name} is written twice", hint="keep one, or set a different by", at_key=True)
    hint = f"a task that is first under {earlier} and another under {name} would block each other"
    return Problem(path, f"{earlier} and {name} both order the queue", hint=hint, at_key=True)
