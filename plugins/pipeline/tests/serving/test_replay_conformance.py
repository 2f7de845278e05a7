"""The same trace through a real socket and through the replay: the scaling rule decides alike."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from plugins.pipeline.tests.live_load import count, read_status, send_trace, step_trace, write_pipeline
from tests.served import serving, unfold
from unfold_pipeline.problem.build import build_live_sample, build_problem
from unfold_pipeline.report.plan_file import parse_decision
from unfold_pipeline.schema.pipeline import PipelineSpec
from unfold_pipeline.tuner.calibration import calibrate_settings
from unfold_pipeline.tuner.envelope_rule import build_scaling_context
from unfold_pipeline.tuner.table_rule import build_context_table, compute_table_targets
from unfoldkit.api import Run, RunDir
from unfoldkit.engines.local import LocalEngine
from unfoldkit.spec.validate import validate
from unfoldkit.spec.yaml_reader import parse


@pytest.mark.e2e
def test_service_decides_as_the_replay(tmp_path: Path) -> None:
    """A fourfold step is refused in part, all of it is demand, and each second has the decision of the replay."""
    text = write_pipeline(tmp_path, stage="first", seconds=0.2, quota=3, tuner="{activation: 2 s, hold: 10 s}")
    assert unfold(tmp_path, "plan", "steps.yaml", "-o", "plan.yaml").returncode == 0
    times_s = step_trace([2.0, 24.0, 2.0], 8.0)
    np.savez(tmp_path / "t.npz", arrival_s=np.array(times_s))
    with serving(tmp_path, "plan.yaml", "--allow-code") as (_, address):
        assert read_status(address)["stages"]
        responses = asyncio.run(send_trace(address, "steps", times_s, [1.0, 2.0]))
        status = read_status(address)
    assert count(responses, lambda response: response.status == 429) > 0.2 * len(times_s)
    assert count(responses, lambda response: response.status == 200) > 40
    assert count(responses, lambda response: response.status in (200, 429, 503)) == len(times_s)
    assert max(response.seconds for response in responses if response.status == 200) <= 4 * 0.7
    assert status["demand"]["queries"] == len(times_s)
    live = {int(entry["second"]): tuple(entry["replicas"]) for entry in status["decisions"]}

    spec = validate(PipelineSpec, parse(text, "steps.yaml"))
    run = Run(RunDir(tmp_path / "again"), LocalEngine(1), base=tmp_path, allow_code=True)
    problem = build_problem(spec, run)
    saved = parse((tmp_path / "plan.yaml").read_text(), "plan.yaml")
    context = build_scaling_context(
        problem.pipeline, parse_decision(saved.data["decision"], problem.pipeline), problem.samples, problem.slo_s
    )
    table = build_context_table(context, problem.tuner)
    settings = calibrate_settings(context, problem.tuner, table)
    sample = build_live_sample(spec, problem, tmp_path / "t.npz", run)
    targets = compute_table_targets(context, sample, settings, table)
    replayed = {second: (int(count),) for second, count in enumerate(targets.replicas[0])}
    common = sorted(live.keys() & replayed.keys())
    assert len(common) >= len(replayed) - 2
    differing = [second for second in common if live[second] != replayed[second]]
    # an arrival near a whole second may fall on either side of it
    assert len(differing) <= 1, [(second, live[second], replayed[second]) for second in differing]
    assert min(live.values()) < max(live.values()) == (3,)
