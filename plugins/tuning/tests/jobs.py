"""Jobs that tests share: the four of the study, and small random ones."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from hypothesis import strategies as st

from unfold_tuning.job.allocation import Deal, Plan, slots
from unfold_tuning.job.profile import Machine, Profile, Spread
from unfold_tuning.job.schedule import Stage, custom, successive_halving
from unfold_tuning.simulator.execution_model import Model
from unfoldkit.catalog.billing import Billing

RESNET101 = ((1, 1.0), (2, 1.892), (4, 3.632), (8, 6.672))
IMAGENET = ((1, 1.0), (2, 1.77), (4, 2.93), (8, 4.29))
RESNET50 = ((1, 1.0), (2, 1.87), (4, 3.42), (8, 5.60))
FACTORS = (1.05, 1.15, 1.3, 1.5, 2, 3, 5)
JOBS = {
    "J1": (successive_halving(32, 1, 50, 3), RESNET101, 40.0),
    "J2": (successive_halving(64, 4, 508, 2), RESNET101, 4.0),
    "J3": (successive_halving(81, 1, 81, 3), IMAGENET, 30.0),
    "J4": (successive_halving(128, 1, 128, 4), RESNET50, 12.0),
}
P3 = Machine("p3.8xlarge", 4, 12.24, limit=64, billing=Billing(0.0, 0.0))


def still(name: str) -> Profile:
    """Return the profile of a job without any spread."""
    _, speedup, seconds = JOBS[name]
    return Profile(Spread(seconds), speedup, startup=Spread(60.0), sync=Spread(10.0))


def noisy(name: str, error: float = 0.05) -> Profile:
    """Return the profile of a job with mild spread and an error of its own."""
    _, speedup, seconds = JOBS[name]
    return Profile(
        Spread(seconds, 0.2 * seconds),
        speedup,
        provision=Spread(30.0, 15.0),
        startup=Spread(60.0, 9.0),
        sync=Spread(10.0),
        trial_cv=0.05,
        error_cv=error,
    )


def every_plan(drawn: Model) -> Iterator[Plan]:
    """Yield all plans: in each stage any number of instances, and trials of any size that fits."""
    each = drawn.machine.accelerators
    sizes = itertools.product(range(1, drawn.machine.limit + 1), drawn.profile.fitting(each))
    deals = [Deal(m, gang, slots(m, gang, each)) for m, gang in sizes if slots(m, gang, each)]
    yield from itertools.product(deals, repeat=len(drawn.stages))


def fastest(name: str) -> float:
    """Return the shortest time of a job that its speed-ups allow, start-up and barriers included."""
    stages, speedup, seconds = JOBS[name]
    return sum(stage.groups[0].iters * seconds / speedup[-1][1] for stage in stages) + 60 + 10 * (len(stages) - 1)


@st.composite
def small_jobs(draw: st.DrawFn) -> tuple[tuple[Stage, ...], Profile, Machine]:
    """Draw a job of two or three stages on up to six instances; stages may grow again."""
    counts = draw(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 20)), min_size=2, max_size=3))
    # in hundredths: times that differ by less than the tolerance of the laws are one
    times = st.floats(0.0, 90.0).map(lambda seconds: round(seconds, 2))
    profile = Profile(
        Spread(draw(st.floats(1.0, 30.0))),
        draw(st.sampled_from([RESNET101, IMAGENET, ((1, 1.0), (2, 1.2), (4, 1.1))])),
        provision=Spread(draw(times)),
        startup=Spread(draw(times)),
        start=Spread(draw(st.sampled_from([0.0, 5.0]))),
        sync=Spread(draw(times)),
    )
    ingress, head = draw(st.sampled_from([0.0, 0.3])), draw(st.sampled_from([0.0, 1.0]))
    per = draw(st.sampled_from(["instance", "function"]))
    billing = Billing(0.0, 0.0, per)
    machine = Machine("m", draw(st.sampled_from([1, 2, 4])), 10.0, 1.0, 5, billing, ingress, head)
    return custom(counts), profile, machine
