"""What a cascade must reach: a loss or a budget, and what errors cost."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, PlainSerializer, Tag, WithJsonSchema
from pydantic_core import PydanticCustomError

from unfoldkit.api import Model, Percent, Problem

if TYPE_CHECKING:
    from unfold_cascade.schema.models import CascadeSpec

_BUDGET = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?|\.[0-9]+)\s+per\s+case(?:-hour)?\s*")


def parse_budget(value: Any) -> float:
    """Return the cost that one case (or one hour of it) may have, from text such as ``3.0 per case``."""
    match = _BUDGET.fullmatch(str(value))
    if match is None:
        number = re.fullmatch(r"[0-9.]+", str(value).strip())
        hint = f'write "{value} per case"' if number else 'write "3.0 per case"'
        raise PydanticCustomError("unit", '"{value}" is not a budget', {"value": str(value)[:60], "hint": hint})
    return float(match[1])


def _by_label(value: Any) -> Any:
    """Return a mapping whose keys are labels as they are written everywhere: YAML reads 1 as a number."""
    from unfold_cascade.schema.cells import label_text

    return {label_text(key): cost for key, cost in value.items()} if isinstance(value, Mapping) else value


Budget = Annotated[
    float,
    BeforeValidator(parse_budget),
    PlainSerializer(lambda value: f"{value!r} per case"),
    WithJsonSchema(
        {"type": "string", "pattern": r"^\s*[0-9.eE+-]+\s+per\s+case(-hour)?\s*$", "examples": ["3.0 per case"]}
    ),
]
Losses = Annotated[dict[str, Percent], BeforeValidator(_by_label)]
Cost = Annotated[float, Field(ge=0.0, le=1e6)]
Costs = Annotated[dict[str, Cost], BeforeValidator(_by_label)]
Weight = Annotated[
    Annotated[Cost, Tag("cost")] | Annotated[Costs, Tag("costs")],
    Discriminator(lambda value: "costs" if isinstance(value, Mapping) else "cost"),
]
Weights = Annotated[dict[str, Weight], BeforeValidator(_by_label)]
Errors = Annotated[
    Annotated[Literal["balanced"], Tag("balanced")] | Annotated[Weights, Tag("weights")],
    Discriminator(lambda value: "weights" if isinstance(value, Mapping) else "balanced"),
]


class Goal(Model):
    """The cheapest cascade within a loss, or the most accurate within a budget."""

    max_loss: Percent | None = Field(default=None, description="accuracy that may be lost against the baseline")
    max_loss_of: Losses | None = Field(
        default=None,
        description="promised together with max_loss, without time: what may be lost among the cases of one label, "
        "{sick: 5%} the share of the sick that is found; each error counts alike",
    )
    budget: Budget | None = Field(default=None, description="mean cost of a case")
    confidence: Percent = Field(default=0.95, gt=0.5, lt=1.0, description="of the certificate")
    errors: Errors | None = Field(
        default=None,
        description="what errors cost where they are not all alike, of one stage without time: {sick: 20} an error on "
        "that label, {sick: {healthy: 20}} that label taken for another, any other 1; or balanced, each label as much "
        "in all as any other. Models answer what costs least by their probabilities, and max_loss is in points of the "
        "worst that could be",
    )


def problems(spec: CascadeSpec) -> Iterator[Problem]:
    """Yield what does not fit together in a goal."""
    goal = spec.goal
    if (goal.max_loss is None) == (goal.budget is None):
        yield Problem(("goal",), "give either max_loss or budget", "max_loss: 1%")
    if goal.max_loss is not None and goal.max_loss >= 1:
        yield Problem(("goal", "max_loss"), "must be below 100%: no cascade can lose that much", "max_loss: 1%")
    if goal.max_loss_of is not None:
        yield from _labels_problems(spec, goal)
    if goal.errors is not None:
        yield from _errors_problems(spec, goal.errors)


def _labels_problems(spec: CascadeSpec, goal: Goal) -> Iterator[Problem]:
    place = ("goal", "max_loss_of")
    if spec.over_time:
        yield Problem(place, "goes with cases without time only", at_key=True)
    elif spec.scored:
        yield Problem(place, "scores say which answers are right, not which label was meant", at_key=True)
    if goal.max_loss is None:
        yield Problem(place, "goes with max_loss", "max_loss: 1%", at_key=True)
    for label, loss in (goal.max_loss_of or {}).items():
        if loss >= 1:
            yield Problem((*place, label), "must be below 100%: no cascade can lose that much", "5%")


def _errors_problems(spec: CascadeSpec, errors: Errors) -> Iterator[Problem]:
    place = ("goal", "errors")
    if spec.over_time:
        yield Problem(place, "goes with cases without time only: over time, see alerts", at_key=True)
    elif spec.scored:
        yield Problem(place, "scores say which answers are right, not which label was meant", at_key=True)
    elif len(spec.stages) > 1:
        yield Problem(place, "goes with one stage only", at_key=True)
    if isinstance(errors, str):
        return
    for label, cost in errors.items():
        if isinstance(cost, dict) and label in cost:
            yield Problem((*place, label, label), "a right answer costs nothing", at_key=True)
