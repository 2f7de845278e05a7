"""The spec of kind ``cascade`` and the checks between its keys."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from unfold_cascade.schema import language_model_rules, temporal_rules, validation
from unfold_cascade.schema.goals import Goal
from unfold_cascade.schema.language_models import Collection, ConfidenceSource, EntrySpec, GatewaySpec
from unfold_cascade.schema.spec_sections import Baseline, CostSpec, Data, FeatureGroup, GateSpec, Stage
from unfold_cascade.schema.splits import split_problems
from unfold_cascade.schema.temporal import Alerts, Drift, LongData, Moves, PhysioNetData
from unfoldkit.api import Problem, Spec

FEW_MODELS = 5
"""Up to this many recorded models, every order of the chain is searched by default."""


class CascadeSpec(Spec):
    """A cascade: cheap models first, expensive ones only where a gate defers."""

    kind: Literal["cascade"]
    data: Data = Field(description="the cases: a table, recorded predictions, prompts, or hours of patients")
    features: dict[str, FeatureGroup] = Field(
        default_factory=dict, description="by name: columns that are acquired together; all columns, free, if omitted"
    )
    stages: tuple[Stage, ...] = Field(min_length=1, max_length=4, description="the decisions about a case, in order")
    baseline: Baseline | None = Field(default=None, description="omitted for recorded models: the best of them")
    cost: CostSpec = CostSpec()
    gates: GateSpec = GateSpec()
    moves: Moves | None = Field(default=None, description="over time: how a case moves through the stages")
    alerts: Alerts | None = Field(default=None, description="over time: the alert rate of the last stage")
    drift: Drift | None = Field(default=None, description="thresholds of the drift check, and, over time, the audit")
    confidence: ConfidenceSource | None = Field(
        default=None, description="language models: where confidences come from"
    )
    entry: EntrySpec | None = Field(
        default=None, description="language models: a gate before the first model, searched together with the others"
    )
    collect: Collection | None = Field(default=None, description="language models: how profile collects the log")
    serve: GatewaySpec | None = Field(default=None, description="language models: how the gateway serves")
    durability: Literal["full", "normal"] | None = Field(
        default=None,
        description="over time: full syncs every answered hour to the disk; normal (default) may lose the last ones "
        "when the machine loses power",
    )
    goal: Goal

    @model_serializer(mode="wrap")
    def _leave_out_own_defaults(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Write no default where that of language models depends on the log, or a run would be planned otherwise."""
        document: dict[str, Any] = write(self)
        if self.model_fields_set >= {"data", "stages"} and self.is_language_model:
            for part, key in ((self.data, "split"), (self.gates, "max_models")):
                if key not in part.model_fields_set:
                    document["data" if part is self.data else "gates"].pop(key, None)
        return document

    @property
    def over_time(self) -> bool:
        """Whether the cases are observed hour after hour."""
        return isinstance(self.data, (PhysioNetData, LongData))

    @property
    def group(self) -> str | None:
        """The column that names the cluster of each row."""
        return self.data.group if self.data.source in ("table", "recorded", "endpoints") else None

    @property
    def is_language_model(self) -> bool:
        """Whether the models answer by calls that a gateway can make; then token prices and the exact test apply."""
        return self.data.source == "endpoints" or (self.scored and language_model_rules.has_language_model_keys(self))

    @property
    def scored(self) -> bool:
        """Whether recorded predictions come with scores of a judge instead of true labels."""
        recorded = [model.recorded for model in self.stages[0].models if self.data.source == "recorded"]
        return any(columns is not None and columns.score is not None for columns in recorded)

    @property
    def order(self) -> Literal["sorted", "all"]:
        """The orders of models to search: an expensive service may be weaker than a cheap one."""
        is_small = self.data.source == "recorded" and len(self.stages[0].models) <= FEW_MODELS
        return self.gates.order or ("all" if is_small else "sorted")

    @property
    def conditional(self) -> tuple[bool, ...]:
        """The scores that gates are searched on: raw confidences (False), label-conditional ones (True), or both."""
        default = "either" if self.data.source == "recorded" and not self.scored else "max-probability"
        return {"either": (False, True), "label-conditional": (True,)}.get(self.gates.confidence or default, (False,))

    def problems(self) -> Iterable[Problem]:
        """Yield every contradiction between keys."""
        yield from validation.goal_problems(
            self.goal, stages=len(self.stages), over_time=self.over_time, scored=self.scored
        )
        yield from validation.outcome_problems(self.goal, self.stages, over_time=self.over_time)
        yield from split_problems(self.data.split, is_bundled=self.data.source == "sklearn")
        yield from validation.name_problems(self.stages, self.baseline)
        yield from language_model_rules.key_problems(self)
        if self.is_language_model:
            yield from language_model_rules.language_model_problems(self)
            yield from validation.repeated_stage_problems(self.stages)
            return
        if self.over_time:
            yield from temporal_rules.temporal_problems(
                features=self.features, stages=self.stages, baseline=self.baseline, cost=self.cost
            )
            yield from validation.confidence_problems(self.gates, self.stages, over_time=True)
            return
        yield from temporal_rules.keys_of_time_problems(
            features=self.features,
            stages=self.stages,
            baseline=self.baseline,
            cost=self.cost,
            moves=self.moves,
            alerts=self.alerts,
            durability=self.durability,
        )
        yield from validation.repeated_stage_problems(self.stages)
        if not self.scored:
            yield from validation.target_problems(self.stages)
        yield from validation.model_problems(self.stages, self.features, recorded=self.data.source == "recorded")
        if self.data.source == "recorded":
            yield from validation.recorded_problems(self.stages, self.cost, self.gates, scored=self.scored)
        yield from validation.baseline_problems(self.stages, self.features, self.baseline)
        yield from validation.confidence_problems(self.gates, self.stages, over_time=False)
        if self.data.source != "recorded":
            yield from validation.candidates_problems(self.baseline)
