"""The spec of kind ``pipeline``: objective, traffic, hardware, stages, search, tuner and placement."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

from pydantic import Field

from unfold_pipeline.schema.arrivals import Arrivals, validate_arrivals
from unfold_pipeline.schema.control import ControlSpec, validate_control
from unfold_pipeline.schema.hardware import Hardware, Placement, validate_hardware, validate_placement
from unfold_pipeline.schema.stages import FromRun, StageSpec, validate_stages
from unfoldkit.api import Duration, Fraction, Model, Problem, Spec, did_you_mean, user_error


class Objective(Model):
    """The service-level objective."""

    p99: Annotated[Duration, Field(gt=0)] | None = Field(
        default=None, description="99 % of the queries are answered within this time"
    )
    ttft_p99: Annotated[Duration, Field(gt=0)] | None = Field(
        default=None, description="99 % of the requests get their first token within this time, for an engine"
    )
    tpot_p99: Annotated[Duration, Field(gt=0)] | None = Field(
        default=None, description="99 % of the requests take at most this time per later token, for an engine"
    )
    confidence: Annotated[Fraction, Field(ge=0.5, lt=1)] | None = Field(
        default=None,
        description="share of fresh samples of the same traffic on which the plan meets p99; for an engine, the end of "
        "the prediction interval at which it meets its targets",
    )
    survive: Annotated[int, Field(ge=0, le=1)] = Field(
        default=0, description="replicas that any stage may lose while the plan still meets p99: 1 is N+1"
    )
    shed: bool = Field(default=False, description="drop a query as soon as it can no longer meet its deadline")


class SearchSpec(Model):
    """How much effort the search for the cheapest plan may spend."""

    limit: Annotated[float, Field(gt=0)] = Field(default=2.5e8, description="queries to simulate, over all stages")
    proof: bool = Field(default=True, description="try to prove that no plan is cheaper, within the same limit")
    compound: bool = Field(default=False, description="let the greedy planner combine two steps")
    frontier: tuple[Annotated[Duration, Field(gt=0)], ...] | None = Field(
        default=None, description="targets of the cost-SLO frontier; default: five around p99"
    )


class TunerSpec(Model):
    """How replica counts follow the traffic."""

    policy: Literal["calibrated", "table", "ratio", "paper", "fixed"] = Field(
        default="calibrated", description="the scaling rule in charge"
    )
    activation: Duration | None = Field(
        default=None, description="from ordering a replica until it serves; default: as unfold serve measured, or 5 s"
    )
    floor: bool = Field(default=True, description="paper and ratio never scale below the plan")
    margin: Annotated[float, Field(ge=1, le=4)] = Field(default=1.15, description="headroom of the table policy")
    hold: Duration = Field(default=60.0, description="how long demand must be lower before replicas are removed")
    table: bool = Field(
        default=False, description="store replicas by rate in the plan, from which exports derive autoscaling"
    )
    most: Annotated[int, Field(ge=1)] = Field(
        default=100, description="maximum replicas per stage under any rule, or those of the plan if these are more"
    )


class PipelineSpec(Spec):
    """Which hardware, batch size and replica count does each model of a pipeline need to meet its SLO?"""

    kind: Literal["pipeline"]
    slo: Objective
    arrivals: Arrivals | Annotated[tuple[Arrivals, ...], Field(min_length=1)] = Field(
        description="traffic to plan for; with a list, the plan meets the SLO on each"
    )
    hardware: dict[str, Hardware] = Field(min_length=1, description="what can be rented")
    stages: Annotated[dict[str, StageSpec], Field(min_length=1)] | FromRun = Field(
        description="the models, in any order, or the run of a cascade"
    )
    region: str = Field(default="us-east-1", description="region of the catalog's prices")
    prices: str | None = Field(default=None, description="a price list, CSV or JSON, consulted before the catalog")
    visits: str | None = Field(default=None, description="a CSV: for each query, its number of visits to each stage")
    machine: str | None = Field(
        default=None, description="the entry of hardware that describes this machine; default: the first"
    )
    search: SearchSpec = SearchSpec()
    tuner: TunerSpec = TunerSpec()
    placement: Placement = Field(
        default=Placement(), description="the node on Ray, or the core of this machine, for each replica"
    )
    control: ControlSpec = Field(
        default=ControlSpec(), description="the existing deployment that unfold serve --target scales"
    )

    @property
    def stages_by_name(self) -> Mapping[str, StageSpec]:
        """The stages written in the spec; empty if they come from a run."""
        return {} if isinstance(self.stages, FromRun) else self.stages

    @property
    def engine_stage(self) -> str | None:
        """The name of the stage that is an LLM engine."""
        return next((name for name, stage in self.stages_by_name.items() if stage.engine is not None), None)

    @property
    def target_s(self) -> float:
        """The p99 target of a pipeline without an engine, in seconds."""
        if self.slo.p99 is None:
            raise user_error("the target is missing", key="slo.p99", hint="p99: 300 ms")
        return self.slo.p99

    @property
    def local_hardware(self) -> str:
        """The name of the hardware that this machine is."""
        return self.machine if self.machine is not None else next(iter(self.hardware))

    def problems(self) -> Iterable[Problem]:
        """Yield the contradictions between the parts of the spec."""
        yield from validate_arrivals(self.arrivals)
        yield from self._validate_targets()
        yield from validate_stages(self.stages_by_name, self.hardware)
        if isinstance(self.stages, FromRun) and self.visits is not None:
            yield Problem(("visits",), "the routes come from the cascade's run", hint="leave it out")
        for name, hardware in self.hardware.items():
            yield from validate_hardware(name, hardware)
        yield from validate_placement(self.placement)
        yield from validate_control(self.control, self.stages_by_name, self.tuner.most)
        if self.machine is not None and self.machine not in self.hardware:
            yield Problem(("machine",), "no such hardware", hint=did_you_mean(self.machine, self.hardware))

    def _validate_targets(self) -> Iterable[Problem]:
        if self.engine_stage is None:
            if self.slo.p99 is None:
                yield Problem(("slo", "p99"), "the target is missing", hint="p99: 300 ms")
            for key in ("ttft_p99", "tpot_p99"):
                if getattr(self.slo, key) is not None:
                    yield Problem(("slo", key), "no stage is an engine", hint="leave it out, or stages.NAME.engine")
            return
        if self.slo.p99 is None and self.slo.ttft_p99 is None and self.slo.tpot_p99 is None:
            yield Problem(("slo",), "the target is missing", hint="one of: ttft_p99, tpot_p99, p99", at_key=True)
        yield from self._validate_surroundings()
        if self.slo.survive:
            hint = "leave it out; replicas of engines are planned without a loss"
            yield Problem(("slo", "survive"), "is not planned for an engine", hint=hint)
        if self.slo.shed:
            yield Problem(("slo", "shed"), "an engine drops no request", hint="leave it out")
        if not isinstance(self.arrivals, Arrivals):
            yield Problem(("arrivals",), "an engine is planned on one trace", hint="leave the others out")

    def _validate_surroundings(self) -> Iterable[Problem]:
        parents = {parent for stage in self.stages_by_name.values() for parent in stage.after}
        if self.engine_stage in parents and self.slo.p99 is None:
            message = "the stages after an engine have no target"
            yield Problem(("slo", "p99"), message, hint="p99: 30 s, from the arrival to the last stage")
        engine = self.stages_by_name[str(self.engine_stage)].engine
        if len(self.stages_by_name) > 1 and engine is not None and engine.disaggregated is not None:
            key = ("stages", str(self.engine_stage), "engine", "disaggregated")
            message = "two pools are planned without other stages"
            yield Problem(key, message, hint="leave the other stages out, with less time in the targets", at_key=True)
        if self.visits is not None:
            yield Problem(("visits",), "recorded visits are not planned with an engine", hint="leave it out")
