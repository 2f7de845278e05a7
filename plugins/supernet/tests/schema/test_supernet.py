"""Contradictions between sections of a spec."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from plugins.supernet.tests.helpers import PLAN_SPEC, parse_spec
from unfold_supernet.schema.supernet import GoalSpec
from unfoldkit.api import UnfoldError, dump

TOKENS = "data: {source: digits}\nspace: {form: transformer, stages: [{width: 8}]"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data: {source: mitbih}\nspace: {form: conv1d, stages: [{width: 8}]}", "not named"),
        ("data: {source: digits}\nspace: {form: conv1d, stages: [{width: 8}]}", "conv2d"),
        ("space: {stages: [{width: 8}]}", "needs data"),
        ("data: {source: digits}\nspace: {stages: [{width: 8}], kernel: [4]}", "odd"),
        ("data: {source: digits}\nspace: {stages: [{width: 8}], expand: [0.5, 1], depth: [1, 2, 3]}", "equal length"),
        (f"{TOKENS}, attention: {{width: 30, heads: 4}}}}", "heads: 2, or another divisor of 30"),
        (f"{TOKENS}, attention: {{patch: 5}}, resolution: [0.5]}}", "at most 4"),
        (f"{TOKENS}, kernel: [5]}}", "a transformer has no kernel"),
        (f"{TOKENS}, stem: {{stride: 2}}}}", "a transformer has no stem"),
        (
            "data: {source: digits}\nspace: {stages: [{width: 8}], attention: {width: 8, heads: 2}}",
            "conv2d has no attention",
        ),
    ],
)
def test_contradicting_sections_are_refused(change: str, message: str) -> None:
    """Contradicting sections of a spec are refused with a message."""
    with pytest.raises(UnfoldError, match=message):
        parse_spec(f"version: 1\nkind: supernet\nname: t\n{change}\n")


@pytest.mark.parametrize("change", [f"{TOKENS}}}", "data: {source: digits}\nspace: {stages: [{width: 8}]}"])
def test_stored_spec_with_all_defaults_is_valid(change: str) -> None:
    """A spec with all defaults written out, as a run stores it, equals the short one."""
    spec = parse_spec(f"version: 1\nkind: supernet\nname: t\n{change}\n")
    assert parse_spec(json.dumps(dump(spec))) == spec


def test_spec_without_subnets_is_refused() -> None:
    """Without subnets there is nothing to plan, and the message says what to write."""
    with pytest.raises(UnfoldError, match="ofa-resnet50"):
        parse_spec(PLAN_SPEC.replace("family: ofa-mobilenetv3\n", ""))


def test_subnets_have_one_source() -> None:
    """A spec names a published family, a layer table, or a space, and only one of them."""
    spec = "version: 1\nkind: supernet\nname: t\nfamily: ofa-mobilenetv3\nlayers: nets.csv\n"
    with pytest.raises(UnfoldError, match=r"layers: a layer table already defines the subnets \(remove family\)"):
        parse_spec(spec)


@pytest.mark.parametrize(("text", "points"), [("1 point", 1.0), ("0.5 points", 0.5), (" 2pp ", 2.0), (3, 3.0)])
def test_a_sharing_cost_may_have_its_unit(text: object, points: float) -> None:
    assert GoalSpec.model_validate({"max_sharing_cost": text}).max_sharing_cost == points


@pytest.mark.parametrize("text", ["1 km", "0 points", "1%", "points", "1e9 points"])
def test_a_sharing_cost_in_another_unit_is_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        GoalSpec.model_validate({"max_sharing_cost": text})
