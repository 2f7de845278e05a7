"""The stages of a plan as other systems receive them, with the names that these accept."""

from __future__ import annotations

import graphlib
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from unfold_pipeline.problem.problem import PlacementPolicy

MAX_LABEL_CHARACTERS = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedStage:
    """A stage with its configuration in the plan.

    Attributes:
        name: Its name in the spec.
        label: Its name in Kubernetes, unique among the stages.
        after: Upstream stages and the fraction of their queries that continues here.
        share: Fraction of all queries that enter here, for an entry stage.
        fan_out: Mean items per query.
        max_wait_s: How long a batch that is not full may be delayed.
        conditions: By upstream stage, the condition on its output, if there is one.
        inputs: By input of the model, its sources; empty for the default.
        missing: Stands for the output of a stage that was skipped, if the spec states it.
        model_file, model_code, model_estimator: The model, if the spec names one.
        per_instance: Replicas that share an instance.
        columns, features, outputs: What the model reads and returns, as far as the spec states it.
        hardware: Its hardware in the spec.
        instance: Its instance type; empty if the spec gives a price.
        gpus: GPUs of a replica, by the instance type; 0 without one.
        batch: Maximum batch size.
        replicas: Number of replicas.
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

    @property
    def replicas_per_gpu(self) -> int:
        """Replicas that share a GPU, one without a GPU; a replica with several GPUs is alone on each of them."""
        return max(1, round(1 / self.gpus)) if self.gpus else 1


@dataclass(frozen=True, slots=True)
class ExportedPlan:
    """The stages of a plan, and where their replicas run."""

    name: str
    stages: tuple[ExportedStage, ...]
    placement: PlacementPolicy


def sort_exported_stages(stages: Sequence[ExportedStage]) -> list[ExportedStage]:
    """Return the stages in topological order; ties keep the order of the spec."""
    by_name = {stage.name: stage for stage in stages}
    order = graphlib.TopologicalSorter({name: list(stage.after) for name, stage in by_name.items()})
    return [by_name[name] for name in order.static_order()]


def list_shared_gpus(stages: Sequence[ExportedStage]) -> list[str]:
    """Return what nodes need for stages with several replicas on a GPU, as Kubernetes itself gives out whole ones."""
    return [
        f"{stage.label} has {stage.replicas_per_gpu} replicas on a GPU: its nodes need as many time slices of each"
        for stage in stages
        if stage.replicas_per_gpu > 1
    ]


def assign_labels(names: Iterable[str]) -> dict[str, str]:
    """Return a name that Kubernetes accepts for each stage; a name that is taken gets a number."""
    taken, labels = {"root", "self"}, {}
    # a name that needs no change keeps it
    for name in sorted(names, key=lambda stage: stage != to_label(stage)):
        numbered = (f"{to_label(name)}-{count}" for count in itertools.count(2))
        candidates = itertools.chain((to_label(name),), numbered)
        label = next(candidate for candidate in candidates if not _list_derived(candidate) & taken)
        taken |= _list_derived(label)
        labels[name] = label
    return labels


def to_label(name: str) -> str:
    """Return a name that Kubernetes accepts."""
    plain = re.sub(r"[^a-z0-9-]+", "-", name.lower()).strip("-")
    return (plain if plain[:1].isalpha() else f"stage-{plain}")[:MAX_LABEL_CHARACTERS].strip("-")


def _list_derived(label: str) -> set[str]:
    """Return a label, the node of a graph and the Service of KServe that have names made of it."""
    return {label, f"{label}-next", f"{label}-predictor"}
