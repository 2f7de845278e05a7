"""The spec of kind ``supernet``, its section ``serving``, and the checks across sections."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from unfold_supernet.schema.accelerator import (
    AcceleratorSpec,
    QueriesSpec,
    find_accelerator_problems,
    find_query_problems,
)
from unfold_supernet.schema.model_and_members import (
    Classes,
    Members,
    ModuleSpec,
    find_member_problems,
    find_module_problems,
)
from unfold_supernet.schema.space import SpaceSpec, find_count_problems, find_space_problems
from unfold_supernet.schema.training import DataSpec, TrainingSpec, find_data_problems, find_training_problems
from unfoldkit.api import Bytes, Duration, Fraction, Model, Percent, Problem, Spec


def _drop_unit(value: Any) -> Any:
    """Return the number of a text such as "1 point"; other values as they are."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(?:points?|pp)\s*", value) if isinstance(value, str) else None
    return float(match[1]) if match else value


class GoalSpec(Model):
    """What the trained family must reach; each bound holds at 95 %."""

    accuracy: Annotated[Fraction, Field(gt=0, lt=1)] | None = Field(
        default=None, description="of the most accurate subnet on the test rows"
    )
    auroc: Annotated[Fraction, Field(gt=0, lt=1)] | None = Field(
        default=None, description="for data.task labels: macro AUROC of the best member on the test rows"
    )
    r2: Annotated[Fraction, Field(gt=0, lt=1)] | None = Field(
        default=None, description="for data.task values: R² of the best member on the test rows"
    )
    max_sharing_cost: Annotated[float, Field(gt=0, le=100), BeforeValidator(_drop_unit)] | None = Field(
        default=None,
        description="largest score (accuracy, macro AUROC or R²) that sharing weights may cost a subnet against a "
        "standalone model, in points, such as 1 or 1 point",
    )


SCORE_KEYS = {"classes": "accuracy", "labels": "auroc", "values": "r2"}
"""Key of the goal for each task."""


class ServingSpec(Model):
    """Serving under deadlines."""

    slo: Annotated[Duration, Field(gt=0)] = Field(description="deadline of a response, from the request's arrival")
    policy: Literal["steady", "fitted", "slackfit"] = Field(
        default="steady",
        description="the most accurate subnet that keeps up with the request rate; or that serves the entire queue "
        "in time; or SuperServe's SlackFit",
    )
    on: Literal["cpu", "accelerator"] = Field(
        default="cpu",
        description="latencies for plan --replay: measured in training, or of the simulated accelerator",
    )
    load: Annotated[Percent, Field(gt=0, le=100)] | None = Field(
        default=None,
        description="scale a replayed trace so that its busiest ten slo demand this fraction of the fastest subnet's "
        "throughput; by default the trace is not scaled",
    )
    attainment: Fraction = Field(default=0.99, description="required fraction of requests served in time")
    escalate: Annotated[Fraction, Field(gt=0)] | None = Field(
        default=None, description="confidence below which the most accurate subnet recomputes a small subnet's result"
    )
    guard: dict[str, Fraction] = Field(
        default={},
        description="minimum sensitivity by class; subnets below it are never used",
    )
    engine: Literal["auto", "onnx", "views"] = Field(
        default="auto",
        description="what runs the subnets of a space: ONNX Runtime on a copy each, or torch on views of the shared "
        "weights; auto takes the faster one as measured on this machine, within memory",
    )
    memory: Annotated[Bytes, Field(gt=0)] | None = Field(
        default=None,
        description="memory that all members of a list, or all subnets of a space, add to one process; by default as "
        "much as they need",
    )


class OnnxLayersSpec(Model):
    """The layers of one network, read from its ONNX file."""

    onnx: str = Field(description="a network of convolutions and matrix products; a dynamic first axis counts as one")
    accuracy: Annotated[Fraction, Field(gt=0, le=1)] = Field(
        default=1.0, description="its accuracy, which queries may require"
    )


class SupernetSpec(Spec):
    """One set of weights, many models: which subnet serves a request, and what a model switch costs."""

    kind: Literal["supernet"]
    family: Literal["ofa-resnet50", "ofa-mobilenetv3"] | None = Field(
        default=None, description="a published family, by its layers only"
    )
    layers: str | OnnxLayersSpec | None = Field(
        default=None,
        description="a CSV with the layers of your own subnets, or onnx: with a network, for the accelerator only",
    )
    model: ModuleSpec | None = Field(default=None, description="your own torch module, to train")
    members: Members | None = Field(default=None, description="ONNX files with known accuracy, to serve as they are")
    classes: Classes | None = Field(
        default=None, description="names of the members' classes; by default those in the files, or numbers"
    )
    data: DataSpec | None = None
    space: SpaceSpec | None = None
    training: TrainingSpec = TrainingSpec()
    goal: GoalSpec = GoalSpec()
    serving: ServingSpec | None = None
    accelerator: AcceleratorSpec | None = None
    queries: QueriesSpec = QueriesSpec()

    def problems(self) -> Iterable[Problem]:
        """Yield the contradictions between sections."""
        yield from _find_family_problems(self)
        if self.space is not None:
            yield from find_space_problems(self.space, self.data.source if self.data else "")
            yield from find_data_problems(self.data, self.space.form)
            yield from find_training_problems(self.training, self.space.coupling)
            yield from find_count_problems(self.space)
            yield from _find_module_training(self.training)
        if self.model is not None:
            yield from find_module_problems(self.model)
            yield from find_data_problems(self.data, "module")
            yield from _find_unused_training(self.training)
            if self.model.max_int8_loss is not None and not self.training.validation:
                message, hint = "needs validation rows to judge int8 by", "remove training.validation: 0"
                yield Problem(("model", "max_int8_loss"), message, hint=hint)
        yield from _find_list_problems(self)
        yield from _find_engine_problems(self)
        yield from _find_goal_problems(self)
        yield from _find_task_problems(self)
        yield from find_query_problems(self.queries)
        if self.accelerator is not None:
            yield from find_accelerator_problems(self.accelerator)


def _find_unused_training(training: TrainingSpec) -> Iterable[Problem]:
    """Yield the keys of ``training`` that a user's module does not go by."""
    defaults = TrainingSpec()
    for key in ("rule", "samples", "delay", "sort", "warmup", "smoothing", "noise", "shift"):
        if getattr(training, key) != getattr(defaults, key):
            yield Problem(("training", key), "has no effect on a module of your own", hint=f"remove {key}")


def _find_module_training(training: TrainingSpec) -> Iterable[Problem]:
    """Yield the keys of ``training`` that a space does not go by."""
    for key in ("optimizer", "class_weights"):
        if getattr(training, key) is not None:
            yield Problem(("training", key), "applies to a module of your own only", hint=f"remove {key}")


def _find_list_problems(spec: SupernetSpec) -> Iterable[Problem]:
    """Yield what does not go with a list of members, and keys that only such a list has."""
    if spec.members is not None:
        yield from find_member_problems(spec.members, spec.classes or ())
        if spec.data is not None:
            yield Problem(("data",), "has no effect on a list of members", hint="remove data")
    elif spec.classes is not None:
        yield Problem(("classes",), "applies to a list of members only", hint="remove classes")
    if spec.serving is None:
        return
    if spec.members is not None:
        for key in ("guard", "escalate"):
            if getattr(spec.serving, key):
                message = "needs predictions by row, which a list of members does not have"
                yield Problem(("serving", key), message, hint=f"remove {key}")
        if spec.serving.on == "accelerator":
            message = "simulates layers, which a list of members does not name"
            yield Problem(("serving", "on"), message, hint="remove on, or write layers: {onnx: net.onnx}")


def _find_engine_problems(spec: SupernetSpec) -> Iterable[Problem]:
    """Yield an engine and a limit of memory where there is no choice."""
    if spec.serving is None or spec.space is not None:
        return
    if spec.members is None and spec.serving.memory is not None:
        yield Problem(("serving", "memory"), "applies to a space or a list of members only", hint="remove memory")
    if spec.serving.engine == "views":
        message, hint = "needs a space: its subnets are views of one set of weights", "remove engine"
        yield Problem(("serving", "engine"), message, hint=hint)


def _find_task_problems(spec: SupernetSpec) -> Iterable[Problem]:
    """Yield goals, weights and serving options that the task of the data does not have."""
    task = spec.data.task if spec.data is not None else "classes"
    for other, key in SCORE_KEYS.items():
        if other != task and getattr(spec.goal, key) is not None:
            message, hint = f"is not a goal of task {task}", f"write {SCORE_KEYS[task]}, or data.task: {other}"
            yield Problem(("goal", key), message, hint=hint)
    if task == "classes":
        return
    weights = spec.training.class_weights
    if weights == "balanced" or (task == "values" and weights is not None):
        message = f"is for classes, not for task {task}"
        hint = "write the weight of each label, or remove class_weights" if task == "labels" else "remove class_weights"
        yield Problem(("training", "class_weights"), message, hint=hint)
    for key in ("guard", "escalate"):
        if spec.serving is not None and getattr(spec.serving, key):
            message = f"needs one class a row, which task {task} does not have"
            yield Problem(("serving", key), message, hint=f"remove {key}")


def _find_goal_problems(spec: SupernetSpec) -> Iterable[Problem]:
    if spec.goal != GoalSpec() and spec.space is None and spec.model is None:
        yield Problem(("goal",), "nothing is trained that could reach a goal", hint="write space and data")
    elif spec.goal.max_sharing_cost is not None and not spec.training.alone:
        message, hint = "needs standalone models to compare with", "remove training.alone: false"
        yield Problem(("goal", "max_sharing_cost"), message, hint=hint)


def _find_family_problems(spec: SupernetSpec) -> Iterable[Problem]:
    sources = [key for key in ("family", "layers", "space", "model", "members") if getattr(spec, key) is not None]
    if not sources:
        hint = "write family: ofa-resnet50, layers: nets.csv, a space or model to train, or members"
        yield Problem(("family",), "no subnets are defined", hint=hint)
    last = sources[-1] if sources else ""
    if last in ("model", "members") and len(sources) > 1:
        hint = f"remove {' or '.join(sources)}"
        yield Problem((last,), "another section already defines the subnets", hint=hint)
    elif sources == ["family", "space"]:
        yield Problem(("family",), "a published family has its own space", hint="remove family or space")
    elif len(sources) > 1:
        hint = f"remove {' or '.join(key for key in sources if key != 'layers')}"
        yield Problem(("layers",), "a layer table already defines the subnets", hint=hint)
