"""The same search without barriers, next to a plan or where there is none."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from unfold_tuning.report import sentences
from unfold_tuning.simulator.asha import is_one_ladder, simulate_asha
from unfold_tuning.simulator.execution_model import ExecutionModel
from unfold_tuning.simulator.plan_cost import SimulatedPlan

CAP_LEVEL = 0.95


def compare_with_asha(
    model: ExecutionModel, deadline_s: float, confidence: float, seed: int, plan: SimulatedPlan | None = None
) -> Iterator[tuple[str, str]]:
    """Describe the cheapest cluster on which ASHA is likely to be on time; nothing for other searches.

    Args:
        model: The job on a machine.
        deadline_s: The deadline.
        confidence: Probability of ending by then.
        seed: Seed of the draws.
        plan: The plan to compare with, if there is one.
    """
    sizes = simulate_asha(model, seed) if is_one_ladder(model.stages) else []
    if not sizes:
        return
    ends_s = [float(np.quantile(runs.seconds, confidence)) for runs in sizes]
    on_time = [runs for runs, end_s in zip(sizes, ends_s, strict=True) if end_s <= deadline_s]
    if not on_time:
        fastest = min(range(len(sizes)), key=lambda index: ends_s[index])
        yield "without barriers", sentences.describe_late_asha(sizes[fastest].instances, ends_s[fastest], confidence)
        return
    runs = min(on_time, key=lambda runs: float(runs.cost_usd.mean()))
    range_usd = (float(np.quantile(runs.cost_usd, 0.05)), float(np.quantile(runs.cost_usd, 0.95)))
    end_s, cost_usd = float(np.quantile(runs.seconds, confidence)), float(runs.cost_usd.mean())
    text = sentences.describe_asha(runs.instances, cost_usd, range_usd, end_s, confidence)
    if plan is not None:
        is_cheaper = cost_usd < plan.mean_cost_usd and range_usd[1] < plan.compute_cost_quantile_usd(CAP_LEVEL)
        saving = sentences.describe_asha_saving(plan.mean_cost_usd - cost_usd if is_cheaper else None)
        text = f"{text}: {saving}"
    yield "without barriers", f"{text}; a comparison, not a guarantee"
