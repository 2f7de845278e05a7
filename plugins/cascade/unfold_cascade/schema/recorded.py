"""What does not fit together in a spec of recorded answers, or of scores that a judge gave them."""

from __future__ import annotations

from collections.abc import Iterator

from unfold_cascade.schema.models import CascadeSpec, ModelSpec, Recorded, Target
from unfoldkit.api import Problem


def problems(spec: CascadeSpec) -> Iterator[Problem]:
    """Yield what is missing or out of place where no model is fitted."""
    for s, stage in enumerate(spec.stages):
        for m, model in enumerate(stage.models):
            yield from _model(model, ("stages", s, "models", m))
    if spec.scored:
        yield from _scored(spec)
    if len(spec.stages) > 1:
        yield Problem(("stages",), "recorded predictions have one stage")
    if spec.cost.by != "price":
        yield Problem(("cost",), "recorded models are compared by price", "cost: {by: price}")


def _model(model: ModelSpec, place: tuple[str | int, ...]) -> Iterator[Problem]:
    if model.recorded is None:
        yield Problem(place, "where is its answer?", "recorded: {prediction: COLUMN, confidence: COLUMN}")
    else:
        yield from _columns(model.recorded, (*place, "recorded"))
    priced = model.recorded is not None and model.recorded.price is not None
    if model.price is None and not priced:
        yield Problem(place, "the price of one call is missing", "price: 0.001")
    if model.price is not None and priced:
        yield Problem((*place, "price"), "each call has its own: recorded.price names their column", at_key=True)
    for key in ("estimator", "tune"):
        if getattr(model, key) is not None:
            yield Problem((*place, key), "nothing is fitted from recorded predictions", at_key=True)


def _columns(columns: Recorded, place: tuple[str | int, ...]) -> Iterator[Problem]:
    if (columns.prediction is None) == (columns.score is None):
        yield Problem(place, "give either prediction or score", "prediction: COLUMN")
    if columns.right_from is not None and columns.score is None:
        yield Problem((*place, "right_from"), "goes with score only", at_key=True)


def _scored(spec: CascadeSpec) -> Iterator[Problem]:
    """Yield what a log of scores cannot have: a label, or gates that know the answer."""
    if spec.stages[0].target != Target():
        yield Problem(("stages", 0, "target"), "scores say which answers are right: no label is read", at_key=True)
    if spec.gates.confidence in ("label-conditional", "either"):
        yield Problem(("gates", "confidence"), "scores say nothing of the answers", "confidence: max-probability")
    for m, model in enumerate(spec.stages[0].models):
        if model.recorded is not None and model.recorded.score is None:
            hint = "score: COLUMN, as those of the other models"
            yield Problem(("stages", 0, "models", m, "recorded"), "has no score", hint)
