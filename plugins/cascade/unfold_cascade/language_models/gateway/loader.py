"""Resolve a stored decision and the endpoints of its models into a gateway plan."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from unfold_cascade.language_models.gateway.plan import ClientKey, EntryGate, Gate, Promise, ServedModel
from unfold_cascade.language_models.planning.calibration import parse_calibration
from unfold_cascade.language_models.planning.prompt_features import LENGTH, build_prompt_reader
from unfold_cascade.language_models.planning.prompt_gate import EntryRule, parse_scorer
from unfoldkit.api import user_error


def read_route(
    decision: Mapping[str, Any], models: Mapping[str, ServedModel]
) -> tuple[tuple[str, ...], tuple[Gate, ...]]:
    """Read the chain of a decision and its gates.

    Raises:
        UnfoldError: The decision is no route through these models.
    """
    try:
        chain = tuple(str(name) for name in decision["chain"])
        cuts = [float(cut) for cut in decision["cuts"]]
        gates = tuple(
            Gate(cut, parse_calibration(decision["calibrations"][name]))
            for name, cut in zip(chain[:-1], cuts, strict=True)
        )
    except (KeyError, TypeError, ValueError) as problem:
        raise user_error("the plan holds no route through language models", hint="unfold plan SPEC") from problem
    unknown = [name for name in (*chain, str(decision.get("reference"))) if name not in models]
    if not chain or unknown:
        raise user_error(f"the plan names models without endpoints: {', '.join(unknown)}", key="stages[0].models")
    return chain, gates


def read_entry(decision: Mapping[str, Any]) -> EntryGate | None:
    """Read the gate before the first model; ``None`` if every request enters there.

    Raises:
        UnfoldError: The plan holds something else there.
    """
    document = decision.get("entry")
    if document is None:
        return None
    try:
        names, costs = list(map(str, document["models"])), tuple(map(float, document["costs_usd"]))
        embedding = str(document.get("embedding", ""))
        reader = build_prompt_reader(["embedding"] if embedding else [])
        scorer = parse_scorer(document["scorer"], reader.size)
        chain = tuple(names.index(str(name)) for name in decision["chain"])
        gate = EntryGate(EntryRule(float(document["price"]), costs), reader, scorer, chain)
        is_known = list(document["features"]) == list(LENGTH) and embedding == reader.embedding
        is_valid = is_known and len(names) == len(costs) == len(scorer.weights)
    except (AttributeError, KeyError, TypeError, ValueError):
        is_valid = False
    if not is_valid:
        raise user_error(
            "the gate before the first model was written by another version", hint="unfold plan SPEC again"
        )
    return gate


def read_promise(decision: Mapping[str, Any], *, audits_labels: bool) -> Promise | None:
    """Read the promise of a decision; its audit is against the loss, or against the certified disagreement."""
    promise = decision.get("promise")
    if not isinstance(promise, Mapping):
        return None
    audit_limit = promise["max_loss"] if audits_labels else promise.get("disagreement_limit")
    return Promise(
        max_loss=float(promise["max_loss"]),
        confidence=float(promise["confidence"]),
        audit_limit=None if audit_limit is None else float(audit_limit),
    )


def read_secret(variable: str | None, key: str) -> str:
    """Read a key from the environment; it goes to no file.

    Raises:
        UnfoldError: The variable is not set.
    """
    if variable is None:
        return ""
    value = os.environ.get(variable, "").strip()
    if not value:
        raise user_error(f"the environment variable {variable} is not set", key=key, hint=f"export {variable}=...")
    return value


def check_keys(keys: Sequence[ClientKey]) -> None:
    """Check that no two clients share a key.

    Raises:
        UnfoldError: Two clients have the same key.
    """
    if len({key.key for key in keys}) < len(keys):
        raise user_error("two clients have the same key", key="serve.keys")
