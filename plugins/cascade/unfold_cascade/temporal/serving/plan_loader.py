"""What stands in a run of a cascade over time, read back: the policy of the plan, the models, what they cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from unfold_cascade._types import IntArray
from unfold_cascade.models.zoo import RESUME_HINT
from unfold_cascade.schema.cascade import CascadeSpec
from unfold_cascade.schema.parts import FeatureGroup
from unfold_cascade.schema.temporal import Drift, Moves
from unfold_cascade.temporal.data.features import Purchase, purchase
from unfold_cascade.temporal.data.holdout import FILE as PROBE
from unfold_cascade.temporal.data.holdout import Probe, read
from unfold_cascade.temporal.evaluation.evaluate import single
from unfold_cascade.temporal.evaluation.monolith import Monolith
from unfold_cascade.temporal.models.study import rates_of, stored
from unfold_cascade.temporal.models.training import Log, Slot
from unfold_cascade.temporal.simulation.cost import Rates
from unfold_cascade.temporal.simulation.policy import Policy, Step
from unfoldkit.api import Run, fail

WORDS: Mapping[str, float] = {"always": -math.inf, "never": math.inf}


@dataclass(frozen=True, slots=True)
class Loaded:
    """The cascade of a plan and its monolith. ``alone``: nothing was promised, so the monolith answers.

    ``features`` are those of ``spec`` with their columns by name. ``whole`` tells whether all hours are whole numbers:
    then times are hours, else seconds.
    """

    spec: CascadeSpec
    features: Mapping[str, FeatureGroup]
    run: Run
    policy: Policy
    monolith: Monolith
    alone: bool
    places: tuple[Slot, ...]
    logs: tuple[Log, ...]
    needs: IntArray
    purchase: Purchase
    rates: Rates
    probe: Probe
    whole: bool

    @property
    def moves(self) -> Moves:
        """How cases move."""
        return self.spec.moves or Moves()

    @property
    def drift(self) -> Drift:
        """What an audit and a check tell."""
        return self.spec.drift or Drift()

    @property
    def parallel(self) -> np.ndarray:
        """(S,) which stages are asked at every hour."""
        return np.array([stage.parallel for stage in self.spec.stages])

    @property
    def asked(self) -> list[int]:
        """The numbers of the models that the policy may ask."""
        return sorted({model for step in self.policy for model in step.chain})


def load(spec: CascadeSpec, run: Run, plan: Mapping[str, Any]) -> Loaded:
    """Return what a run holds of a plan, each file against its hash.

    Raises:
        UnfoldError: a model or the hours set aside are missing, or the plan is not of this run.
    """
    held = stored(spec, replace(run, seed=int(plan["seed"])))
    if not run.directory.has(PROBE):
        raise fail("the run holds no hours that were set aside", file=str(run.directory.path), hint=RESUME_HINT)
    names, decision = [slot.place for slot in held.places], plan["decision"]
    bought = purchase(spec.features)
    last = len(names) - 1
    try:
        policy = tuple(_step(item, names) for item in decision["cascade"])
        base, alone = decision["monolith"], not decision["promised"]
        rule = Monolith(single(last, _cut(base["cut"])), tuple(float(cut) for cut in base["stages"]))
    except (KeyError, ValueError, TypeError) as error:
        raise fail("the plan is not of this run", file=str(run.directory.path), hint=RESUME_HINT) from error
    return Loaded(
        spec=spec,
        features=held.features,
        run=run,
        policy=policy,
        monolith=rule,
        alone=alone,
        places=held.places,
        logs=held.logs,
        needs=np.array([bought.mask(slot.groups) for slot in held.places], dtype=np.int64),
        purchase=bought,
        rates=rates_of(spec, held.logs),
        probe=read(run.directory.read(PROBE)),
        whole=bool((held.hours.clock.hour % 1.0 == 0.0).all()),
    )


def _step(item: Mapping[str, Any], names: Sequence[str]) -> Step:
    chain = tuple(names.index(f"{item['stage']}/{model}") for model in item["models"])
    spans, owned = (tuple((_cut(lo), _cut(hi)) for lo, hi in item.get(key, ())) for key in ("unsure", "unsure_owned"))
    if len(spans) != len(chain) - 1 or len(owned) not in (0, len(spans)):
        raise ValueError("a span for each model but the last")
    return Step(chain, spans, _cut(item["cut"]), owned)


def _cut(value: Any) -> float:
    return WORDS[value] if isinstance(value, str) else float(value)
