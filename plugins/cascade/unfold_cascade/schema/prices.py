"""What a call of the baseline costs, whether a candidate says it or a model of a stage that is the baseline."""

from __future__ import annotations

from collections.abc import Iterator

from unfold_cascade.schema.models import Candidate, CascadeSpec
from unfoldkit.api import Problem


def problems(spec: CascadeSpec) -> Iterator[Problem]:
    """Yield a price of the baseline as a model of a stage that is not the price that it has already."""
    known = {candidate.price for candidate in (spec.baseline.candidates if spec.baseline else ())} - {None}
    for place, price in _asked(spec):
        if known - {price}:
            yield Problem(place, "a call of the baseline has another price already", "give it once", at_key=True)
        known.add(price)


def call_price(spec: CascadeSpec, candidate: Candidate) -> float | None:
    """Return the price of a call of a candidate: its own, or the one that a model ``estimator: baseline`` gives."""
    return next((price for _, price in _asked(spec)), None) if candidate.price is None else candidate.price


def _asked(spec: CascadeSpec) -> Iterator[tuple[tuple[str | int, ...], float]]:
    """Yield where models that are the baseline have a price, and the price."""
    for s, stage in enumerate(spec.stages):
        for m, model in enumerate(stage.models):
            if model.estimator == "baseline" and model.price is not None:
                yield ("stages", s, "models", m, "price"), model.price
