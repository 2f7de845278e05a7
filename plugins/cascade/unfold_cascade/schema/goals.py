"""The goal of a cascade: a loss or a budget, and the costs of errors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, PlainSerializer, Tag, WithJsonSchema
from pydantic_core import PydanticCustomError

from unfold_cascade.schema.language_models import MaxLatency
from unfoldkit.api import Duration, Model, Percent

MIN_SAVING = 1.05
"""The saving that a cascade must have beside a loss, unless the spec states another."""
_BUDGET = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?|\.[0-9]+)\s+per\s+case(?:-hour)?\s*")


def parse_budget(value: Any) -> float:
    """Parse the budget of one case (or of one hour of it) from text such as ``3.0 per case``."""
    match = _BUDGET.fullmatch(str(value))
    if match is None:
        number = re.fullmatch(r"[0-9.]+", str(value).strip())
        hint = f'write "{value} per case"' if number else 'write "3.0 per case"'
        raise PydanticCustomError("unit", '"{value}" is not a budget', {"value": str(value)[:60], "hint": hint})
    return float(match[1])


def parse_saving(value: Any) -> float:
    """Parse a saving such as ``1.05x``, or its number."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]*)?)\s*x?\s*", str(value)) if not isinstance(value, bool) else None
    if match is None:
        raise PydanticCustomError(
            "unit", '"{value}" is not a saving', {"value": str(value)[:60], "hint": 'write "1.05x"'}
        )
    return float(match[1])


def _with_label_keys(value: Any) -> Any:
    """Write the keys of a mapping as labels: YAML reads the key ``1`` as a number."""
    from unfold_cascade.schema.cell_values import label_text

    return {label_text(key): cost for key, cost in value.items()} if isinstance(value, Mapping) else value


Budget = Annotated[
    float,
    BeforeValidator(parse_budget),
    PlainSerializer(lambda value: f"{value!r} per case"),
    WithJsonSchema(
        {"type": "string", "pattern": r"^\s*[0-9.eE+-]+\s+per\s+case(-hour)?\s*$", "examples": ["3.0 per case"]}
    ),
]
Saving = Annotated[
    float,
    BeforeValidator(parse_saving),
    Field(ge=1.0, le=1e6),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "minimum": 1, "maximum": 1e6},
                {"type": "string", "pattern": r"^\s*[0-9]+(\.[0-9]*)?\s*x?\s*$"},
            ],
            "examples": ["1.05x", 2],
        }
    ),
]
Losses = Annotated[dict[str, Percent], BeforeValidator(_with_label_keys)]
Cost = Annotated[float, Field(ge=0.0, le=1e6)]
Costs = Annotated[dict[str, Cost], BeforeValidator(_with_label_keys)]
Weight = Annotated[
    Annotated[Cost, Tag("cost")] | Annotated[Costs, Tag("costs")],
    Discriminator(lambda value: "costs" if isinstance(value, Mapping) else "cost"),
]
Weights = Annotated[dict[str, Weight], BeforeValidator(_with_label_keys)]
Errors = Annotated[
    Annotated[Literal["balanced"], Tag("balanced")] | Annotated[Weights, Tag("weights")],
    Discriminator(lambda value: "weights" if isinstance(value, Mapping) else "balanced"),
]


class PromisedOutcome(Model):
    """An outcome over time that is certified beside the loss, by patient: exactly one of four kinds."""

    stage: str | None = Field(default=None, description="the stage that alerts; the last one if omitted")
    label: str | None = Field(
        default=None, description="bounds the loss in hours with this true stage, or none for those before the first"
    )
    sensitivity_within: Duration | None = Field(
        default=None,
        description="time before the event in which an alert counts; bounds the sensitivity lost against the baseline",
    )
    max_loss: Percent | None = Field(default=None, description="with sensitivity_within or label; 0 if omitted")
    alerts_per_100h: Annotated[float, Field(gt=0, lt=100)] | None = Field(
        default=None, description="alerts per 100 event-free hours"
    )
    max_utility_loss: Annotated[float, Field(ge=0, lt=10)] | None = Field(
        default=None, description="utility that may be lost against the baseline"
    )


class Goal(Model):
    """The cheapest cascade within a loss, or the most accurate within a budget."""

    max_loss: Percent | None = Field(default=None, description="accuracy that may be lost against the baseline")
    max_loss_of: Losses | None = Field(
        default=None,
        description="guaranteed together with max_loss, without time: the loss allowed among the cases of one label. "
        "{sick: 5%} bounds the loss of sensitivity for sick; each error counts alike",
    )
    budget: Budget | None = Field(default=None, description="mean cost of a case")
    min_saving: Saving | None = Field(
        default=None,
        description="certified together with the loss: how many times cheaper than the baseline the cascade is on "
        "average; over time in what cost.by compares. 1.05x if omitted beside max_loss; below it the verdict is no. "
        "Beside budget, none if omitted",
    )
    confidence: Percent = Field(default=0.95, gt=0.5, lt=1.0, description="of the certificate")
    outcomes: tuple[PromisedOutcome, ...] | None = Field(
        default=None, max_length=8, description="over time: what is guaranteed together with max_loss"
    )
    attempts: int | None = Field(
        default=None,
        ge=1,
        le=10_000,
        description="plans on the same data, whichever goals and models they try, that hold together with this "
        "confidence; 1 if omitted",
    )
    errors: Errors | None = Field(
        default=None,
        description="costs of errors where they differ, for one stage without time. {sick: 20}: an error on that "
        "label; {sick: {healthy: 20}}: that label predicted as another; any other error costs 1. balanced: each label "
        "has the same total weight. Models then predict the label of least expected cost, and max_loss is a share of "
        "the worst possible cost",
    )
    max_latency: MaxLatency | None = Field(
        default=None, description="language models: a limit on the latency, such as {p95: 2 s}, certified with the loss"
    )
    test: Literal["exact", "betting", "binomial"] | None = Field(
        default=None, description="language models: the test of the loss; by default the strongest on tuning rows"
    )

    @property
    def required_saving(self) -> float | None:
        """The saving to certify: as written, 1.05x beside a loss, none beside a budget."""
        return MIN_SAVING if self.min_saving is None and self.max_loss is not None else self.min_saving
