"""Goodput of a family on real arrivals at their own rate, against its members alone in the same engine.

A request is a half-hour record of heartbeats, which one member answers in ONNX Runtime, on one thread. Single beats
take microseconds, and no public trace of requests is fast enough to load a core with them. Timestamps are as published.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from unfold_supernet.scheduling.policies import Policy, SubnetProfile, make_fixed, make_steady
from unfold_supernet.scheduling.simulator import measure_trace
from unfold_supernet.scheduling.speed import PolicyFactory, Slowdown, adapt_to_slowdown

RECORD_BEATS = 2_048
"""Beats of half an hour at 68 beats a minute, the length of a record of MIT-BIH."""
DEADLINE_S = 0.5
WINDOW_S = 10.0
WINDOWS = 10
CHUNKS = (64, 128, 256, 512)
"""Beats of one call of the engine; each member runs in the size that answers a record soonest."""
ROUNDS = 9
TRACES = ("code", "conv")
CONTROL = "conv"
"""The trace with its busiest window played as well: no burst of it is as high as those of the other."""
ACCURACY_STEP = 1e-6
"""Points of accuracy below which two means of the same member differ by rounding only."""
NEAR_POINTS = 0.1
"""Points by which a member alone may be less accurate than the family and still counts as equal, for ``_near``."""


@dataclass(frozen=True, slots=True)
class RecordMember:
    """A member of the family as it answers records.

    Attributes:
        profile: Accuracy, and seconds of one record.
        answer: Computes the record with an index.
    """

    profile: SubnetProfile
    answer: Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Window:
    """A part of a trace: its name, where it starts, how long it is, and its arrivals from there, all in seconds."""

    trace: str
    start_s: float
    seconds: float
    arrivals: np.ndarray


@dataclass(frozen=True, slots=True)
class Timer:
    """Source of time in seconds, and what waits for it."""

    clock: Callable[[], float] = time.perf_counter
    sleep: Callable[[float], None] = time.sleep


@dataclass(frozen=True, slots=True)
class Goodput:
    """What a rule reached in a window: requests in time per second, and the accuracy of their members in percent."""

    rule: str
    per_s: float
    accuracy: float
    members_used: Mapping[str, float] = field(default_factory=dict)


def open_members(supernet: Any, data: Any, accuracies: Mapping[str, float]) -> tuple[RecordMember, ...]:
    """Open the members of a family in ONNX Runtime and time a record on each.

    Args:
        supernet: The trained family.
        data: Its examples; records are made of the test rows.
        accuracies: Of the members, in percent.
    """
    from unfold_supernet.family.onnx_session import open_session
    from unfold_supernet.networks.onnx_export import export_onnx
    from unfold_supernet.networks.standalone import extract_model

    starts = np.arange(0, len(data.test), RECORD_BEATS)
    rows = [np.resize(np.roll(data.test, -start), RECORD_BEATS) for start in starts]
    records = [(data.x[part], data.extra[part]) for part in rows]
    members = []
    for name, accuracy in accuracies.items():
        module = extract_model(supernet.space, supernet.bound[name])
        session = open_session(export_onnx(supernet.space, module, data.names))
        timed = {chunk: _time_record(partial(answer_record, session, records, chunk)) for chunk in CHUNKS}
        chunk = min(timed, key=lambda size: timed[size])
        profile = SubnetProfile(name, accuracy, ((1, timed[chunk]),))
        members.append(RecordMember(profile, partial(answer_record, session, records, chunk)))
    return tuple(members)


def answer_record(session: Any, records: Sequence[tuple[np.ndarray, np.ndarray]], chunk: int, index: int) -> None:
    """Compute the classes of a record, ``chunk`` beats at a time."""
    from unfold_supernet.family.onnx_session import name_inputs

    x, extra = records[index % len(records)]
    for start in range(0, len(x), chunk):
        part = slice(start, start + chunk)
        session.run(None, name_inputs(session, x[part], extra[part]))[0].argmax(1)


def _time_record(answer: Callable[[int], None]) -> float:
    answer(0)
    seconds = []
    for index in range(ROUNDS):
        began = time.perf_counter()
        answer(index)
        seconds.append(time.perf_counter() - began)
    return median(seconds)


def load_windows(folder: Path, *, quick: bool = False) -> list[Window]:
    """Load the busiest windows of both traces, and then the busiest one of the control.

    Args:
        folder: Holds the traces.
        quick: One window of two seconds, and no control.
    """
    from unfoldkit.arrivals.traces import read_trace

    traces = {name: read_trace(folder / f"azure_llm_2023_{name}.csv.gz") for name in TRACES}
    if quick:
        return find_busiest(traces, 2.0, 1)
    return find_busiest(traces, WINDOW_S, WINDOWS) + find_busiest({CONTROL: traces[CONTROL]}, WINDOW_S, 1)


def find_busiest(traces: Mapping[str, np.ndarray], seconds: float, count: int) -> list[Window]:
    """Find the windows with most requests, busiest first; none overlap, and each starts with a request."""
    found: list[Window] = []
    candidates = [
        (int(np.searchsorted(times, start + seconds)) - index, name, index)
        for name, times in traces.items()
        for index, start in enumerate(times)
    ]
    for requests, name, index in sorted(candidates, key=lambda one: (-one[0], one[1], one[2])):
        start = float(traces[name][index])
        if all(window.trace != name or abs(window.start_s - start) >= seconds for window in found):
            found.append(Window(name, start, seconds, traces[name][index : index + requests] - start))
        if len(found) == count:
            break
    return found


def measure_windows(
    members: Sequence[RecordMember], windows: Sequence[Window], timer: Timer | None = None
) -> Iterator[dict[str, Any]]:
    """Yield a row for each window: the family, and the member alone with the highest goodput at no less accuracy.

    Every rule answers one record at a time, and drops those that cannot be in time. No mixture of members is more
    accurate than the best one, which is thus a rival of every policy: with all requests in time, a policy reaches
    ``goodput_ratio_bound``, and none exceeds it.
    """
    profiles = [member.profile for member in members]
    best = max(profiles, key=lambda profile: profile.accuracy)
    for window in windows:
        family = play_window(members, window, "family", partial(make_steady, slo=DEADLINE_S), timer)
        fixed = [
            play_window(members, window, profile.name, partial(make_fixed, index=index), timer)
            for index, profile in enumerate(profiles)
            if profile.accuracy >= family.accuracy - NEAR_POINTS
        ]
        near = max(fixed, key=lambda one: one.per_s)
        accurate = {profile.name for profile in profiles if profile.accuracy >= family.accuracy - ACCURACY_STEP}
        rival = max((one for one in fixed if one.rule in accurate), key=lambda one: one.per_s)
        rate = len(window.arrivals) / window.seconds
        best_per_s = next(one.per_s for one in fixed if one.rule == best.name)
        yield {
            "trace": window.trace,
            "start_s": window.start_s,
            "seconds": window.seconds,
            "requests": len(window.arrivals),
            "requests_per_s": rate,
            "load_of_most_accurate": rate * best.estimate_latency(1),
            "goodput_per_s": family.per_s,
            "accuracy": family.accuracy,
            "members_used": dict(family.members_used),
            "rival": rival.rule,
            "rival_goodput_per_s": rival.per_s,
            "rival_accuracy": rival.accuracy,
            "goodput_ratio": family.per_s / rival.per_s if rival.per_s else None,
            "goodput_ratio_bound": rate / best_per_s if best_per_s else None,
            "rival_near": near.rule,
            "goodput_ratio_near": family.per_s / near.per_s if near.per_s else None,
        }


def play_window(
    members: Sequence[RecordMember], window: Window, rule: str, make: PolicyFactory, timer: Timer | None = None
) -> Goodput:
    """Play a window in real time by one rule, which learns the pace of the machine as it goes."""
    profiles, slowdown, timer = [member.profile for member in members], Slowdown(), timer or Timer()

    def work(at: int, first: int, last: int) -> None:
        for index in range(first, last):
            began = timer.clock()
            members[at].answer(index)
            slowdown.update(profiles[at].estimate_latency(1), timer.clock() - began)

    policy: Policy = adapt_to_slowdown(make, profiles, slowdown)
    outcome = measure_trace(window.arrivals, DEADLINE_S, policy, work, clock=timer.clock, sleep=timer.sleep)
    per_s = float(outcome.in_time.sum()) / window.seconds
    return Goodput(rule, per_s, outcome.compute_accuracy(profiles), outcome.count_usage(profiles))


def summarize_windows(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Return the largest and the median ratio of the windows, and that of the control.

    A window has no ratio if no member alone answers anything in time; ``goodput_windows`` counts those that have one.
    """
    counted, control = rows[:WINDOWS], rows[WINDOWS:]
    ratios, near, bounds = (
        [row[key] for row in counted if row[key] is not None]
        for key in ("goodput_ratio", "goodput_ratio_near", "goodput_ratio_bound")
    )
    return {
        "goodput_ratio_max": max(ratios, default=None),
        "goodput_ratio_median": median(ratios) if ratios else None,
        "goodput_ratio_bound_median": median(bounds) if bounds else None,
        "goodput_in_time_percent_min": min(
            (row["goodput_per_s"] / row["requests_per_s"] * 100 for row in counted), default=None
        ),
        "goodput_ratio_near_max": max(near, default=None),
        "goodput_ratio_near_median": median(near) if near else None,
        "goodput_windows": len(ratios),
        f"goodput_ratio_{CONTROL}": control[0]["goodput_ratio"] if control else None,
        "goodput_load_min": min((row["load_of_most_accurate"] for row in counted), default=None),
        "goodput_load_max": max((row["load_of_most_accurate"] for row in counted), default=None),
    }


def list_goodput_notes() -> list[str]:
    """Return what a reader of the goodput must know."""
    return [
        "goodput_*: the ten busiest windows of 10 s of two public traces, at their own timestamps: nothing is scaled.",
        f"A request is a record of {RECORD_BEATS:,} beats, due in {DEADLINE_S:g} s: single beats load no core.",
        "goodput_ratio: requests in time per second, over those of the best member alone that is as accurate.",
        "goodput_ratio_bound: of a policy with all requests in time, which the most accurate member rivals at least.",
        f"goodput_ratio_near: members that are up to {NEAR_POINTS:g} points less accurate count as equal.",
        "Family and members run in ONNX Runtime, each in its fastest batch, and learn the machine's pace alike.",
        "A member's accuracy is that of the random split, where larger members are more accurate.",
        f"goodput_ratio_{CONTROL}: the busiest window of the calmer trace, beside the ten.",
        "goodput_load: the rate of a window over what the most accurate member takes.",
    ]
