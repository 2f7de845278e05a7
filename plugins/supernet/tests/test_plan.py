"""The verb ``plan`` on a simulated accelerator."""

from __future__ import annotations

from pathlib import Path

import pytest

from unfold_supernet.plan import plan
from unfold_supernet.spec import SupernetSpec
from unfoldkit.api import Report, Run, RunDir, UnfoldError, Verdict
from unfoldkit.engines.local import LocalEngine
from unfoldkit.spec.loader import parse
from unfoldkit.spec.validate import validate

SPEC = """
version: 1
kind: supernet
name: t
family: ofa-mobilenetv3
accelerator: {persistent_buffer: 1 MiB, bandwidth: 2 GB/s, sizes: [512 KiB, 2 MiB], bandwidths: [1 GB/s]}
queries: {count: 500}
"""


def answer(folder: Path, extra: str = "") -> Report:
    """Return the plan's report."""
    text = SPEC.replace("{count: 500}", f"{{count: 500{extra}}}")
    return plan(
        validate(SupernetSpec, parse(text, "t.yaml")), Run(directory=RunDir(folder), engine=LocalEngine(1), seed=1)
    )


def test_a_plan_says_what_it_must(tmp_path: Path) -> None:
    """Savings stand at the buffer of the spec and at every size of the sweep, and the decision fits the buffer."""
    report = answer(tmp_path)
    assert report.verdict is Verdict.YES
    for name in ("traffic", "latency", "energy"):
        for label in ("512KiB", "1MiB", "2MiB"):
            assert report.metrics[f"{name}_saving_{label}"].value is not None
        assert report.metrics[f"{name}_saving"] == report.metrics[f"{name}_saving_1MiB"]
    assert report.decision is not None
    assert 0.99 * 2**20 < report.decision["bytes"] <= 2**20


def test_nets_that_are_late_are_left_out(tmp_path: Path) -> None:
    """Under a deadline only nets that keep it are planned with."""
    report = answer(tmp_path, ", deadline: 2.2 ms")
    everything = answer(tmp_path)
    assert report.decision is not None
    assert everything.decision is not None
    assert 0 < len(report.decision["nets"]) < len(everything.decision["nets"])


def test_the_relaxation_that_is_offered_works(tmp_path: Path) -> None:
    """A deadline that no net meets is answered no, and the one that it offers is met."""
    report = answer(tmp_path, ", deadline: 0.1 ms")
    assert report.verdict is Verdict.NO
    offered = dict(report.lines)["relaxation"].removeprefix("deadline ").partition(" for ")[0]
    assert answer(tmp_path, f", deadline: {offered}").verdict is Verdict.YES


def test_a_spec_without_family_is_refused() -> None:
    """Without a family there is nothing to plan, and the message says what to write."""
    with pytest.raises(UnfoldError, match="ofa-resnet50"):
        validate(SupernetSpec, parse(SPEC.replace("family: ofa-mobilenetv3\n", ""), "t.yaml"))
