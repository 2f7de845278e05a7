"""A plan as resources of KServe: an InferenceService per stage, and the InferenceGraph that connects them."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

from unfold_pipeline.report.engines.exports import export_llm_services, has_engines
from unfold_pipeline.report.export_stages import ExportedStage, parse_exported_plan, to_label
from unfoldkit.api import Report, user_error
from unfoldkit.io.yaml12 import to_yaml

MODEL_FORMATS = {".onnx": "onnx", ".ubj": "xgboost", ".json": "xgboost"}


def export_kserve(report: Report) -> str:
    """Return the resources as YAML documents.

    A flow that not every query takes has a condition: the answer of the stage names the next one as ``next``. What an
    InferenceGraph cannot express is logged, and stands in comments at the top.

    Raises:
        UnfoldError: the pipeline has a join, which an InferenceGraph does not support, or a model that no server loads.
    """
    if has_engines(report):
        return export_llm_services(report)
    plan = parse_exported_plan(report)
    for stage in plan.stages:
        if len(stage.after) > 1:
            message = f"an InferenceGraph supports no joins, and {stage.name} is one"
            raise user_error(message, key=f"stages.{stage.name}.after")
        if stage.model_suffix == ".skops":
            message = "KServe's sklearnserver loads no .skops, only pickled models"
            raise user_error(message, key=f"stages.{stage.name}.model.file", hint="export the model to ONNX")
    documents = [*map(_build_service, plan.stages), _build_graph(plan.name, plan.stages)]
    notes = list(_list_notes(plan.stages))
    for note in notes:
        logging.getLogger("unfoldkit").warning("kserve: %s", note)
    return "".join(f"# {note}\n" for note in notes) + "---\n".join(str(to_yaml(document)) for document in documents)


def _list_notes(stages: Sequence[ExportedStage]) -> Iterator[str]:
    """Yield what a graph cannot express: its router evaluates conditions after a step, not before branches."""
    for stage in stages:
        siblings = [other for other in stages if set(other.after) == set(stage.after)]
        share = min(stage.after.values(), default=stage.share)
        if share < 1 and (not stage.after or len(siblings) > 1):
            yield f"{stage.name} is planned for {share:.3g} of the queries, but an Ensemble or root sends it all"
        if stage.fan_out != 1:
            plan = f"{stage.name} is planned for {stage.fan_out:g} items per query"
            yield f"{plan}; a graph sends one request, so the stage before must put them into one batch"
        if stage.label != to_label(stage.name):
            yield f"{stage.name} is named {stage.label}, as {to_label(stage.name)} is taken"


def _build_service(stage: ExportedStage) -> dict[str, Any]:
    predictor: dict[str, Any] = {
        "minReplicas": stage.replicas,
        "maxReplicas": stage.replicas,
        "batcher": {"maxBatchSize": stage.batch, "maxLatency": max(1, round(stage.max_wait_s * 1e3))},
    }
    if stage.model_suffix in MODEL_FORMATS:
        storage = f"pvc://models/{stage.name}"
        predictor["model"] = {"modelFormat": {"name": MODEL_FORMATS[stage.model_suffix]}, "storageUri": storage}
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


def _build_graph(name: str, stages: Sequence[ExportedStage]) -> dict[str, Any]:
    nodes = {"root": _build_branches([stage for stage in stages if not stage.after], "")}
    for stage in stages:
        nodes[stage.label] = _build_sequence(stage, stages)
        children = _find_children(stage, stages)
        if len(children) > 1:
            nodes[f"{stage.label}-next"] = _build_branches(children, stage.name)
    return {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "InferenceGraph",
        "metadata": {"name": to_label(name)},
        "spec": {"nodes": nodes},
    }


def _build_branches(stages: Sequence[ExportedStage], parent: str) -> dict[str, Any]:
    # the first step of a sequence has no answer to evaluate a condition on, and KServe fails there
    is_parallel = len(stages) > 1
    steps = [_build_step(stage, parent, is_conditional=is_parallel) for stage in stages]
    return {"routerType": "Ensemble" if is_parallel else "Sequence", "steps": steps}


def _build_step(stage: ExportedStage, parent: str, *, is_conditional: bool = True) -> dict[str, str]:
    step = {"name": stage.label, "nodeName": stage.label}
    share = stage.after[parent] if parent else stage.share
    if share < 1 and is_conditional:
        step["condition"] = f"[@this].#(next=={_quote(stage.name)})"
    return step


def _build_sequence(stage: ExportedStage, stages: Sequence[ExportedStage]) -> dict[str, Any]:
    steps: list[dict[str, str]] = [{"name": "self", "serviceName": stage.label, "data": "$request"}]
    children = _find_children(stage, stages)
    if len(children) == 1:
        steps.append({**_build_step(children[0], stage.name), "data": "$response"})
    elif children:
        steps.append({"name": "next", "nodeName": f"{stage.label}-next", "data": "$response"})
    return {"routerType": "Sequence", "steps": steps}


def _find_children(stage: ExportedStage, stages: Sequence[ExportedStage]) -> list[ExportedStage]:
    return [other for other in stages if stage.name in other.after]


def _to_label_value(name: str) -> str:
    """Return a name as the value of a Kubernetes label."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name)[:63].strip("-_.")


def _quote(name: str) -> str:
    """Return a name as a string in a GJSON condition."""
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
