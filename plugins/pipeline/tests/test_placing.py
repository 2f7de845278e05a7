"""Where replicas are placed: what a spec may say, and what Ray Serve is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from plugins.pipeline.tests.test_exports import SPEC, planned, wanted
from unfold_pipeline.problem.build import build_placement
from unfold_pipeline.problem.problem import PlacementPolicy
from unfold_pipeline.report.export_ray_serve import export_ray_serve
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
    ("{pack: node, spread: node}", "pack and spread together"),
    ("{gang: stage, spread: {most: 1}}", "enforces no limit per node within a gang"),
    ("{spread: {most: 0}}", "most"),
    ("{pack: rack}", "pack"),
    ("{gang: query}", "gang"),
    ("{near: node}", "near"),
    ("{pin: node}", "pin"),
]


def placing(text: str) -> PlacementPolicy:
    """The policy of a spec."""
    return build_placement(validate(PipelineSpec, parse(f"{SPEC}placement: {text}\n", "mine.yaml")).placement)


@pytest.mark.parametrize(("text", "expected"), SAID)
def test_policy_is_told_in_the_words_of_ray_serve(text: str, expected: dict[str, Any]) -> None:
    """Each policy becomes the options of a deployment that mean the same; without one there are none."""
    assert placing(text).build_ray_options(3) == expected


@pytest.mark.parametrize(("text", "told"), REFUSED)
def test_what_cannot_be_carried_out_is_refused(text: str, told: str) -> None:
    """A policy that contradicts itself or that no engine carries out is refused before anything starts."""
    with pytest.raises(UnfoldError) as caught:
        placing(text)
    found = " ".join(f"{place.key} {place.message}" for place in caught.value.diagnostics)
    assert told in found


def test_count_of_a_gang_changes_by_whole_gangs() -> None:
    """The count of a stage is rounded up to whole gangs, and left alone where there are none."""
    assert [placing("{gang: stage}").round_up_replicas(count, 3) for count in (1, 3, 4)] == [3, 3, 6]
    assert [placing("{spread: node}").round_up_replicas(count, 3) for count in (1, 3, 4)] == [1, 3, 4]


def test_export_for_ray_serve_says_the_policy(tmp_path: Path) -> None:
    """The exported config places each stage as the spec says, a gang being the replicas of its plan."""
    report = planned(tmp_path, f"{SPEC}placement: {{pack: node}}\n")
    apps = yaml.safe_load(export_ray_serve(report))["applications"]
    gangs = {app["args"]["name"]: app["deployments"][0]["gang_scheduling_config"]["gang_size"] for app in apps}
    assert gangs == {name: count for name, (_, count) in wanted(report).items()}


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("text", [text for text, _ in SAID])
def test_ray_serve_takes_the_policy(text: str, tmp_path: Path) -> None:
    """Ray Serve's own schema accepts the exported config under every policy."""
    schema = pytest.importorskip("ray.serve.schema", reason="Ray is not installed")
    report = planned(tmp_path, f"{SPEC}placement: {text}\n")
    schema.ServeDeploySchema.model_validate(yaml.safe_load(export_ray_serve(report)))
