"""What a user writes in a spec of kind ``pipeline``."""

from __future__ import annotations

import graphlib
from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

from pydantic import Field

from unfold_pipeline.schema.placement import Placing, placing_problems
from unfoldkit.api import Duration, Fraction, Model, Price, Problem, Rate, Spec, did_you_mean

BatchLatency = dict[Annotated[int, Field(ge=1, le=4096)], Duration]
LENGTH = 600.0
MODELS = ("file", "code", "estimator")
TRAFFIC = ("process", "shape", "trace")


class Objective(Model):
    """The target."""

    p99: Annotated[Duration, Field(gt=0)] = Field(description="99 % of the queries are answered within this time")
    shed: bool = Field(default=False, description="refuse a query as soon as it cannot be in time any more")


class Arrivals(Model):
    """How queries arrive: a process, a named shape, or a recorded trace."""

    process: Literal["poisson", "gamma", "constant"] | None = Field(default=None, description="a renewal process")
    rate: Annotated[Rate, Field(gt=0)] | None = Field(default=None, description="mean queries a second")
    cv: Annotated[float, Field(ge=0, le=50)] | None = Field(default=None, description="std / mean of the gaps")
    scv: Annotated[float, Field(ge=0, le=2500)] | None = Field(default=None, description="the square of cv")
    duration: Annotated[Duration, Field(gt=0)] | None = Field(default=None, description="length of the sample")
    shape: str | None = Field(default=None, description="a rate that changes in time, such as big-spike")
    trace: str | None = Field(default=None, description="a file of arrival times or counts: CSV, NPZ, NPY or a log")
    column: str | None = Field(default=None, description="the column of the trace")
    counts: str | None = Field(
        default=None, description="the column that counts arrivals by interval; by default by its name, '' for none"
    )
    rates: str | None = Field(
        default=None, description="the column that tells arrivals a second by interval; by default by its name"
    )
    match: str | None = Field(default=None, description="only the lines or rows of the trace that hold this text")
    compress: Annotated[float, Field(gt=0)] = Field(default=1.0, description="play the trace this many times as fast")
    scale: Annotated[float, Field(gt=0)] = Field(default=1.0, description="multiply the rate, keep the length")
    share: Annotated[Fraction, Field(gt=0)] = Field(default=1.0, description="plan on this first part of the trace")


class Hardware(Model):
    """A kind of hardware that replicas can have; without a price, an instance type of the catalog."""

    price: Price | None = Field(default=None, description="of one replica; goes before the catalog's")
    instance: str | None = Field(default=None, description="type in the catalog; by default the name of the hardware")
    per_instance: Annotated[int, Field(ge=1)] = Field(
        default=1, description="replicas, of any stages, that share one instance; whole instances are paid"
    )
    spot: bool = Field(default=False, description="take the spot price of the catalog")
    quota: Annotated[int, Field(ge=1)] | None = Field(default=None, description="most replicas over all stages")


class ModelSpec(Model):
    """What a stage runs: a saved model, a function, or an estimator that is fitted when it is profiled."""

    file: str | None = Field(default=None, description="XGBoost (.ubj, .json), scikit-learn (.skops) or .onnx")
    code: str | None = Field(default=None, pattern=r"^[\w.]+:[\w.]+$", description="module:function, with --allow-code")
    estimator: Literal["logistic-regression", "svc", "xgboost"] | None = Field(
        default=None, description="fitted when it is profiled"
    )
    dataset: Literal["digits"] = Field(default="digits", description="for the estimator")
    features: Annotated[int, Field(ge=1)] | None = Field(default=None, description="numbers in a query, for code")
    columns: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        default=None, description="which numbers of a query it reads, from 0; by default all"
    )
    rows: str | None = Field(default=None, description="an NPZ file whose array x holds queries to profile with")
    start: Annotated[Duration, Field(gt=0)] | None = Field(
        default=None, description="how long a replica may take to load it; by default 3 min"
    )


class StageSpec(Model):
    """A model of the pipeline."""

    after: dict[str, Fraction] = Field(default={}, description="the stages before it, and the share that comes here")
    share: Annotated[Fraction, Field(gt=0)] = Field(default=1.0, description="of all queries, if no stage is before it")
    fan_out: Annotated[float, Field(gt=0, le=1000)] = Field(default=1.0, description="mean items made of one query")
    latency: dict[str, BatchLatency] = Field(
        default={}, description="by hardware: time of a batch by its size; goes before what was measured"
    )
    perf_analyzer: dict[str, dict[Annotated[int, Field(ge=1, le=4096)], str]] = Field(
        default={}, description="by hardware: CSV files of perf_analyzer by batch size"
    )
    model: ModelSpec | None = Field(default=None, description="what runs here, to profile and to serve")
    wait: Duration = Field(default=0.0, description="how long a batch that is not full may be held back")
    max_batch: Annotated[int, Field(ge=1)] | None = Field(default=None, description="the largest batch to plan with")


class FromRun(Model):
    """The stages are the models of a cascade, as a run of it says; its exits are the routes."""

    run: Annotated[str, Field(min_length=1)] = Field(alias="from", description="the folder that unfold train left")
    max_batch: Annotated[int, Field(ge=1, le=4096)] = Field(default=32, description="the largest batch of any stage")


class SearchSpec(Model):
    """How hard to look for the cheapest plan."""

    limit: Annotated[float, Field(gt=0)] = Field(default=2.5e8, description="queries to simulate, over all stages")
    proof: bool = Field(default=True, description="try to prove that nothing is cheaper, within the same limit")
    compound: bool = Field(default=False, description="let the greedy planner take two steps at once")
    frontier: tuple[Annotated[Duration, Field(gt=0)], ...] | None = Field(
        default=None, description="targets of the cost-SLO table; by default five around p99"
    )


class TunerSpec(Model):
    """How replica counts follow the traffic."""

    policy: Literal["calibrated", "table", "ratio", "paper", "fixed"] = Field(
        default="calibrated", description="the rule that is in charge"
    )
    activation: Duration = Field(default=5.0, description="from ordering a replica until it serves")
    floor: bool = Field(default=True, description="paper and ratio never go below the plan")
    margin: Annotated[float, Field(ge=1, le=4)] = Field(default=1.15, description="head-room of the table policy")
    hold: Duration = Field(default=60.0, description="how long need must be lower before replicas are removed")
    most: Annotated[int, Field(ge=1)] = Field(default=100, description="replicas that any rule may give one stage")


class PipelineSpec(Spec):
    """Which hardware, batch size and replica count does each model of a pipeline need to meet its deadline?"""

    kind: Literal["pipeline"]
    slo: Objective
    arrivals: Arrivals | Annotated[tuple[Arrivals, ...], Field(min_length=1)] = Field(
        description="traffic to plan for; a list plans for each of them"
    )
    hardware: dict[str, Hardware] = Field(min_length=1, description="what can be bought")
    stages: Annotated[dict[str, StageSpec], Field(min_length=1)] | FromRun = Field(
        description="the models, in any order, or the run of a cascade"
    )
    region: str = Field(default="us-east-1", description="of the catalog's prices")
    prices: str | None = Field(default=None, description="a price list, CSV or JSON, asked before the catalog")
    visits: str | None = Field(default=None, description="a CSV: for each query, how often it goes to each stage")
    machine: str | None = Field(default=None, description="the hardware that this machine is; by default the first")
    search: SearchSpec = SearchSpec()
    tuner: TunerSpec = TunerSpec()
    placement: Placing = Field(
        default=Placing(), description="which node of Ray, or core of this machine, a replica is given"
    )

    @property
    def named(self) -> Mapping[str, StageSpec]:
        """The stages that are written out; none while they stand in a run."""
        return {} if isinstance(self.stages, FromRun) else self.stages

    def problems(self) -> Iterable[Problem]:
        """Say what does not fit together."""
        for place, item in _traffic(self.arrivals):
            yield from _arrivals_problems(place, item)
        for name, stage in self.named.items():
            yield from _stage_problems(name, stage, self)
        yield from _cycles(self.named)
        if isinstance(self.stages, FromRun) and self.visits is not None:
            yield Problem(("visits",), "the routes are those of the cascade's run", hint="leave it out")
        for kind, hardware in self.hardware.items():
            yield from _hardware_problems(kind, hardware)
        yield from placing_problems(self.placement)
        if self.machine is not None and self.machine not in self.hardware:
            yield Problem(("machine",), "no such hardware", hint=did_you_mean(self.machine, self.hardware))


def machine(spec: PipelineSpec) -> str:
    """Return the hardware that this machine is."""
    return spec.machine if spec.machine is not None else next(iter(spec.hardware))


def traffic(spec: PipelineSpec) -> tuple[Arrivals, ...]:
    """Return the traffic to plan for, as a list."""
    return tuple(item for _, item in _traffic(spec.arrivals))


def traffic_keys(spec: PipelineSpec) -> tuple[tuple[str, Arrivals], ...]:
    """Return the traffic to plan for, each with the key under which it stands."""
    if isinstance(spec.arrivals, Arrivals):
        return (("arrivals", spec.arrivals),)
    return tuple((f"arrivals[{index}]", item) for index, item in enumerate(spec.arrivals))


def _traffic(arrivals: Arrivals | tuple[Arrivals, ...]) -> Iterable[tuple[tuple[str | int, ...], Arrivals]]:
    if isinstance(arrivals, Arrivals):
        yield ("arrivals",), arrivals
        return
    for index, item in enumerate(arrivals):
        yield ("arrivals", index), item


def _arrivals_problems(place: tuple[str | int, ...], item: Arrivals) -> Iterable[Problem]:
    given = [name for name in TRAFFIC if getattr(item, name) is not None]
    if len(given) != 1:
        told = "two kinds of traffic at once" if given else "this says nothing about the traffic"
        yield Problem(place, told, hint="one of: process, shape, trace")
        return
    if item.process and item.rate is None:
        yield Problem((*place, "rate"), "a process needs a rate", hint="such as rate: 100/s")
    if item.cv is not None and item.scv is not None:
        yield Problem((*place, "scv"), "cv and scv say the same thing twice", hint="leave one out")
    if item.counts and item.rates:
        yield Problem((*place, "rates"), "counts and rates say twice how many arrive", hint="leave one out")
    if item.process == "gamma" and 0 in (item.cv, item.scv):
        yield Problem((*place, "process"), "a gamma process with cv 0 is a clock", hint="process: constant")
    unused = {
        "process": ("column", "counts", "rates", "match"),
        "shape": ("rate", "duration", "column", "counts", "rates", "match"),
        "trace": ("rate", "duration", "cv", "scv"),
    }
    for name in unused[given[0]]:
        if getattr(item, name) is not None:
            yield Problem((*place, name), f"has no meaning with {given[0]}", hint="leave it out")
    arrays = bool(item.trace) and str(item.trace).endswith((".npz", ".npy"))
    for name in (name for name in ("counts", "rates", "match") if arrays and getattr(item, name) is not None):
        yield Problem((*place, name), "only a table or a log has that, and this holds arrays", hint="leave it out")


def _hardware_problems(name: str, item: Hardware) -> Iterable[Problem]:
    given = {"instance": item.instance is not None, "per_instance": item.per_instance != 1, "spot": item.spot}
    for key in (key for key, there in given.items() if there and item.price is not None):
        yield Problem(("hardware", name, key), "has no meaning beside a price", hint="leave one of them out")


def _stage_problems(name: str, stage: StageSpec, spec: PipelineSpec) -> Iterable[Problem]:
    here = ("stages", name)
    for parent in stage.after:
        if parent not in spec.named:
            yield Problem((*here, "after", parent), "no such stage", hint=did_you_mean(parent, spec.named), at_key=True)
    if stage.after and stage.share != 1:
        yield Problem((*here, "share"), "only a stage without after has a share", hint="write it under after")
    if stage.after and not any(stage.after.values()):
        yield Problem((*here, "after"), "no query ever comes here", hint="a share above 0")
    if stage.fan_out != 1 and len(stage.after) != 1:
        yield Problem((*here, "fan_out"), "fan_out needs exactly one stage before it")
    if not stage.latency and not stage.perf_analyzer and stage.model is None:
        hint = "latency: {cpu: {1: 10 ms, 8: 60 ms}}, or a model to profile"
        yield Problem(here, "has no latency", hint=hint, at_key=True)
    if stage.model is not None:
        given = [name for name in MODELS if getattr(stage.model, name) is not None]
        if len(given) != 1:
            yield Problem((*here, "model"), "needs exactly one of file, code, estimator")
    yield from _points_problems(here, stage, spec.hardware)


def _points_problems(here: tuple[str, ...], stage: StageSpec, known: Mapping[str, Hardware]) -> Iterable[Problem]:
    for hardware, files in stage.perf_analyzer.items():
        place = (*here, "perf_analyzer", hardware)
        yield from _latency_problems(place, hardware, dict.fromkeys(files, 1.0), known)
        if hardware in stage.latency:
            yield Problem(place, "its latency is given twice", hint="leave one of them out", at_key=True)
    for hardware, points in stage.latency.items():
        yield from _latency_problems((*here, "latency", hardware), hardware, points, known)


def _latency_problems(
    place: tuple[str | int, ...], hardware: str, points: BatchLatency, known: Mapping[str, Hardware]
) -> Iterable[Problem]:
    if hardware not in known:
        yield Problem(place, "no such hardware", hint=did_you_mean(hardware, known), at_key=True)
    if 1 not in points:
        yield Problem(place, f'latency for batch 1 is missing for "{hardware}"', at_key=True)
    for batch, seconds in points.items():
        if seconds <= 0:
            yield Problem((*place, str(batch)), "a batch takes more than 0 s")


def _cycles(stages: Mapping[str, StageSpec]) -> Iterable[Problem]:
    try:
        order(stages)
    except graphlib.CycleError as error:
        ring = [str(name) for name in error.args[1]]
        yield Problem(("stages", ring[0], "after"), f"the stages form a ring: {' → '.join(ring)}")
        return
    for name in _folded(stages):
        yield Problem(("stages", name, "after"), "joins flows behind a fan_out, where items have no common query")


def order(stages: Mapping[str, StageSpec]) -> list[str]:
    """Return the names, parents before children, otherwise in the order of the spec.

    Raises:
        graphlib.CycleError: there is a ring.
    """
    sorter = graphlib.TopologicalSorter(
        {name: [p for p in stage.after if p in stages] for name, stage in stages.items()}
    )
    sorter.prepare()
    places = {name: index for index, name in enumerate(stages)}
    ready: list[str] = []
    result: list[str] = []
    while sorter.is_active():
        ready = sorted([*ready, *sorter.get_ready()], key=places.__getitem__)
        result.append(ready.pop(0))
        sorter.done(result[-1])
    return result


def _folded(stages: Mapping[str, StageSpec]) -> Iterable[str]:
    many: set[str] = set()
    for name in order(stages):
        parents = [parent for parent in stages[name].after if parent in stages]
        if len(parents) > 1 and many.intersection(parents):
            yield name
        if stages[name].fan_out > 1 or many.intersection(parents):
            many.add(name)
