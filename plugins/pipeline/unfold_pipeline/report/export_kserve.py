"""A plan as resources of KServe: an InferenceService per stage, and the InferenceGraph that connects them.

The router of a graph hands the response of a step to the next one as it is, and tests a condition only between the
steps of a sequence. A plan that needs more is refused, with the key and the reason.

Source: KServe's ``InferenceGraph`` (v1alpha1) and the batcher of its agent, which speaks the v1 protocol.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from unfold_pipeline.flow_syntax import REQUEST, Comparison, Condition, TensorValue, Value, parse_condition
from unfold_pipeline.problem.build import build_exported_plan
from unfold_pipeline.problem.exported_plan import ExportedStage, list_shared_gpus, to_label
from unfold_pipeline.report.engines.exports import export_llm_services, has_engines
from unfoldkit.api import Report, user_error
from unfoldkit.io.yaml12 import to_yaml

MODEL_FORMATS = {".onnx": "onnx", ".ubj": "xgboost", ".json": "xgboost"}
V2_FORMATS = ("onnx",)
"""Formats with a server that speaks the Open Inference Protocol only."""
PATH_NAME = re.compile(r"\w+", re.ASCII)
HARD = {"dependency": "Hard"}
EARLY_END = "where a condition ends a query, a KServe without its pull request 4429 (April 2025) answers status 500"
FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}


def export_kserve(report: Report) -> str:
    """Return the resources as YAML documents.

    A flow that not every query takes has a condition on the response of the step before: the test of the spec, or for a
    flow by probability, that the predictor answers the next stage as ``next``. Every step is a hard
    dependency, so an error ends the query with its status. Comments at the top are for the reader.

    Raises:
        UnfoldError: The graph or a server of KServe cannot carry the plan.
    """
    if has_engines(report):
        return export_llm_services(report)
    plan = build_exported_plan(report)
    for stage in plan.stages:
        _check_stage(stage)
        _check_flows(stage, plan.stages)
    graph = _name_graph(plan.name, plan.stages)
    documents = [*map(_build_service, plan.stages), _build_graph(graph, plan.stages)]
    notes = list_shared_gpus(plan.stages)
    notes += [
        f"{_to_comment(stage.name)} is named {stage.label}, as {to_label(stage.name)} is taken"
        for stage in plan.stages
        if stage.label != to_label(stage.name)
    ]
    if any(stage.after and _is_conditional(stage) for stage in plan.stages):
        notes.append(EARLY_END)
    return "".join(f"# {note}\n" for note in notes) + "---\n".join(str(to_yaml(document)) for document in documents)


def _check_stage(stage: ExportedStage) -> None:
    """Refuse a model or a batch size that no server of KServe takes."""
    key = f"stages.{stage.name}"
    if stage.model_suffix == ".skops":
        message = "KServe's sklearnserver loads no .skops, only pickled models"
        raise user_error(message, key=f"{key}.model.file", hint="export the model to ONNX")
    if stage.model_estimator:
        message = "an estimator that unfold profile fits is in no file"
        raise user_error(message, key=f"{key}.model.estimator", hint="model: {file: model.onnx}")
    if stage.gpus and _find_format(stage) == "xgboost":
        message = f"KServe's xgbserver runs on cores, and the plan places the stage on {stage.hardware}"
        hint = "another hardware for the stage, or --format triton, with a forest library for GPUs"
        raise user_error(message, key=f"{key}.model.file", hint=hint)
    if stage.batch > 1 and _find_format(stage) in V2_FORMATS:
        message = f"KServe batches requests of its v1 protocol only, and its {_find_format(stage)} server speaks v2"
        raise user_error(message, key=key, hint="max_batch: 1, or --format triton, which batches itself")


def _check_flows(stage: ExportedStage, stages: Sequence[ExportedStage]) -> None:
    """Refuse flows that the router follows otherwise than the plan assumes."""
    key = f"stages.{stage.name}"
    if len(stage.after) > 1:
        raise user_error(f"an InferenceGraph supports no joins, and {stage.name} is one", key=f"{key}.after")
    if stage.fan_out != 1:
        message = (
            f"an InferenceGraph sends one request, and {stage.name} is planned for {stage.fan_out:g} items per query"
        )
        raise user_error(message, key=f"{key}.fan_out", hint="--format ray-serve has items")
    if not stage.after:
        if stage.share < 1:
            message = f"the root of an InferenceGraph sends every query to {stage.name}, planned for {stage.share:.3g}"
            raise user_error(message, key=f"{key}.share", hint="a stage before it that decides")
        return
    (parent,) = (other for other in stages if other.name in stage.after)
    if _is_conditional(stage) and len(_find_children(parent, stages)) > 1:
        message = f"an InferenceGraph tests no condition before one of several branches, such as {stage.name}"
        raise user_error(message, key=f"{key}.after", hint="one stage after the other, or --format ray-serve")
    if _is_conditional(stage) and not stage.conditions and _find_format(parent):
        message = f"no answer of the {_find_format(parent)} server names the next stage, which a probability requires"
        raise user_error(message, key=f"{key}.after.{parent.name}", hint="when: a test of its output")
    _check_request(stage, parent)


def _check_request(stage: ExportedStage, parent: ExportedStage) -> None:
    """Refuse inputs other than the whole response of the parent or the whole request."""
    sources = [source for names in stage.inputs.values() for source in names]
    if sources not in ([], [REQUEST], [parent.name]):
        message = "the router passes on the whole response or the request, not single tensors"
        raise user_error(
            message, key=f"stages.{stage.name}.inputs", hint="select them in the model, or leave inputs out"
        )
    if sources == [REQUEST] and parent.after and not _reads_request(parent):
        message = f"{parent.name} gets a response, so the router has no request left for {stage.name}"
        hint = "inputs: {x: request} for all stages before it"
        raise user_error(message, key=f"stages.{stage.name}.inputs", hint=hint)
    if _find_format(stage) and sources != [REQUEST]:
        message = f"KServe's {_find_format(stage)} server reads requests, and the router hands it a response"
        raise user_error(
            message, key=f"stages.{stage.name}.model.file", hint="code in a container, or inputs: {x: request}"
        )


def _reads_request(stage: ExportedStage) -> bool:
    return [*stage.inputs.values()] == [(REQUEST,)]


def _is_conditional(stage: ExportedStage) -> bool:
    return bool(stage.conditions) or min(stage.after.values(), default=1.0) < 1


def _find_format(stage: ExportedStage) -> str:
    """Return the format of a model that a server of KServe loads; empty for a container."""
    return MODEL_FORMATS.get(stage.model_suffix, "")


def _build_service(stage: ExportedStage) -> dict[str, Any]:
    predictor: dict[str, Any] = {"minReplicas": stage.replicas, "maxReplicas": stage.replicas}
    if stage.batch > 1:
        predictor["batcher"] = {"maxBatchSize": stage.batch, "maxLatency": max(1, round(stage.max_wait_s * 1e3))}
    if model_format := _find_format(stage):
        protocol = "v2" if model_format in V2_FORMATS else "v1"
        predictor["model"] = {
            "modelFormat": {"name": model_format},
            "protocolVersion": protocol,
            "storageUri": f"pvc://models/{stage.label}",
        }
    else:
        predictor["containers"] = [{"name": "kserve-container", "image": f"{stage.label}:latest"}]
    if stage.gpus:
        container = predictor["model"] if "model" in predictor else predictor["containers"][0]
        container["resources"] = {"limits": {"nvidia.com/gpu": math.ceil(stage.gpus)}}
    if stage.instance:
        predictor["nodeSelector"] = {"node.kubernetes.io/instance-type": stage.instance}
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": stage.label, "labels": {"unfoldkit/hardware": _to_label_value(stage.hardware)}},
        "spec": {"predictor": predictor},
    }


def _name_graph(name: str, stages: Sequence[ExportedStage]) -> str:
    """Return the name of the graph, for which KServe creates a Service beside those of the stages."""
    label, taken = to_label(name), {f"{stage.label}{end}" for stage in stages for end in ("", "-predictor")}
    while label in taken:
        label += "-graph"
    return label


def _build_graph(name: str, stages: Sequence[ExportedStage]) -> dict[str, Any]:
    entries = [stage for stage in stages if not stage.after]
    nodes = {"root": _build_branches(entries)}
    for stage in stages:
        nodes[stage.label] = _build_sequence(stage, stages)
        children = _find_children(stage, stages)
        if len(children) > 1:
            nodes[f"{stage.label}-next"] = _build_branches(children)
    return {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "InferenceGraph",
        "metadata": {"name": name},
        "spec": {"nodes": nodes},
    }


def _build_branches(stages: Sequence[ExportedStage]) -> dict[str, Any]:
    steps = [{"name": stage.label, "nodeName": stage.label, **HARD} for stage in stages]
    return {"routerType": "Ensemble" if len(stages) > 1 else "Sequence", "steps": steps}


def _build_sequence(stage: ExportedStage, stages: Sequence[ExportedStage]) -> dict[str, Any]:
    steps: list[dict[str, str]] = [{"name": "self", "serviceName": stage.label, "data": "$request", **HARD}]
    children = _find_children(stage, stages)
    if len(children) == 1:
        (child,) = children
        step = {"name": child.label, "nodeName": child.label, "data": _find_data(child), **HARD}
        if _is_conditional(child):
            step["condition"] = _format_condition(child, stage)
        steps.append(step)
    elif children:
        sources = {_find_data(child) for child in children}
        if len(sources) > 1:
            message = "the branches of an InferenceGraph read the same, the response or the request"
            raise user_error(message, key=f"stages.{children[0].name}.inputs", hint="the same inputs for all branches")
        steps.append({"name": "next", "nodeName": f"{stage.label}-next", "data": sources.pop(), **HARD})
    return {"routerType": "Sequence", "steps": steps}


def _find_data(stage: ExportedStage) -> str:
    return "$request" if _reads_request(stage) else "$response"


def _format_condition(stage: ExportedStage, parent: ExportedStage) -> str:
    """Return the condition on the response of ``parent`` as a path of GJSON, which exists if it holds."""
    if not stage.conditions:
        return f"predictions.#(next=={_quote(stage.name)})"
    (text,) = stage.conditions.values()
    condition = parse_condition(text)
    value, comparison, constant = _split_comparison(condition, stage)
    test = f"{comparison}{_format_constant(constant)}"
    index = ".".join(map(str, value.index))
    if _find_format(parent) in V2_FORMATS:
        tensor = f"outputs.#(name=={_quote(value.tensor)}).data.{index or 0}"
        return f"[{tensor}].#({test})"
    if _find_format(parent):
        return f"predictions.#({index}{test})"
    path = ".".join(part for part in (value.tensor, index) if part)
    return f"predictions.#({path}{test})"


def _split_comparison(condition: Condition, stage: ExportedStage) -> tuple[TensorValue, str, Value]:
    """Return the tensor, the operator and the constant of a condition that a path of GJSON can express.

    Raises:
        UnfoldError: It is more than the comparison of one value, with no function and no index from the end.
    """
    test = condition.test
    if isinstance(test, Comparison) and test.comparison != "in":
        left, right, comparison = test.left, test.right[0], test.comparison
        if isinstance(right, TensorValue):
            left, right, comparison = right, left, FLIPPED.get(comparison, comparison)
        if isinstance(left, TensorValue) and not isinstance(right, TensorValue) and _has_path(left):
            return left, comparison, right
    message = f"an InferenceGraph compares one value with a constant, and cannot express {condition.text}"
    raise user_error(message, key=f"stages.{stage.name}.when", hint='such as label == "person" or scores[1] > 0.5')


def _has_path(value: TensorValue) -> bool:
    return not value.function and min(value.index, default=0) >= 0 and bool(PATH_NAME.fullmatch(value.tensor))


def _format_constant(constant: Value) -> str:
    if isinstance(constant, bool):
        return "true" if constant else "false"
    return _quote(constant) if isinstance(constant, str) else f"{constant:.15g}"


def _find_children(stage: ExportedStage, stages: Sequence[ExportedStage]) -> list[ExportedStage]:
    return [other for other in stages if stage.name in other.after]


def _to_label_value(name: str) -> str:
    """Return a name as the value of a Kubernetes label."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name)[:63].strip("-_.")


def _to_comment(name: str) -> str:
    return " ".join(name.split())


def _quote(name: str) -> str:
    """Return a name as a string in a GJSON condition."""
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
