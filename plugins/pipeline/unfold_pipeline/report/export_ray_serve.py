"""A plan as a config of Ray Serve, for ``serve deploy``."""

from __future__ import annotations

import itertools
import keyword
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unfold_pipeline.problem.build import build_exported_plan
from unfold_pipeline.problem.exported_plan import ExportedStage, sort_exported_stages
from unfold_pipeline.report.engines.exports import export_ray_llm, has_engines
from unfold_pipeline.report.export_autoscaling import (
    StageScaling,
    build_ray_autoscaling,
    list_ray_limits,
    parse_scaling,
)
from unfold_pipeline.runtime.ray_ingress import INGRESS, resolve_exported_stages
from unfold_pipeline.runtime.ray_replica import check_deployment_name
from unfoldkit.api import Report, user_error
from unfoldkit.io.yaml12 import to_yaml

IMPORT_PATH = "unfold_pipeline.runtime.ray_ingress:application"
# the ingress only waits for the stages
INGRESS_CPUS = 0.1
QUERIES_PER_INGRESS = 1024
LOADED_SUFFIXES = (".onnx", ".skops", ".ubj", ".json")


def export_ray_serve(report: Report) -> str:
    """Return a config with one application: a deployment per stage, and the ingress that joins them.

    A plan of LLM engines becomes a config of Ray Serve LLM.

    Raises:
        UnfoldError: Ray Serve refuses the name of a stage, its model is an estimator or a file of another kind, or the
            models that are here do not fit each other.
    """
    if has_engines(report):
        return export_ray_llm(report)
    plan = build_exported_plan(report)
    stages = sort_exported_stages(plan.stages)
    for stage in stages:
        _check_stage(stage)
    functions = _name_functions(stages)
    described = [_describe_stage(stage, functions) for stage in stages]
    if all(map(_has_model, stages)):
        # what the application would refuse once it is deployed
        resolve_exported_stages(described)
    rules = {} if plan.placement.has_gangs else parse_scaling(report)
    deployments = [
        _build_deployment(stage, plan.placement.build_ray_options(stage.replicas), rules.get(stage.name))
        for stage in stages
    ]
    ingress = {
        "name": INGRESS,
        "num_replicas": 1,
        "max_ongoing_requests": QUERIES_PER_INGRESS,
        "ray_actor_options": {"num_cpus": INGRESS_CPUS},
    }
    application = {
        "name": plan.name,
        "route_prefix": "/",
        "import_path": IMPORT_PATH,
        "args": {"name": plan.name, "stages": described},
        "deployments": [*deployments, ingress],
    }
    notes = list_ray_limits(report, rules) if rules else []
    return "".join(f"# {note}\n" for note in notes) + str(to_yaml({"applications": [application]}))


def _check_stage(stage: ExportedStage) -> None:
    check_deployment_name(stage.name)
    if stage.name == INGRESS:
        message = f"the deployment that joins the stages has the name {INGRESS}"
        raise user_error(message, key=f"stages.{stage.name}", hint="another name for the stage")
    if stage.model_file is not None and stage.model_suffix not in LOADED_SUFFIXES:
        message = f"Ray Serve cannot load a model in {stage.model_suffix}"
        raise user_error(message, key=f"stages.{stage.name}.model.file", hint="a file that unfold serve loads")
    if stage.gpus and stage.model_file is not None and stage.model_suffix != ".onnx":
        message = f"a model in {stage.model_suffix} runs on cores, and the plan places it on {stage.hardware}"
        hint = "another hardware for the stage, or export the model to ONNX"
        raise user_error(message, key=f"stages.{stage.name}.model.file", hint=hint)
    if stage.model_estimator:
        message = "the export names files, and the spec names an estimator"
        hint = f"model: {{file: …}}; unfold profile stores the estimator as models/{stage.name}.* of its run folder"
        raise user_error(message, key=f"stages.{stage.name}.model.estimator", hint=hint)


def _has_model(stage: ExportedStage) -> bool:
    """Return whether a stage has its model: a file may be only where the export will run."""
    return bool(stage.model_code) or (stage.model_file is not None and Path(stage.model_file).is_file())


def _build_deployment(stage: ExportedStage, placement: Mapping[str, Any], rule: StageScaling | None) -> dict[str, Any]:
    resources: dict[str, Any] = {"num_cpus": 1}
    if stage.gpus:
        resources["num_gpus"] = round(stage.gpus, 4)
    return {
        "name": stage.name,
        **_build_scaling(stage, rule),
        "max_ongoing_requests": 2 * stage.batch,
        "ray_actor_options": resources,
        **placement,
    }


def _build_scaling(stage: ExportedStage, rule: StageScaling | None) -> dict[str, Any]:
    if rule is None:
        return {"num_replicas": stage.replicas}
    return {"autoscaling_config": build_ray_autoscaling(rule, stage.replicas)}


def _describe_stage(stage: ExportedStage, functions: Mapping[str, str]) -> dict[str, Any]:
    return {
        "name": stage.name,
        "after": dict(stage.after),
        "share": stage.share,
        "fan_out": stage.fan_out,
        "batch": stage.batch,
        "wait": stage.max_wait_s,
        **_describe_flow(stage),
        **_locate_model(stage, functions),
    }


def _describe_flow(stage: ExportedStage) -> dict[str, Any]:
    """Return conditions, inputs and what the spec states of the model, without what it leaves out."""
    flow = {
        "when": dict(stage.conditions),
        "inputs": {tensor: list(sources) for tensor, sources in stage.inputs.items()},
        "columns": list(stage.columns),
        "features": stage.features,
        "outputs": dict(stage.outputs),
        "missing": stage.missing,
    }
    return {key: value for key, value in flow.items() if value or (key == "missing" and value is not None)}


def _locate_model(stage: ExportedStage, functions: Mapping[str, str]) -> dict[str, Any]:
    """Return the model; for a stage without one, a function of its name in a module ``models``."""
    if stage.model_file is not None:
        return {"path": stage.model_file, **({"gpu": True} if stage.gpus else {})}
    return {"code": stage.model_code or f"models:{functions[stage.name]}"}


def _name_functions(stages: Sequence[ExportedStage]) -> dict[str, str]:
    """Return a Python name for each stage; a name that is taken gets a number."""
    functions = dict[str, str]()
    # a name that needs no change keeps it
    for name in sorted((stage.name for stage in stages), key=lambda name: name != _to_identifier(name)):
        plain = _to_identifier(name)
        numbered = (f"{plain}_{count}" for count in itertools.count(2))
        functions[name] = next(each for each in itertools.chain((plain,), numbered) if each not in functions.values())
    return functions


def _to_identifier(name: str) -> str:
    plain = re.sub(r"\W", "_", name)
    return plain if plain.isidentifier() and not keyword.iskeyword(plain) else f"stage_{plain}"
