"""What a user writes under ``policy``, and the policies that are made of it."""

from __future__ import annotations

import importlib.metadata
import pkgutil
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, TypeAdapter, ValidationError, WithJsonSchema
from pydantic_core import PydanticCustomError

from unfold_placement.core.policy import Policy
from unfoldkit.api import Duration, Model, Problem, did_you_mean, fail

Most = Annotated[int, Field(ge=1, le=1_000_000)]
Weights = Annotated[dict[str, Annotated[float, Field(gt=0, le=1e6)]], Field(max_length=10_000)]
GROUP = "unfoldkit.placement"
"""The group of entry points under which others offer policies."""


def parse_fallback(value: Any) -> tuple[str, float]:
    """Return level and seconds of text such as ``any after 30 s``."""
    found = re.fullmatch(r"\s*(\w+)\s+after\s+(.+)", value) if isinstance(value, str) else None
    try:
        return (found[1], TypeAdapter(Duration).validate_python(found[2])) if found else _wrong(value)
    except ValidationError:
        return _wrong(value)


def _wrong(value: Any) -> tuple[str, float]:
    hint = {"value": str(value)[:60], "hint": 'write "any after 30 s"'}
    raise PydanticCustomError("fallback", '"{value}" is not a level and a time', hint)


def _format_fallback(pair: tuple[str, float]) -> str:
    return f"{pair[0]} after {TypeAdapter(Duration).dump_python(pair[1])}"


Fallback = Annotated[
    tuple[str, float],
    BeforeValidator(parse_fallback),
    PlainSerializer(_format_fallback),
    WithJsonSchema({"type": "string", "pattern": r"^\s*\w+\s+after\s+.+$", "examples": ["any after 30 s"]}),
]


class SpreadOptions(Model):
    """No node runs more than ``skew`` tasks of a group above the node with the fewest."""

    by: str = "job"
    skew: Most = 1
    soft: bool = Field(default=False, description="leave out nodes on which the task would not fit anyway")


class AffinityOptions(Model):
    """Tasks with ``follows`` run beside the job that they name."""


class AntiAffinityOptions(Model):
    """At most ``density`` tasks of a group on one node."""

    by: str = "job"
    density: Most = 1


class AvoidOptions(Model):
    """Tasks with ``avoids`` never start where the job that they name runs."""


class TypesOptions(Model):
    """Tasks with ``types`` run only on nodes of these types."""

    label: str = Field(default="type", description="the label of a node that says of which type it is")


class LocalityOptions(Model):
    """Tasks with ``data`` run where it is; later in its rack, later anywhere."""

    rack_after: Duration = 10.0
    any_after: Duration = 30.0


class GangOptions(Model):
    """All tasks of a group start at once, or none does."""

    by: Literal["job"] = Field(default="job", description="a task knows how many its job has")
    patience: Duration = Field(default=0.0, description="how long others may pass a gang that does not fit")


class PackOptions(Model):
    """Each task on the node that it fills best; a gang within one node, rack or other label."""

    level: str = "node"
    fallback: tuple[Fallback, ...] = Field(default=(), description="wider levels and when, such as any after 30 s")


class PriorityOptions(Model):
    """Higher classes first."""

    preempt: bool = True
    backfill: bool = False


class FairOptions(Model):
    """Shares by user, weighted."""

    by: str = "user"
    weights: Weights = Field(default_factory=dict)
    backfill: bool = Field(default=False, description="others may pass a user whose next task does not fit")


class HierarchyOptions(Model):
    """Shares down a tree of users, whose names are paths."""

    weights: Weights = Field(default_factory=dict)
    backfill: bool = False


class HistoryOptions(Model):
    """Whoever used least, where use counts half after every half-life."""

    half_life: Annotated[Duration, Field(gt=0)] = 86400.0
    by: str = "user"
    weights: Weights = Field(default_factory=dict)
    backfill: bool = False


class QuotaOptions(Model):
    """What each team is owed; the rest is lent and taken back."""

    quotas: dict[str, Annotated[float, Field(ge=0, le=1e9)]]
    resource: str = "gpu"
    by: str = "user"
    borrow: bool = True
    reclaim: bool = True
    backfill: bool = Field(default=True, description="no team within its quota waits for another whose task lacks room")


class EdfOptions(Model):
    """The nearest deadline first."""

    admit: bool = Field(default=True, description="refuse, as it comes, what cannot be on time")
    backfill: bool = False


class ValueOptions(Model):
    """Where a task would end first, waiting included."""

    ahead: Duration = Field(default=3600.0, description="how long a task waits for a faster node at most")


class LimitOptions(Model):
    """At most ``most`` tasks of a group at any time."""

    most: Most
    by: str = Field(default="job", description="one limit for each; the empty text is one for all")
    jobs: tuple[str, ...] = Field(default=(), description="only these jobs")
    name: str = "limit"


class BarrierOptions(Model):
    """Tasks with ``after`` wait for the end of these jobs."""


class ServersOptions(Model):
    """Parameter servers on nodes of their own; workers beside them, or away."""

    near: bool = Field(default=True, description="workers beside the servers")


class OwnOptions(Model):
    """A policy of your own (needs ``--allow-code`` where it is ``module:Class``)."""

    policy: Annotated[str, Field(min_length=1)] = Field(description="module:Class, or the name of an entry point")
    options: dict[str, Any] = Field(default_factory=dict, description="what the class is made with")


class PolicySpec(Model):
    """Policies that hold together: a task starts only where all of them let it."""

    spread: SpreadOptions | None = None
    affinity: AffinityOptions | None = None
    anti_affinity: AntiAffinityOptions | None = Field(default=None, alias="anti-affinity")
    avoid: AvoidOptions | None = None
    types: TypesOptions | None = None
    locality: LocalityOptions | None = None
    servers: ServersOptions | None = None
    barrier: BarrierOptions | None = None
    limit: LimitOptions | None = None
    priority: PriorityOptions | None = None
    wfq: FairOptions | None = None
    drf: FairOptions | None = None
    hierarchy: HierarchyOptions | None = None
    history: HistoryOptions | None = None
    quota: QuotaOptions | None = None
    edf: EdfOptions | None = None
    pack: PackOptions | None = None
    value: ValueOptions | None = None
    gang: GangOptions | None = None
    own: OwnOptions | None = None
    all_: tuple[PolicySpec, ...] = Field(default=(), alias="all", description="further policies, which also hold")

    def parts(self, path: tuple[str | int, ...] = ("policy",)) -> Iterator[tuple[str, Model, tuple[str | int, ...]]]:
        """Yield every policy with its options and where it stands, those of ``all`` last."""
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if isinstance(value, Model):
                yield name, value, (*path, field.alias or name)
        for index, item in enumerate(self.all_):
            yield from item.parts((*path, "all", index))

    def problems(self, path: tuple[str | int, ...]) -> Iterator[Problem]:
        """Say what can be seen to be wrong without a workload."""
        seen: dict[tuple[str, str], str] = {}
        for name, options, where in self.parts(path):
            label, by_ = str(where[-1]), str(getattr(options, "by", ""))
            mine = ("order", "") if name in ORDERS else (name, f"{by_}/{getattr(options, 'name', '')}")
            if mine in seen and name != "own":
                yield _twice(label, seen[mine], where)
            seen[mine] = label
            if by := getattr(options, "by", ""):
                known = ("job", "user", "role", "name", "priority")
                if by not in known:
                    yield Problem((*where, "by"), f"tasks have no {by!r}", hint=did_you_mean(by, known))
            if name == "pack" and isinstance(options, PackOptions):
                times = [seconds for _, seconds in options.fallback]
                if times != sorted(times):
                    yield Problem((*where, "fallback"), "wider levels come later", hint="write the shortest time first")


def _twice(name: str, before: str, where: tuple[str | int, ...]) -> Problem:
    if name == before:
        return Problem(where, f"{name} is written twice", hint="one of them, or another by", at_key=True)
    hint = f"where a task is first by {before} and another by {name}, each waits for the other"
    return Problem(where, f"{before} and {name} both order the queue", hint=hint, at_key=True)


ORDERS = ("priority", "wfq", "drf", "hierarchy", "history", "quota", "edf")
CLASSES: Mapping[str, str] = {
    "spread": "affinity.spread:Spread",
    "affinity": "affinity.affinity:Affinity",
    "anti_affinity": "affinity.anti_affinity:AntiAffinity",
    "avoid": "affinity.avoid:Avoid",
    "types": "affinity.types:Types",
    "locality": "affinity.locality:Locality",
    "servers": "affinity.servers:Servers",
    "barrier": "ordering.barrier:Barrier",
    "limit": "fairness.limit:Limit",
    "priority": "fairness.priority:Priority",
    "wfq": "fairness.wfq:Wfq",
    "drf": "fairness.drf:Drf",
    "hierarchy": "fairness.hierarchy:Hierarchy",
    "history": "fairness.history:History",
    "quota": "fairness.quota:Quota",
    "edf": "ordering.edf:Edf",
    "pack": "affinity.pack:Pack",
    "value": "ordering.value:Value",
    "gang": "ordering.gang:Gang",
}


def build_policies(spec: PolicySpec, *, allow_code: bool = False) -> list[Policy]:
    """Return fresh policies for one run.

    Raises:
        UnfoldError: a policy of the user's own cannot be found or made, or code is not allowed.
    """
    return [_own(options, allow_code=allow_code) if isinstance(options, OwnOptions) else _known(name, options)
            for name, options, _ in spec.parts()]  # fmt: skip


def _known(name: str, options: Model) -> Policy:
    values = {key: getattr(options, key) for key in type(options).model_fields}
    if isinstance(options, PackOptions):
        values["fallback"] = dict(options.fallback)
    made: Policy = pkgutil.resolve_name(f"unfold_placement.policies.{CLASSES[name]}")(**values)
    return made


def _own(options: OwnOptions, *, allow_code: bool) -> Policy:
    offered = importlib.metadata.entry_points(group=GROUP)
    if options.policy in offered.names:
        return _made(options, offered[options.policy].load())
    if ":" not in options.policy:
        hint = did_you_mean(options.policy, offered.names) or "write module:Class"
        raise fail(f"no policy {options.policy!r} is installed", key="policy.own.policy", hint=hint)
    if not allow_code:
        raise fail(f"the spec names code: {options.policy}", key="policy.own.policy", hint="--allow-code runs it")
    try:
        return _made(options, pkgutil.resolve_name(options.policy))
    except (ImportError, AttributeError, ValueError) as error:
        hint = "write module:Class; the module must be importable"
        raise fail(f"cannot load {options.policy!r}: {error}", key="policy.own.policy", hint=hint) from error


def _made(options: OwnOptions, factory: Any) -> Policy:
    try:
        made: Policy = factory(**options.options)
    except (TypeError, ValueError) as error:
        raise fail(f"cannot make {options.policy}: {error}", key="policy.own.options") from error
    missing = [name for name in ("phase", "watches", "request", "react") if not hasattr(made, name)]
    if missing:
        raise fail(f"{options.policy} has no {', '.join(missing)}", key="policy.own.policy", hint="see the docs")
    return made
