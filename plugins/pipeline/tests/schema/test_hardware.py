"""Placement policies: what a spec may ask for, and the options of Ray Serve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from plugins.pipeline.tests.helpers import EXPORT_SPEC, list_configs, plan_report
from unfold_pipeline.problem.build import build_placement
from unfold_pipeline.problem.problem import PlacementPolicy
from unfold_pipeline.report.export_ray_serve import export_ray_serve
from unfold_pipeline.runtime.ray_ingress import INGRESS
from unfold_pipeline.schema.pipeline import PipelineSpec
from unfoldkit.api import UnfoldError
from unfoldkit.spec.validate import validate
from unfoldkit.spec.yaml_reader import parse

SAID: list[tuple[str, dict[str, Any]]] = [
    ("{}", {}),
    ("{spread: node}", {}),
    ("{pin: core}", {}),
    ("{spread: {by: node, most: 2}}", {"max_replicas_per_node": 2}),
    ("{gang: stage}", {"gang_scheduling_config": {"gang_size": 3, "gang_placement_strategy": "PACK"}}),
    ("{pack: {level: node}}", {"gang_scheduling_config": {"gang_size": 3, "gang_placement_strategy": "PACK"}}),
    (
        "{gang: {by: stage}, spread: node}",
        {"gang_scheduling_config": {"gang_size": 3, "gang_placement_strategy": "SPREAD"}},
    ),
]
REFUSED = [
    ("{pack: node, spread: node}", "pack and spread exclude each other"),
    ("{gang: stage, spread: {most: 1}}", "enforces no limit per node within a gang"),
    ("{spread: {most: 0}}", "most"),
    ("{pack: rack}", "pack"),
    ("{gang: query}", "gang"),
    ("{near: node}", "near"),
    ("{pin: node}", "pin"),
]


def placing(text: str) -> PlacementPolicy:
    """The policy of a spec."""
    return build_placement(validate(PipelineSpec, parse(f"{EXPORT_SPEC}placement: {text}\n", "mine.yaml")).placement)


@pytest.mark.parametrize(("text", "expected"), SAID)
def test_policy_becomes_ray_serve_options(text: str, expected: dict[str, Any]) -> None:
    """Each policy becomes the deployment options with the same meaning; the default has none."""
    assert placing(text).build_ray_options(3) == expected


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_unsupported_policies_are_rejected(text: str, message: str) -> None:
    """A policy that contradicts itself or that no engine supports is rejected before anything starts."""
    with pytest.raises(UnfoldError) as caught:
        placing(text)
    found = " ".join(f"{place.key} {place.message}" for place in caught.value.diagnostics)
    assert message in found


def test_replicas_change_by_whole_gangs() -> None:
    """Replicas are rounded up to whole gangs, and unchanged without gangs."""
    assert [placing("{gang: stage}").round_up_replicas(count, 3) for count in (1, 3, 4)] == [3, 3, 6]
    assert [placing("{spread: node}").round_up_replicas(count, 3) for count in (1, 3, 4)] == [1, 3, 4]


def test_ray_serve_export_has_the_policy(tmp_path: Path) -> None:
    """The exported config places each stage as the spec asks; a gang is the replicas of the plan."""
    report = plan_report(tmp_path, f"{EXPORT_SPEC}placement: {{pack: node}}\n")
    (app,) = yaml.safe_load(export_ray_serve(report))["applications"]
    stages = [item for item in app["deployments"] if item["name"] != INGRESS]
    gangs = {item["name"]: item["gang_scheduling_config"]["gang_size"] for item in stages}
    assert gangs == {name: count for name, (_, count) in list_configs(report).items()}


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("text", [text for text, _ in SAID])
def test_ray_serve_accepts_the_policy(text: str, tmp_path: Path) -> None:
    """Ray Serve's own schema accepts the exported config under every policy."""
    schema = pytest.importorskip("ray.serve.schema", reason="Ray is not installed")
    report = plan_report(tmp_path, f"{EXPORT_SPEC}placement: {text}\n")
    schema.ServeDeploySchema.model_validate(yaml.safe_load(export_ray_serve(report)))
