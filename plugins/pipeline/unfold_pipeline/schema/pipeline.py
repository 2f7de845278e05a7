"""The spec of kind ``pipeline``: objective, traffic, hardware, stages, search, tuner and placement."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

from pydantic import Field

from unfold_pipeline.schema.arrivals import Arrivals, validate_arrivals
from unfold_pipeline.schema.hardware import Hardware, validate_hardware
from unfold_pipeline.schema.placement import Placement, validate_placement
from unfold_pipeline.schema.stages import FromRun, StageSpec, validate_stages
from unfoldkit.api import Duration, Model, Problem, Spec, did_you_mean


class Objective(Model):
    """The service-level objective."""

    p99: Annotated[Duration, Field(gt=0)] = Field(description="99 % of the queries are answered within this time")
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
    most: Annotated[int, Field(ge=1)] = Field(default=100, description="maximum replicas per stage under any rule")


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
    machine: str | None = Field(default=None, description="the hardware that this machine is; default: the first")
    search: SearchSpec = SearchSpec()
    tuner: TunerSpec = TunerSpec()
    placement: Placement = Field(
        default=Placement(), description="the node on Ray, or the core of this machine, for each replica"
    )

    @property
    def stages_by_name(self) -> Mapping[str, StageSpec]:
        """The stages written in the spec; empty if they come from a run."""
        return {} if isinstance(self.stages, FromRun) else self.stages

    @property
    def local_hardware(self) -> str:
        """The name of the hardware that this machine is."""
        return self.machine if self.machine is not None else next(iter(self.hardware))

    def problems(self) -> Iterable[Problem]:
        """Yield the contradictions between the parts of the spec."""
        yield from validate_arrivals(self.arrivals)
        yield from validate_stages(self.stages_by_name, self.hardware)
        if isinstance(self.stages, FromRun) and self.visits is not None:
            yield Problem(("visits",), "the routes come from the cascade's run", hint="leave it out")
        for name, hardware in self.hardware.items():
            yield from validate_hardware(name, hardware)
        yield from validate_placement(self.placement)
        if self.machine is not None and self.machine not in self.hardware:
            yield Problem(("machine",), "no such hardware", hint=did_you_mean(self.machine, self.hardware))
