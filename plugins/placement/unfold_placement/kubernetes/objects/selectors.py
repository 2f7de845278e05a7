"""Selectors, node affinity and tolerations, as they stand in pods, claims and flavors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unfold_placement.kubernetes.objects.codec import REQUIRED
from unfold_placement.policies.affinity.node_filter import Requirement, Toleration

NodeTerms = tuple[tuple[Requirement, ...], ...]
"""Terms of which one must hold on a node, all of its expressions together."""


def parse_affinity(node_affinity: Mapping[str, Any]) -> NodeTerms:
    """Return the terms of a required node affinity; none for none."""
    required = node_affinity.get(REQUIRED) or {}
    return tuple(
        (
            *(parse_requirement(item) for item in term.get("matchExpressions") or ()),
            *(parse_requirement(item, is_field=True) for item in term.get("matchFields") or ()),
        )
        for term in required.get("nodeSelectorTerms") or ()
    )


def parse_requirement(item: Mapping[str, Any], *, is_field: bool = False) -> Requirement:
    """Return an expression on labels, or on a field of the node."""
    return Requirement(item["key"], item["operator"], tuple(item.get("values") or ()), is_field)


def parse_toleration(item: Mapping[str, Any]) -> Toleration:
    """Return a toleration of a pod or flavor."""
    return Toleration(
        item.get("key") or "", item.get("operator") or "Equal", item.get("value") or "", item.get("effect") or ""
    )


def parse_selector(item: Mapping[str, Any] | None) -> tuple[Requirement, ...]:
    """Return the expressions of a label selector; none selects nothing, an empty one everything."""
    if item is None:
        return (Requirement("", "In"),)
    labels = [Requirement(key, "In", (value,)) for key, value in (item.get("matchLabels") or {}).items()]
    return (*labels, *map(parse_requirement, item.get("matchExpressions") or ()))
