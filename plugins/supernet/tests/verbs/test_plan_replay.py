"""The verb ``plan`` with a replay."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from plugins.supernet.tests.helpers import (
    HANDOFF_SPEC,
    REPLAY_PROFILES,
    make_run,
    parse_spec,
    write_trace,
)
from unfold_supernet.family.artifacts import RECORD_FILE
from unfold_supernet.verbs.plan import plan
from unfoldkit.api import Report, Run, RunDir, UnfoldError, Verdict
from unfoldkit.engines.local import LocalEngine

TARGETS_SPEC = """
version: 1
kind: supernet
name: t
data: {source: digits}
space: {stages: [{width: 4}]}
serving: {slo: 30 ms}
"""


def set_latencies(handoff_run: Path) -> RunDir:
    """Set latencies in proportion to operations, because a busy machine measures others every time."""
    directory = RunDir(handoff_run)
    known = json.loads(directory.read(RECORD_FILE))
    for net in known["nets"]:
        net["seconds"] = {size: 5e-5 + float(size) * net["macs"] * 2e-10 for size in net["seconds"]}
    directory.write(RECORD_FILE, json.dumps(known).encode())
    return directory


def replay_profiles(folder: Path, trace: str, text: str) -> Report:
    """Plan a trace with the profiles of the tests."""
    path = write_trace(folder, trace)
    nets = [
        {"name": net.name, "accuracy": net.accuracy, "sensitivity": [], "macs": 1.0,
         "seconds": {str(size): seconds for size, seconds in net.seconds}} for net in REPLAY_PROFILES
    ]  # fmt: skip
    directory = RunDir(folder / "run")
    directory.write(RECORD_FILE, json.dumps({"nets": nets, "front": [], "classes": [], "reload_seconds": 0.1}).encode())
    run = Run(directory=directory, engine=LocalEngine(1), seed=1, options={"replay": str(path)})
    return plan(parse_spec(text), run)


def test_a_scaled_trace_is_named_in_the_first_line(tmp_path: Path) -> None:
    """The rate in the first line is followed by its ratio to the trace's, if ``serving.load`` changes it."""
    trace = "time_s\n" + "\n".join(f"{index / 10}" for index in range(40)) + "\n"
    plain, scaled = (
        replay_profiles(tmp_path, trace, TARGETS_SPEC.replace("slo: 30 ms", f"slo: 30 ms{load}"))
        for load in ("", ", load: 50%")
    )
    assert "10/s" in plain.subtitle
    assert re.fullmatch(r"[\d,]+/s, [\d.]+x the trace's rate", scaled.subtitle[1])


def test_plan_replay_reports_both_targets(tmp_path: Path) -> None:
    """``plan --replay`` reports how many requests meet both targets, and how many no subnet can satisfy."""
    trace = "time_s,deadline_ms,least_accuracy\n0,50,0.99\n1,50,0.9\n2,50,\n3,0.1,\n"
    report = replay_profiles(tmp_path, trace, TARGETS_SPEC)
    assert report.verdict is Verdict.NO
    assert report.metrics["attainment"].value == 0.75
    assert report.metrics["both_targets"].value == 0.5
    assert "25.0 % require more than the best subnet's 90.00 %" in dict(report.lines)["targets"]
    assert "≤ 0.1 to 50 ms" in report.subtitle


@pytest.mark.torch
@pytest.mark.parametrize("place", ["cpu", "accelerator"])
def test_plan_replay_selects_the_needed_subnets(handoff_run: Path, tmp_path: Path, place: str) -> None:
    """The decision's subnets perform as all do; on the accelerator it includes the cached subgraph and energy."""
    trace = tmp_path / "trace.csv"
    times = np.cumsum(np.random.default_rng(0).exponential(1 / 2000, 4000))
    trace.write_text("arrival_s\n" + "\n".join(f"{time:.6f}" for time in times) + "\n", "utf-8")
    spec = parse_spec(HANDOFF_SPEC.replace("escalate: 60%", f"escalate: 60%, on: {place}"))
    directory = set_latencies(Path(shutil.copytree(handoff_run, tmp_path / "run")))
    run = Run(directory=directory, engine=LocalEngine(1), options={"replay": str(trace)})
    report = plan(spec, run)
    assert report.decision is not None
    assert 0.99 <= sum(report.decision["nets"].values()) <= 1 + 1e-9
    assert abs(report.decision["attainment"] - float(report.metrics["attainment"].value or 0)) < 0.01
    assert ("buffer" in report.decision) == ("energy_mj" in report.metrics) == (place == "accelerator")
    if place == "accelerator":
        assert float(report.metrics["energy_mj"].value or 0) > 0
        assert 0 < report.decision["buffer"]["bytes"] <= 16 * 1024


@pytest.mark.torch
@pytest.mark.parametrize("times", ["1\n", "2\n2\n2\n"])
def test_trace_without_a_rate_is_refused(handoff_run: Path, tmp_path: Path, times: str) -> None:
    """A trace of one request, or with all at one instant, is refused with its file."""
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s\n" + times, "utf-8")
    spec = parse_spec(HANDOFF_SPEC)
    run = make_run(handoff_run, options={"replay": str(trace)})
    with pytest.raises(UnfoldError, match=r"trace\.csv: all \d requests arrive at one instant"):
        plan(spec, run)
