"""A plan as data that can be committed, compared, edited and run: the ``decision`` of ``plan.yaml``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unfold_tuning.job.allocation import Allocation, Plan, count_slots
from unfold_tuning.job.problem import Problem
from unfold_tuning.job.profile import Machine, Profile
from unfold_tuning.simulator.plan_cost import SimulatedPlan
from unfoldkit.api import format_count, user_error
from unfoldkit.errors import format_value


def encode_decision(problem: Problem, machine: Machine, simulated: SimulatedPlan) -> dict[str, Any]:
    """Encode a plan with its predicted time and cost."""
    rows = [
        {
            "trials": stage.trials,
            "iterations": max(group.iters for group in stage.groups),
            "instances": allocation.instances,
            "accelerators_per_trial": allocation.workers,
            "at_a_time": allocation.slots,
        }
        for stage, allocation in zip(problem.stages, simulated.plan, strict=True)
    ]
    return {
        "instance": machine.name,
        "market": machine.market,
        "usd_per_hour": machine.usd_per_hour,
        "stages": rows,
        "cost_usd": round(simulated.mean_cost_usd, 6),
        "mean_seconds": round(simulated.mean_seconds, 6),
        "promised_seconds": round(simulated.compute_guaranteed_seconds(problem.confidence), 6),
    }


def decode_decision(
    decision: Mapping[str, Any], problem: Problem, max_instances: int | None = None
) -> tuple[Machine, Plan]:
    """Decode a plan, which a user may have edited, and check that it fits the job.

    Args:
        decision: The data of :func:`encode_decision`.
        problem: The job.
        max_instances: Maximum instances of a stage; the machine's limit if ``None``.

    Raises:
        UnfoldError: The plan is for another job or machine, or cannot be run.
    """
    rows = decision.get("stages") or ()
    if [row.get("trials") for row in rows] != [stage.trials for stage in problem.stages]:
        raise user_error("the plan is for other stages than the spec's", hint="plan again")
    name, market = decision.get("instance"), decision.get("market")
    machine = next((item for item in problem.machines if (item.name, item.market) == (name, market)), None)
    if machine is None:
        raise user_error(f"the plan is for {name}, which the spec does not name", key="cloud.instances")
    limit = machine.max_instances if max_instances is None else max_instances
    plan = tuple(
        _decode_allocation(row, f"decision.stages[{index}]", machine.accelerators, limit)
        for index, row in enumerate(rows)
    )
    _check_speedups(plan, machine, problem.profile)
    _check_slots(plan, machine)
    return machine, plan


def _decode_allocation(row: Mapping[str, Any], key: str, accelerators: int, max_instances: int) -> Allocation:
    """Decode the allocation of a stage; an edited plan need not state how many trials run at a time."""
    instances = _parse_positive(row.get("instances"), f"{key}.instances")
    workers = _parse_positive(row.get("accelerators_per_trial"), f"{key}.accelerators_per_trial")
    if instances > max_instances:
        message = f"{format_count(instances, 'instance')}, but cloud.limit is {max_instances}"
        raise user_error(message, key=f"{key}.instances")
    return Allocation(instances, workers, count_slots(instances, workers, accelerators))


def _parse_positive(value: object, key: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    raise user_error(f"expected an integer of at least 1, not {format_value(value)}", key=key)


def _check_speedups(plan: Plan, machine: Machine, profile: Profile) -> None:
    used = {allocation.workers for allocation in plan}
    missing = sorted(workers for workers in used if not profile.has_speedup(workers, machine.accelerators))
    if not missing:
        return
    if missing[0] > machine.accelerators:
        message = f"the plan spreads a trial of {missing[0]} accelerators over instances of {machine.accelerators}"
        hint = (
            f"write its speed-up there, such as profile.across: {{{missing[0]}: 1.5}}, or measure it (trainable.span)"
        )
        raise user_error(f"{message}, at an unknown speed", key="profile.across", hint=hint)
    message = f"the plan gives a trial {missing[0]} accelerators, but the profile has no speed-up for them"
    raise user_error(message, key="profile.speedup", hint="measure it, or plan again")


def _check_slots(plan: Plan, machine: Machine) -> None:
    for index, allocation in enumerate(plan):
        if not allocation.slots:
            instances = f"{format_count(allocation.instances, 'instance')} of {machine.accelerators}"
            message = f"no trial of {format_count(allocation.workers, 'accelerator')} fits on {instances}"
            raise user_error(message, key=f"decision.stages[{index}].accelerators_per_trial")
