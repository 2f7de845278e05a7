"""What a cascade is compared with: the monolith decoded in two ways, at the same rate of alerts."""

from __future__ import annotations

from dataclasses import dataclass, replace

from unfold_cascade.schema.temporal import Moves
from unfold_cascade.temporal.evaluation.evaluate import Outcome, Quality, Scale, quality, scale
from unfold_cascade.temporal.evaluation.monolith import Monolith, decoded, tuned
from unfold_cascade.temporal.models.study import Part, Study


@dataclass(frozen=True, slots=True)
class Rivals:
    """The monolith that remembers the stage, the one that does not, and their figures on the tuning patients."""

    latched: Monolith
    argmax: Monolith
    scaling: Scale
    latched_quality: Quality

    def both(self, part: Part, moves: Moves, study: Study) -> tuple[Outcome, Outcome]:
        """Return what the latched and the memoryless monolith do on a part."""
        latched = decoded(part, self.latched, moves, study.rates, self.scaling)
        return latched, decoded(part, self.argmax, moves, study.rates, self.scaling)


def rivals(study: Study, moves: Moves, per_100h: float) -> Rivals:
    """Tune the monoliths on the tuning patients."""
    part = study.train
    latched = tuned(part, study.monolith, moves, study.rates, per_100h)
    argmax = replace(latched, cuts=None)
    found = quality(part, decoded(part, latched, moves, study.rates))
    return Rivals(latched, argmax, scaled(study, latched, moves), found)


def scaled(study: Study, rule: Monolith, moves: Moves) -> Scale:
    """Return the map from a monolith's probabilities to the chance of the event, fitted on the tuning patients."""
    asked = decoded(study.train, rule, moves, study.rates).walk.asked[:, -1].astype("int64")
    return scale(study.train, rule.policy[-1].chain, asked)
