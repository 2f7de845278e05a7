"""A plan as a config of Ray Serve, for ``serve deploy``."""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping
from typing import Any

from unfold_pipeline.report.engines.exports import export_ray_llm, has_engines
from unfold_pipeline.report.export_stages import ExportedStage, parse_exported_plan
from unfoldkit.api import Report
from unfoldkit.io.yaml12 import to_yaml

IMPORT_PATH = "unfold_pipeline.runtime.ray_serve:application"


def export_ray_serve(report: Report) -> str:
    """Return a config with an application per stage, its model in ``args``, and the placement of the spec."""
    if has_engines(report):
        return export_ray_llm(report)
    plan = parse_exported_plan(report)
    applications = [
        _build_application(plan.name, stage, plan.placement.build_ray_options(stage.replicas)) for stage in plan.stages
    ]
    return str(to_yaml({"applications": applications}))


def _build_application(pipeline: str, stage: ExportedStage, placement: Mapping[str, Any]) -> dict[str, Any]:
    args: dict[str, Any] = {"name": stage.name, "batch": stage.batch, "wait": stage.max_wait_s}
    deployment = {
        "name": stage.name,
        "num_replicas": stage.replicas,
        "max_ongoing_requests": 2 * stage.batch,
        **placement,
    }
    return {
        "name": f"{pipeline}-{stage.name}",
        "route_prefix": f"/{stage.name}",
        "import_path": IMPORT_PATH,
        "args": args | _locate_model(stage),
        "deployments": [deployment],
    }


def _locate_model(stage: ExportedStage) -> dict[str, Any]:
    """Return the model; for a stage without one, a function of its name in a module ``models``."""
    if stage.model_file is not None:
        return {"path": stage.model_file}
    return {"code": stage.model_code or f"models:{_to_identifier(stage.name)}"}


def _to_identifier(name: str) -> str:
    plain = re.sub(r"\W", "_", name)
    return plain if plain.isidentifier() and not keyword.iskeyword(plain) else f"stage_{plain}"
