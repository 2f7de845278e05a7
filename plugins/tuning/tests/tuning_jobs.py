"""Jobs that tests share: four published shapes, and small random ones."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from hypothesis import strategies as st

from unfold_tuning.job.allocation import Allocation, Plan, count_slots
from unfold_tuning.job.profile import LogNormal, Machine, Profile
from unfold_tuning.job.schedule import Stage, build_custom_stages, build_successive_halving
from unfold_tuning.planner.planner import Candidate, evaluate_models
from unfold_tuning.simulator.execution_model import ExecutionModel, build_execution_model
from unfoldkit.catalog.billing import Billing

Job = tuple[tuple[Stage, ...], Profile, Machine]

RESNET101 = ((1, 1.0), (2, 1.892), (4, 3.632), (8, 6.672))
IMAGENET = ((1, 1.0), (2, 1.77), (4, 2.93), (8, 4.29))
RESNET50 = ((1, 1.0), (2, 1.87), (4, 3.42), (8, 5.60))
DEADLINE_FACTORS = (1.05, 1.15, 1.3, 1.5, 2, 3, 5)
JOBS = {
    "J1": (build_successive_halving(32, 1, 50, 3), RESNET101, 40.0),
    "J2": (build_successive_halving(64, 4, 508, 2), RESNET101, 4.0),
    "J3": (build_successive_halving(81, 1, 81, 3), IMAGENET, 30.0),
    "J4": (build_successive_halving(128, 1, 128, 4), RESNET50, 12.0),
}
P3 = Machine("p3.8xlarge", 4, 12.24, max_instances=64, billing=Billing(0.0, 0.0))


def deterministic_profile(name: str) -> Profile:
    """Return the profile of a job without any randomness."""
    _, speedup, seconds = JOBS[name]
    return Profile(LogNormal(seconds), speedup, speedup, startup=LogNormal(60.0), sync=LogNormal(10.0))


def noisy_profile(name: str, error: float = 0.05) -> Profile:
    """Return the profile of a job with mild variation and an error of its own."""
    _, speedup, seconds = JOBS[name]
    return Profile(
        LogNormal(seconds, 0.2 * seconds),
        speedup,
        speedup,
        provision=LogNormal(30.0, 15.0),
        startup=LogNormal(60.0, 9.0),
        sync=LogNormal(10.0),
        trial_cv=0.05,
        error_cv=error,
    )


def evaluate_machines(
    stages: Sequence[Stage], profile: Profile, machines: Sequence[Machine], confidence: float, samples: int, seed: int
) -> list[Candidate]:
    """Compute the cost–deadline frontier of every machine with common random numbers."""
    model = build_execution_model(stages, profile, machines[0], samples, seed)
    return evaluate_models(model.with_machines(machines), confidence, lambda _step, _done, _total: None)


def list_all_plans(model: ExecutionModel) -> Iterator[Plan]:
    """Yield all plans: in each stage any number of instances, and any number of workers per trial that fits."""
    accelerators = model.machine.accelerators
    sizes = itertools.product(range(1, model.machine.max_instances + 1), model.profile.list_worker_counts(accelerators))
    allocations = [
        Allocation(instances, workers, count_slots(instances, workers, accelerators))
        for instances, workers in sizes
        if count_slots(instances, workers, accelerators)
    ]
    yield from itertools.product(allocations, repeat=len(model.stages))


def fastest_seconds(name: str) -> float:
    """Return the shortest time of a job that its speed-ups allow, start-up and barriers included."""
    stages, speedup, seconds = JOBS[name]
    return sum(stage.groups[0].iters * seconds / speedup[-1][1] for stage in stages) + 60 + 10 * (len(stages) - 1)


@st.composite
def small_jobs(draw: st.DrawFn) -> Job:
    """Draw a job of two or three stages on up to six instances; the number of trials may grow again."""
    counts = draw(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 20)), min_size=2, max_size=3))
    # in hundredths: times that differ by less than the tolerance of the tests are equal
    times = st.floats(0.0, 90.0).map(lambda seconds: round(seconds, 2))
    speedup = draw(st.sampled_from([RESNET101, IMAGENET, ((1, 1.0), (2, 1.2), (4, 1.1))]))
    profile = Profile(
        LogNormal(draw(st.floats(1.0, 30.0))),
        speedup,
        draw(st.sampled_from([speedup, ()])),
        provision=LogNormal(draw(times)),
        startup=LogNormal(draw(times)),
        start=LogNormal(draw(st.sampled_from([0.0, 5.0]))),
        sync=LogNormal(draw(times)),
    )
    ingress, head = draw(st.sampled_from([0.0, 0.3])), draw(st.sampled_from([0.0, 1.0]))
    per = draw(st.sampled_from(["instance", "function"]))
    accelerators = draw(st.sampled_from([1, 2, 4]))
    machine = Machine("m", accelerators, 10.0, 1.0, 5, Billing(0.0, 0.0, per), ingress, head)
    return build_custom_stages(counts), profile, machine
