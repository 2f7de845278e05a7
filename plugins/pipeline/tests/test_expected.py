"""What a replay should take at the pace of its own batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from unfold_pipeline.estimator.contention import Speed
from unfold_pipeline.problem.pipeline import Choice, Edge, Option, Pipeline, Stage, table
from unfold_pipeline.problem.sample import draw
from unfold_pipeline.replay.prediction import Replay, at_its_pace, estimate, slower, speeds_of
from unfold_pipeline.runtime.stage import Batch
from unfoldkit.api import Run, RunDir
from unfoldkit.arrivals import processes
from unfoldkit.engines.local import LocalEngine

CORE = Option("core", 0.05, table([(1, 0.02), (4, 0.05)]), wake=0.004)
CHAIN = Pipeline((Stage("a", (), (CORE,)), Stage("b", (Edge(0),), (CORE,))))
PLAN = (Choice(0, 4, 1), Choice(0, 4, 1))


@pytest.fixture
def replay() -> Replay:
    """400 queries through two stages with a replica each."""
    rng = np.random.default_rng(5)
    return Replay(CHAIN, PLAN, draw(CHAIN, processes.poisson(20.0, 20.0, rng), rng))


def a_run(folder: Path) -> Run:
    """A run in which nothing was profiled."""
    return Run(RunDir(folder), LocalEngine(1))


def batches(pace: float, waited: float = 0.0) -> list[Batch]:
    """Batches of one each 0.1 s at both stages that took ``pace`` times their latency, and waited for a core beside."""
    took = 0.02 * pace
    return [Batch(name, 1, 0.1 * number, took + waited, took, waited) for name in ("a", "b") for number in range(200)]


def test_the_nearest_batch_in_time_gives_the_pace() -> None:
    """The pace at a moment is that of the batch that began nearest to it, at the ends the first and the last."""
    speed = Speed(np.array([1.0, 2.0, 4.0]), np.array([1.1, 1.2, 1.4]))
    assert [speed.at(now) for now in (-5.0, 1.4, 1.6, 2.9, 3.1, 99.0)] == [1.1, 1.1, 1.2, 1.2, 1.4, 1.4]


@pytest.mark.parametrize("pace", [0.8, 1.0, 1.5])
def test_another_pace_is_followed(replay: Replay, tmp_path: Path, pace: float) -> None:
    """Where all batches took longer by a factor, queries take what the simulator says of latencies longer by it."""
    speeds = speeds_of(replay, batches(pace), crowd=False)
    found = at_its_pace(replay, speeds, a_run(tmp_path))
    slow = Option("core", 0.05, table([(1, 0.02 * pace), (4, 0.05 * pace)]))
    stages = tuple(Stage(stage.name, stage.parents, (slow,)) for stage in CHAIN.stages)
    assert found == pytest.approx(estimate(Replay(Pipeline(stages), PLAN, replay.sample), a_run(tmp_path)), abs=1e-9)
    told = f"time of a batch over that in the plan: a {pace:.2f} · b {pace:.2f}"
    assert slower(replay, speeds) == ("" if pace == 1.0 else told)


def test_waiting_for_a_core_is_simulated_in_a_crowd_and_else_part_of_the_time(replay: Replay) -> None:
    """Where replicas share cores, a batch is no slower for having waited for one; elsewhere nothing else says so."""
    for crowd, factor in ((True, 1.0), (False, 1.5)):
        speeds = speeds_of(replay, batches(1.0, waited=0.01), crowd=crowd)
        assert speeds
        assert all(speed.factor == pytest.approx(factor) for speed in speeds)


def test_an_engine_that_tells_nothing_has_no_pace(replay: Replay) -> None:
    """Where no batch was heard of, nothing is said of the pace."""
    assert speeds_of(replay, [], crowd=False) == []
    assert slower(replay, []) == ""


def test_a_stage_where_nobody_came_keeps_its_latency(replay: Replay) -> None:
    """A stage that no query of a replay went to has the pace of the plan, and the others have theirs."""
    speeds = speeds_of(replay, [item for item in batches(1.5) if item.stage == "a"], crowd=False)
    assert [float(speed.factor.mean()) for speed in speeds] == pytest.approx([1.5, 1.0])
