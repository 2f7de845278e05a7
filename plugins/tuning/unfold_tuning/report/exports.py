"""Files that a run leaves for other kinds: the best trial, and the trials as tasks of the kind ``placement``.

Kinds meet by these files only; the page on run folders documents their form.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from unfold_tuning.executor.inputs_and_outcome import ExecutionConfig
from unfold_tuning.job.problem import Problem
from unfold_tuning.trial.estimators import ROUNDS_PARAMETERS
from unfold_tuning.trial.ledger import Ledger, Trial, TrialPart
from unfold_tuning.trial.worker import get_state_path

MIN_TASK_S = 0.001


def export_winner(config: ExecutionConfig, winner: Trial) -> bytes:
    """Export the best trial as JSON: its parameters, its metric and where its state is."""
    trainable = config.trainable
    last_iters = max(group.done + group.iters for group in config.stages[-1].groups)
    params = dict(winner.config)
    if trainable.estimator:
        params[ROUNDS_PARAMETERS[trainable.estimator]] = winner.iters * trainable.rounds
    content = {
        "schema": "unfoldkit.winner/1",
        "estimator": trainable.estimator,
        "function": trainable.function,
        "data": trainable.data,
        "params": params,
        "metric": trainable.metric_name,
        "mode": trainable.mode,
        "value": None if winner.metric is None else trainable.display_metric(winner.metric),
        "iterations": winner.iters,
        "finished": winner.iters >= last_iters,
        "seed": config.seed,
        "state": f"trials/{get_state_path(Path(f'trial-{winner.id:05d}'), winner.iters)}",
    }
    return json.dumps(content, indent=1).encode()


def export_placement_spec(problem: Problem, config: ExecutionConfig, ledger: Ledger) -> bytes:
    """Export nodes and trials of a run as a placement spec in JSON, which is YAML, to try other policies on it.

    A trial's part of a stage becomes a job with one task per host, at the time when it began.
    """
    parts = [part for part in ledger.list_parts() if part.ended is not None]
    began = min((part.began for part in parts), default=0.0)
    accelerators = config.machine.accelerators
    policy: dict[str, Any] = {"gang": {"by": "job"}}
    if problem.is_spread:
        policy["spread"] = {"by": "user"}
    else:
        policy["pack"] = {"level": "node", "fallback": ["any after 1 ms"]}
    spec = {
        "version": 1,
        "kind": "placement",
        "name": f"{problem.name}-trials",
        "cluster": {"nodes": [{"count": max(1, _count_peak_nodes(ledger)), "name": "node", "gpu": accelerators}]},
        "workload": {"tasks": [_build_task(part, began, accelerators) for part in parts]},
        "policy": policy,
    }
    return json.dumps(spec, indent=1).encode()


def _build_task(part: TrialPart, run_began: float, accelerators: int) -> dict[str, Any]:
    seconds = max(MIN_TASK_S, (part.ended or part.began) - part.began)
    offset_s = part.began - run_began
    gpus = min(part.workers, accelerators)
    return {
        "job": f"trial-{part.trial}-stage-{part.stage + 1}-at-{round(offset_s * 1000)}",
        "count": -(-part.workers // gpus),
        "gpu": gpus,
        "run": f"{seconds:.3f} s",
        "at": f"{offset_s:.3f} s",
        "user": f"stage-{part.stage + 1}",
    }


def _count_peak_nodes(ledger: Ledger) -> int:
    lifetimes = ledger.list_lifetimes()
    return max(
        (
            sum(other.since <= lifetime.since < (other.until or other.seen) for other in lifetimes)
            for lifetime in lifetimes
        ),
        default=0,
    )
