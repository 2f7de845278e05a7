"""Builds policies by name: those of this package, entry points, and classes named by a spec."""

from __future__ import annotations

import importlib.metadata
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unfold_placement.core.policy import Policy
from unfoldkit.api import did_you_mean, user_error

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
        UnfoldError: a user's policy cannot be found or built, or needs ``allow_code``.
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
        return _instantiate(name, offered[name].load(), options)
    if ":" not in name:
        hint = did_you_mean(name, offered.names) or "write module:Class"
        raise user_error(f"no policy {name!r} is installed", key="policy.own.policy", hint=hint)
    if not allow_code:
        raise user_error(f"the spec names code: {name}", key="policy.own.policy", hint="--allow-code runs it")
    try:
        return _instantiate(name, pkgutil.resolve_name(name), options)
    except (ImportError, AttributeError, ValueError) as error:
        hint = "write module:Class; the module must be importable"
        raise user_error(f"cannot load {name!r}: {error}", key="policy.own.policy", hint=hint) from error


def _instantiate(name: str, factory: Any, options: Mapping[str, Any]) -> Policy:
    try:
        policy: Policy = factory(**options)
    except (TypeError, ValueError) as error:
        raise user_error(f"cannot build {name}: {error}", key="policy.own.options") from error
    missing = [attribute for attribute in ("phase", "watches", "request", "react") if not hasattr(policy, attribute)]
    if missing:
        hint = "see docs/how-to/write-a-policy.md"
        raise user_error(f"{name} has no {', '.join(missing)}", key="policy.own.policy", hint=hint)
    return policy
