"""Builds policies by name: those of this package, entry points, and classes named by a spec."""

from __future__ import annotations

import importlib.metadata
import pkgutil
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from unfold_placement.core import types
from unfold_placement.core.policy import POLICY_FAILURES, Policy, call_loader, loading_error, policy_error
from unfoldkit.api import Diagnostic, UnfoldError, did_you_mean, user_error

GROUP = "unfoldkit.placement"
"""Entry point group in which other distributions offer policies."""
CLASSES: Mapping[str, str] = {
    "spread": "affinity.spread:Spread",
    "affinity": "affinity.task_affinity:Affinity",
    "anti_affinity": "affinity.task_affinity:AntiAffinity",
    "avoid": "affinity.task_affinity:Avoid",
    "types": "affinity.node_affinity:Types",
    "locality": "affinity.node_affinity:Locality",
    "servers": "affinity.servers:Servers",
    "barrier": "ordering.barrier:Barrier",
    "limit": "fairness.quota:Limit",
    "fifo": "fairness.priority:Fifo",
    "priority": "fairness.priority:Priority",
    "wfq": "fairness.fair_share:Wfq",
    "drf": "fairness.fair_share:Drf",
    "hierarchy": "fairness.fair_share:Hierarchy",
    "history": "fairness.fair_share:History",
    "quota": "fairness.quota:Quota",
    "edf": "ordering.edf:Edf",
    "pack": "affinity.pack:Pack",
    "value": "ordering.value:Value",
    "gang": "ordering.gang:Gang",
}
"""Classes of policies by their key in a spec, below this package."""
CUSTOM = "own"
"""Key of a policy that the user names as ``module:Class`` or by entry point."""
ATTRIBUTES = ("phase", "watches", "request", "react")
"""What every policy has."""
EVENT_KINDS = (
    types.BEGAN, types.SUBMITTED, types.STARTED, types.ENDED, types.PREEMPTED, types.REFUSED, types.CREATED,
    types.TIMER, types.JOINED, types.LEFT, types.QUIET,
)  # fmt: skip
PolicyFactory = Callable[[], Sequence[Policy]]
"""Builds new policies, without state of an earlier run."""


@dataclass(frozen=True, slots=True)
class PolicyRule:
    """A policy as configured: its key in the spec and the arguments of its class."""

    name: str
    options: Mapping[str, Any]


def build_policies(rules: Sequence[PolicyRule], *, allow_code: bool = False) -> list[Policy]:
    """Build new policies.

    Args:
        rules: The configured policies.
        allow_code: Classes that a spec names as ``module:Class`` may be imported.

    Raises:
        UnfoldError: A user's policy cannot be found or built, or needs ``allow_code``.
    """
    return [
        _build_custom(rule.options["policy"], rule.options["options"], allow_code=allow_code)
        if rule.name == CUSTOM
        else _build_known(rule)
        for rule in rules
    ]


def has_policy(rules: Sequence[PolicyRule], name: str) -> bool:
    """Return whether a policy is configured."""
    return any(rule.name == name for rule in rules)


def _build_known(rule: PolicyRule) -> Policy:
    policy: Policy = pkgutil.resolve_name(f"unfold_placement.policies.{CLASSES[rule.name]}")(**rule.options)
    return policy


def _build_custom(name: str, options: Mapping[str, Any], *, allow_code: bool) -> Policy:
    offered = importlib.metadata.entry_points(group=GROUP)
    if name in offered.names:
        return _instantiate(name, call_loader(name, offered[name].load), options)
    if ":" not in name:
        hint = did_you_mean(name, offered.names) or "write module:Class"
        raise user_error(f"no policy {name!r} is installed", key="policy.own.policy", hint=hint)
    if not allow_code:
        raise user_error(f"the spec names code: {name}", key="policy.own.policy", hint="--allow-code runs it")
    try:
        factory = call_loader(name, partial(pkgutil.resolve_name, name))
    except POLICY_FAILURES as error:
        raise _loading_failure(f"cannot load {name!r}", error, "policy.own.policy", _loading_hint(name)) from error
    return _instantiate(name, factory, options)


def _instantiate(name: str, factory: Any, options: Mapping[str, Any]) -> Policy:
    if not callable(factory):
        hint = f"it is an object of {type(factory).__name__}: name the class, or a function that returns a policy"
        raise user_error(f"{name} is not a class", key="policy.own.policy", hint=hint)
    try:
        policy: Policy = call_loader(name, partial(factory, **options))
    except UnfoldError:
        raise
    except POLICY_FAILURES as error:
        raise _loading_failure(f"cannot build {name}", error, "policy.own.options", "") from error
    try:
        missing = [attribute for attribute in ATTRIBUTES if not hasattr(policy, attribute)]
        phase, watches = (None, None) if missing else (policy.phase, policy.watches)
    except POLICY_FAILURES as error:
        raise _loading_failure(f"cannot read the attributes of {name}", error, "policy.own.policy", "") from error
    if missing:
        hint = "see docs/how-to/write-a-policy.md"
        raise user_error(f"{name} has no {', '.join(missing)}", key="policy.own.policy", hint=hint)
    _check_attributes(policy, phase, watches)
    return policy


def _loading_failure(message: str, error: BaseException, key: str, hint: str) -> UnfoldError:
    """Build the error of a policy that cannot be loaded: with the line of its file that raised, or else of the spec."""
    found = loading_error(error)
    if not found.file:
        return user_error(f"{message}: {error}", key=key, hint=hint)
    return UnfoldError(Diagnostic(f"{message}: {found.message}", found.file, found.line, key="policy"))


def _loading_hint(name: str) -> str:
    """Return how to write the name of a class, or which file was loaded under the module's name."""
    module, _, attribute = name.partition(":")
    if module.endswith(".py"):
        return f"write {Path(module).stem}:{attribute}, with the file next to the spec"
    loaded = sys.modules.get(module)
    if loaded is None:
        return "write module:Class; the module must be importable"
    classes = [key for key, value in vars(loaded).items() if isinstance(value, type)]
    # a module of the standard library hides a file of the same name
    suggestion = did_you_mean(attribute, classes)
    return f"it was loaded from {getattr(loaded, '__file__', None)}" + (f"; {suggestion}" if suggestion else "")


def _check_attributes(policy: Policy, phase: object, watches: object) -> None:
    """Check the attributes of a user's policy that would silently keep it from ever acting.

    Raises:
        UnfoldError: Its phase is none, or it watches what is not an event.
    """
    if not isinstance(phase, int) or not types.STATIC <= phase <= types.GANG:
        hint = "use STATIC, QUEUE, PACK or GANG of unfold_placement.core.types"
        raise policy_error(policy, "react", f"its phase is {phase!r}", hint=hint)
    if isinstance(watches, str) or not isinstance(watches, Collection):
        hint = "write frozenset({SUBMITTED, QUIET})"
        raise policy_error(policy, "react", f"its watches are {watches!r}, not a set of kinds of events", hint=hint)
    unknown = [kind for kind in watches if kind not in EVENT_KINDS]
    if unknown:
        hint = did_you_mean(str(unknown[0]), EVENT_KINDS) or f"there are {', '.join(EVENT_KINDS)}"
        raise policy_error(policy, "react", f"it watches {unknown[0]!r}, which is not an event", hint=hint)
