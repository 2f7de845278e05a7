"""What was run, as a spec of the kind ``placement``, whose policies can be tried on it: the kinds meet by this file."""

from __future__ import annotations

import json
from typing import Any

from unfold_tuning.job.profile import Machine
from unfold_tuning.schema.models import TuningSpec
from unfold_tuning.trial.ledger import Ledger

SHORTEST = 0.001


def placed(spec: TuningSpec, ledger: Ledger, machine: Machine) -> bytes:
    """Return the nodes and the trials' parts of a run as a placement spec: JSON, which is YAML.

    A trial's part of a stage is a job of as many tasks as it had accelerators, at the time when it began.
    """
    parts = [part for part in ledger.sized_parts() if part[4] is not None]
    first = min((began for _, _, _, began, _, _ in parts), default=0.0)
    nodes = max(1, _most_at_once(ledger))
    each = machine.accelerators
    tasks = [_task(part, first, each) for part in parts]
    policy: dict[str, Any] = {"gang": {"by": "job"}}
    policy |= (
        {"spread": {"by": "user"}}
        if spec.placement.spread
        else {"pack": {"level": "node", "fallback": ["any after 1 ms"]}}
    )
    told = {
        "version": 1,
        "kind": "placement",
        "name": f"{spec.name}-trials",
        "cluster": {"nodes": [{"count": nodes, "name": "node", "gpu": each}]},
        "workload": {"tasks": tasks},
        "policy": policy,
    }
    return json.dumps(told, indent=1).encode()


def _task(part: tuple[int, int, str, float, float | None, int], first: float, each: int) -> dict[str, Any]:
    stage, trial, _, began, ended, gang = part
    run = max(SHORTEST, (ended or began) - began)
    job = f"trial-{trial}-stage-{stage + 1}-at-{round((began - first) * 1000)}"
    size = min(gang, each)
    return {
        "job": job, "count": -(-gang // size), "gpu": size, "run": f"{run:.3f} s", "at": f"{began - first:.3f} s",
        "user": f"stage-{stage + 1}",
    }  # fmt: skip


def _most_at_once(ledger: Ledger) -> int:
    lives = ledger.lives()
    return max((sum(o.since <= life.since < (o.until or o.seen) for o in lives) for life in lives), default=0)
