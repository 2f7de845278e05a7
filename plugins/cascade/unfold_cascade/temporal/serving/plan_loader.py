"""Load what a run stores of a plan over time: its policy, its models, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from unfold_cascade._types import BoolArray, IntArray
from unfold_cascade.models.zoo import RESUME_HINT
from unfold_cascade.temporal.data.features import PurchaseTerms, build_purchase_terms
from unfold_cascade.temporal.data.serving_probe import PROBE_FILE, Probe, load_probe
from unfold_cascade.temporal.evaluation.baselines import BaselineRule
from unfold_cascade.temporal.models.predictions import Predictions, collect_call_costs
from unfold_cascade.temporal.models.study import StoredStudy, load_study
from unfold_cascade.temporal.models.training_sets import ModelSlot
from unfold_cascade.temporal.problem import FeatureSet, TemporalProblem
from unfold_cascade.temporal.simulation.cost import CallCosts
from unfold_cascade.temporal.simulation.policy import Policy, StagePolicy, single_model_policy
from unfoldkit.api import Run, user_error
from unfoldkit.safe_io.files import decoding
from unfoldkit.spec.resolve import RUN_PLAN

INFINITE_CUTS: Mapping[str, float] = {"always": -math.inf, "never": math.inf}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedPlan:
    """A plan with the models it needs.

    Attributes:
        problem: The problem, with the seed of the plan.
        policy: The cascade of the plan.
        baseline: The latched baseline.
        serves_baseline: Whether the baseline is served because no cascade was certified.
        study: What the run stores: slots, predictions and features, the baseline model last.
        needs: (M,) bit masks of the feature sets that each model needs.
        purchase: Terms on which the sets are bought.
        call_costs: What one call of each model costs.
        probe: Held-out entities to replay.
    """

    problem: TemporalProblem
    policy: Policy
    baseline: BaselineRule
    serves_baseline: bool
    study: StoredStudy
    needs: IntArray
    purchase: PurchaseTerms
    call_costs: CallCosts
    probe: Probe

    @property
    def slots(self) -> tuple[ModelSlot, ...]:
        """The models by number."""
        return self.study.slots

    @property
    def predictions(self) -> tuple[Predictions, ...]:
        """Their stored predictions."""
        return self.study.predictions

    @property
    def features(self) -> Mapping[str, FeatureSet]:
        """The feature sets with their columns by name."""
        return self.study.features

    @property
    def has_whole_hours(self) -> bool:
        """Whether all hours are whole numbers: then the server's times are hours, otherwise seconds."""
        return bool((self.study.hours.timeline.hour % 1.0 == 0.0).all())

    @property
    def parallel(self) -> BoolArray:
        """(S,) stages that are evaluated at every hour."""
        return np.array([stage.is_parallel for stage in self.problem.stages])

    @property
    def policy_models(self) -> list[int]:
        """The numbers of the models in the policy, ascending."""
        return sorted({model for stage in self.policy for model in stage.chain})


def load_temporal_plan(problem: TemporalProblem, run: Run, plan: Mapping[str, Any]) -> LoadedPlan:
    """Load a plan and verify each of its files against its hash.

    Args:
        problem: The problem of the plan's spec.
        run: Stores the models.
        plan: The plan as data.

    Raises:
        UnfoldError: A model or the probe is missing, or the plan was not made from this run.
    """
    file = str(run.directory.path / RUN_PLAN)
    with decoding(file, "the plan of this run"):
        problem = replace(problem, seed=int(plan["seed"]))
    study = load_study(problem, run)
    if not run.directory.has(PROBE_FILE):
        raise user_error("the run holds no probe of held-out hours", file=str(run.directory.path), hint=RESUME_HINT)
    names, decision = [slot.place for slot in study.slots], plan["decision"]
    with decoding(file, "the plan of this run"):
        policy = tuple(_decode_stage(stage, names) for stage in decision["cascade"])
        monolith, serves_baseline = decision["monolith"], not decision["promised"]
        alarm = single_model_policy(len(names) - 1, _decode_cut(monolith["cut"]))
        baseline = BaselineRule(alarm, tuple(float(cut) for cut in monolith["stages"]))
    purchase = build_purchase_terms(problem.features)
    return LoadedPlan(
        problem=problem,
        policy=policy,
        baseline=baseline,
        serves_baseline=serves_baseline,
        study=study,
        needs=np.array([purchase.bit_mask(slot.feature_sets) for slot in study.slots], dtype=np.int64),
        purchase=purchase,
        call_costs=collect_call_costs(problem, study.predictions),
        probe=load_probe(run),
    )


def _decode_stage(stage: Mapping[str, Any], names: Sequence[str]) -> StagePolicy:
    chain = tuple(names.index(f"{stage['stage']}/{model}") for model in stage["models"])
    spans, owned = (
        tuple((_decode_cut(lo), _decode_cut(hi)) for lo, hi in stage.get(key, ())) for key in ("unsure", "unsure_owned")
    )
    if len(spans) != len(chain) - 1 or len(owned) not in (0, len(spans)):
        raise ValueError("a span for each model but the last")
    return StagePolicy(chain, spans, _decode_cut(stage["cut"]), owned)


def _decode_cut(cut: Any) -> float:
    return INFINITE_CUTS[cut] if isinstance(cut, str) else float(cut)
