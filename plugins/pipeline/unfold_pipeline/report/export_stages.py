"""The stages of a plan as exports need them, and the names that other systems accept."""

from __future__ import annotations

import contextlib
import graphlib
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from unfold_pipeline.problem.build import build_placement
from unfold_pipeline.problem.problem import PlacementPolicy
from unfold_pipeline.schema.pipeline import PipelineSpec
from unfold_pipeline.schema.stages import FromRun, list_conditions, list_inputs
from unfoldkit.api import Report, UnfoldError, user_error
from unfoldkit.catalog.price_books import load_catalog
from unfoldkit.io.yaml12 import to_yaml
from unfoldkit.spec.validate import validate
from unfoldkit.spec.yaml_reader import parse

MAX_LABEL_CHARACTERS = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedStage:
    """A stage with its configuration in the plan.

    Attributes:
        name: its name in the spec.
        label: its name in Kubernetes, unique among the stages.
        after: upstream stages and the fraction of their queries that continues here.
        share: fraction of all queries that enter here, for an entry stage.
        fan_out: mean items per query.
        max_wait_s: how long a batch that is not full may be delayed.
        conditions: by upstream stage, the condition on its output, if there is one.
        inputs: by input of the model, its sources; empty for the default.
        missing: stands for the output of a stage that was skipped, if the spec states it.
        model_file, model_code, model_estimator: the model, if the spec names one.
        per_instance: replicas that share an instance.
        columns, features, outputs: what the model reads and returns, as far as the spec states it.
        hardware: its hardware in the spec.
        instance: its instance type; empty if the spec gives a price.
        gpus: GPUs of a replica, by the instance type; 0 without one.
        batch: maximum batch size.
        replicas: number of replicas.
    """

    name: str
    label: str
    after: Mapping[str, float]
    share: float
    fan_out: float
    max_wait_s: float
    model_file: str | None
    model_code: str | None
    hardware: str
    instance: str
    gpus: float
    batch: int
    replicas: int
    conditions: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    missing: float | None = None
    columns: tuple[int, ...] = ()
    features: int | None = None
    outputs: Mapping[str, int] = field(default_factory=dict)
    model_estimator: str = ""
    per_instance: int = 1

    @property
    def model_suffix(self) -> str:
        """The suffix of the model's file; empty without a file."""
        return f".{self.model_file.rpartition('.')[2]}" if self.model_file else ""


@dataclass(frozen=True, slots=True)
class ExportedPlan:
    """The stages of a plan, and where their replicas run."""

    name: str
    stages: tuple[ExportedStage, ...]
    placement: PlacementPolicy


def parse_exported_plan(report: Report) -> ExportedPlan:
    """Return the plan of a report.

    Raises:
        UnfoldError: the report is of another kind, holds no plan, or its stages come from the run of a cascade.
    """
    configs: Mapping[str, Any] = (report.decision or {}).get("stages", {})
    if report.kind != "pipeline" or not configs or "spec" not in report.provenance:
        raise user_error("there is no plan of a pipeline to export", hint="unfold plan SPEC --format ray-serve")
    spec = validate(PipelineSpec, parse(str(to_yaml(report.provenance["spec"])), "the plan"))
    if isinstance(spec.stages, FromRun):
        hint = f"unfold serve {spec.stages.run} serves the cascade"
        raise user_error("the models of a cascade's run cannot be exported as a pipeline", key="stages.from", hint=hint)
    labels = assign_labels(spec.stages_by_name)
    stages = tuple(_build_stage(name, labels[name], spec, configs[name]) for name in spec.stages_by_name)
    return ExportedPlan(report.name, stages, build_placement(spec.placement))


def sort_exported_stages(stages: Sequence[ExportedStage]) -> list[ExportedStage]:
    """Return the stages in topological order; ties keep the order of the spec."""
    by_name = {stage.name: stage for stage in stages}
    order = graphlib.TopologicalSorter({name: list(stage.after) for name, stage in by_name.items()})
    return [by_name[name] for name in order.static_order()]


def assign_labels(names: Iterable[str]) -> dict[str, str]:
    """Return a name that Kubernetes accepts for each stage; a name that is taken gets a number."""
    taken, labels = {"root"}, {}
    # a name that needs no change keeps it
    for name in sorted(names, key=lambda stage: stage != to_label(stage)):
        numbered = (f"{to_label(name)}-{count}" for count in itertools.count(2))
        candidates = itertools.chain((to_label(name),), numbered)
        label = next(candidate for candidate in candidates if not {candidate, f"{candidate}-next"} & taken)
        taken |= {label, f"{label}-next"}
        labels[name] = label
    return labels


def to_label(name: str) -> str:
    """Return a name that Kubernetes accepts."""
    plain = re.sub(r"[^a-z0-9-]+", "-", name.lower())[:MAX_LABEL_CHARACTERS].strip("-")
    return plain if plain[:1].isalpha() else f"stage-{plain}".strip("-")


def _build_stage(name: str, label: str, spec: PipelineSpec, config: Mapping[str, Any]) -> ExportedStage:
    stage, hardware = spec.stages_by_name[name], spec.hardware[config["hardware"]]
    instance = "" if hardware.price is not None else hardware.instance or config["hardware"]
    return ExportedStage(
        name=name,
        label=label,
        after=stage.after,
        share=stage.share,
        fan_out=stage.fan_out,
        max_wait_s=stage.wait,
        conditions=list_conditions(stage),
        inputs=list_inputs(stage),
        missing=stage.missing,
        columns=(stage.model.columns or ()) if stage.model else (),
        features=stage.model.features if stage.model else None,
        outputs=(stage.model.outputs or {}) if stage.model else {},
        model_estimator=(stage.model.estimator or "") if stage.model else "",
        per_instance=hardware.per_instance,
        model_file=stage.model.file if stage.model else None,
        model_code=stage.model.code if stage.model else None,
        hardware=config["hardware"],
        instance=instance,
        gpus=_count_gpus(instance or hardware.instance or "", spec.region) / hardware.per_instance,
        batch=config["batch"],
        replicas=config["replicas"],
    )


def _count_gpus(instance: str, region: str) -> int:
    """Return the GPUs of an instance type of the catalog; 0 if it is not known."""
    with contextlib.suppress(UnfoldError):
        return load_catalog(region).find(instance).gpus if instance else 0
    return 0
