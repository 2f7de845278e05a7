"""The Gantt chart also shows the tasks that run nowhere, from their arrival on."""

from __future__ import annotations

from dataclasses import replace

from plugins.placement.tests.cases import cluster, job, run
from unfold_placement.core.types import DOWN, UP, NodeChange, Task
from unfold_placement.report import sentences
from unfold_placement.report.plan import MAX_JOBS, MAX_WAITS, draw_jobs, gantt_figures, wait_figure
from unfold_placement.simulation.metrics import compute_metrics
from unfold_placement.simulation.simulator import SimulationResult, simulate
from unfoldkit.api import Marker, Timeline
from unfoldkit.figure_data import find_figure_problems


def draw(result: SimulationResult, starving: Task | None = None) -> Timeline:
    (figure,) = gantt_figures(result, starving)
    assert not list(find_figure_problems(figure))
    return figure


def list_waits(figure: Timeline) -> list[tuple[str, float, float]]:
    return [(bar.name, bar.start, bar.end) for bar in figure.bars if bar.lane.strip() == sentences.WAITING]


def test_a_task_that_never_starts_waits_until_the_end() -> None:
    """Its bar begins when it arrives and ends with the last task that ran; a mark states that it never starts."""
    result = run(cluster(1), [*job("a", 4), *job("wide", 1, at=5.0, demand={"gpu": 8000})])
    figure = draw(result)
    assert [task.name for task in result.stuck] == ["wide-0"]
    assert figure.lanes == (sentences.WAITING, "n0")
    assert list_waits(figure) == [("wide-0", 5.0, 10.0)]
    assert figure.markers == (Marker(sentences.NEVER_STARTS, 10.0, lane=sentences.WAITING),)


def test_a_starving_task_waits_until_it_starts() -> None:
    """The bar of the wait ends where the task begins to run on a node."""
    tasks = [*job("a", 4), *job("late", 1, at=5.0)]
    figure = draw(run(cluster(1), tasks), tasks[-1])
    assert list_waits(figure) == [("late-0", 5.0, 10.0)]
    assert figure.markers == (Marker(sentences.STARVES, 10.0, lane=sentences.WAITING),)


def test_without_such_tasks_there_is_no_lane_for_them() -> None:
    """A plan that starts everything has its nodes only, and of many stuck tasks few have a bar."""
    assert draw(run(cluster(1), job("a", 8))).lanes == ("n0",)
    assert len(draw(run(cluster(1), job("wide", 40, demand={"gpu": 8000}))).bars) == MAX_WAITS


def test_a_node_may_have_the_name_of_the_lane() -> None:
    """A node of that name keeps a lane of its own."""
    nodes = [replace(node, name=sentences.WAITING) for node in cluster(1)]
    assert len(draw(run(nodes, job("wide", 1, demand={"gpu": 8000}))).lanes) == 2


def test_each_job_waits_from_its_arrival_to_its_first_start() -> None:
    """A job that starts at once has no wait, one that never starts has nothing else."""
    tasks = [*job("a", 4), *job("late", 1, at=5.0), *job("wide", 1, at=5.0, demand={"gpu": 8000})]
    (figure,) = draw_jobs(run(cluster(1), tasks))
    assert not list(find_figure_problems(figure))
    bars = {(bar.lane, bar.group): (bar.start, bar.end) for bar in figure.bars}
    assert bars == {
        ("a", sentences.RUNS): (0.0, 10.0),
        ("late", sentences.WAITS): (5.0, 10.0),
        ("late", sentences.RUNS): (10.0, 20.0),
        ("wide", sentences.WAITS): (5.0, 20.0),
    }


def test_one_job_or_many_have_no_chart_of_jobs() -> None:
    """For one job the chart of nodes says as much; hundreds of lanes are no picture."""
    assert draw_jobs(run(cluster(1), job("a", 4))) == ()
    assert draw_jobs(run(cluster(1), [task for n in range(MAX_JOBS + 1) for task in job(f"j{n}", 1)])) == ()


def test_runs_that_were_stopped_are_drawn_and_are_no_waits() -> None:
    """A node that went down is not shown idle before, and the waits of the figure are those of the metrics."""
    tasks = job("a", 1, run=10.0) + job("b", 1, at=5.0, run=1.0)
    changes = (NodeChange(4.0, "n0", DOWN), NodeChange(7.0, "n0", UP))
    result = simulate(cluster(1), tasks, [], changes)
    (gantt,), (jobs,) = gantt_figures(result, None, result.node_changes), draw_jobs(result)
    assert [(bar.name, bar.start, bar.end) for bar in gantt.bars] == [
        ("a-0", 0.0, 4.0), ("a-0", 7.0, 17.0), ("b-0", 7.0, 8.0)
    ]  # fmt: skip
    assert gantt.markers == (Marker(sentences.NODE_LOST, 4.0, 7.0, lane="n0"),)
    assert sorted((bar.lane, bar.group, bar.start, bar.end) for bar in jobs.bars) == [
        ("a", sentences.RUNS, 0.0, 4.0),
        ("a", sentences.RUNS, 7.0, 17.0),
        ("a", sentences.WAITS, 4.0, 7.0),
        ("b", sentences.RUNS, 7.0, 8.0),
        ("b", sentences.WAITS, 5.0, 7.0),
    ]
    waits_s = wait_figure(result, result).series[0].x
    assert (min(waits_s), max(waits_s)) == (2.0, 3.0)
    assert compute_metrics(result).wait_mean_s == 2.5


def test_tasks_of_a_job_one_after_another_do_not_wait_in_between() -> None:
    """Nothing of the job is there to wait."""
    (figure,) = draw_jobs(run(cluster(1), [*job("a", 1, run=1.0), *job("b", 1, run=2.0), late_task("a", 5.0)]))
    assert [(bar.lane, bar.start, bar.end) for bar in figure.bars] == [("a", 0.0, 6.0), ("b", 0.0, 2.0)]


def late_task(name: str, arrival_s: float) -> Task:
    return replace(job(name, 1, at=arrival_s, run=1.0)[0], name=f"{name}-late")
