"""The front of a trained family as a picture: accuracy with its interval, over latency, beside standalone networks."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from unfold_supernet._types import Task
from unfold_supernet.report import sentences
from unfold_supernet.training.accuracy import Quality
from unfold_supernet.training.problem import StandaloneComparison
from unfoldkit.api import Interval, IntervalPlot

MICRO = 1e6
MAX_SHOWN = 40
"""Members beyond which only the front and the compared ones are drawn: intervals would cover each other."""


def draw_front(
    qualities: Mapping[str, Quality],
    seconds_by_batch: Mapping[str, Mapping[int, float]],
    front: Collection[str],
    comparisons: Mapping[str, StandaloneComparison],
    task: Task = "classes",
) -> IntervalPlot:
    """Draw the score of every member over the latency of one row.

    A standalone network has the latency of its member: it has the same layers.

    Args:
        qualities: By member, smallest first.
        seconds_by_batch: Latency by batch size, by member.
        front: Members on the accuracy front.
        comparisons: Members that were also trained alone.
        task: What the outputs are.
    """
    shown = [name for name in qualities if len(qualities) <= MAX_SHOWN or name in front or name in comparisons]
    return IntervalPlot(
        name="front",
        title=sentences.title_front(task, shown=len(shown), total=len(qualities)),
        axis=f"{sentences.name_score(task)} %",
        intervals=tuple(_list_intervals(shown, qualities, seconds_by_batch, front, comparisons)),
        at="latency of one row, µs",
        log_at=True,
        timed=True,
    )


def _list_intervals(
    shown: Collection[str],
    qualities: Mapping[str, Quality],
    seconds_by_batch: Mapping[str, Mapping[int, float]],
    front: Collection[str],
    comparisons: Mapping[str, StandaloneComparison],
) -> Iterator[Interval]:
    for name in shown:
        latency_us = seconds_by_batch[name][1] * MICRO
        group = sentences.name_front_group(is_front=name in front)
        yield build_interval(name, qualities[name], latency_us, group)
        if name in comparisons:
            alone = sentences.name_standalone(name)
            group = sentences.name_standalone_group()
            yield build_interval(alone, comparisons[name].standalone, latency_us, group)


def build_interval(name: str, quality: Quality, latency_us: float, group: str) -> Interval:
    """Build the 95 % interval of a score at a latency."""
    (low, high), value = quality.interval, quality.score
    # rounding may put a bound of 0 or 1 on the wrong side of the value
    return Interval(name=name, value=value, low=min(low, value), high=max(high, value), group=group, at=latency_us)
