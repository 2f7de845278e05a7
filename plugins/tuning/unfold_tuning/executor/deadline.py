"""How far a run is from its deadline while it runs, and the ways out when it cannot be met any more."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from unfold_tuning.format import counted, dollars, span
from unfold_tuning.job.allocation import Deal, Plan, expected_seconds, ladder
from unfold_tuning.job.profile import Machine, Profile
from unfold_tuning.job.schedule import Group, Stage
from unfold_tuning.planner.planner import offer
from unfold_tuning.planner.replan import expected
from unfold_tuning.simulator.execution_model import Model, mean_slowest, model, slower
from unfold_tuning.trial.worker import Job

GROWTHS = (2, 4, 8, 16)
TRIMS = (0.75, 0.5, 0.25, 0.1)
MOST = 1024


@dataclass(frozen=True, slots=True)
class Pace:
    """What times are expected from now on: the profile as it is believed, on a machine."""

    profile: Profile
    machine: Machine

    def left(self, jobs: Iterable[Job], deal: Deal) -> float:
        """Return the seconds until these trials of a stage are through: the longest, or all of them on the places."""
        per = expected(self.profile, deal.gang, self.machine)
        open_ = [(job.target - job.done) * per for job in jobs]
        return max(max(open_, default=0.0), sum(open_) / deal.slots)

    def step(self, job: Job) -> float:
        """Return the seconds from a trial's start or checkpoint to its next one."""
        iters = min(job.every, job.target - job.done)
        return self.profile.start.mean + iters * expected(self.profile, job.gang, self.machine)

    def planned(self, stages: Sequence[Stage], plan: Plan) -> float:
        """Return the seconds of stages under a plan, without the growth of the cluster."""
        pairs = zip(stages, plan, strict=True)
        return sum(self._seconds(stage, deal) for stage, deal in pairs)

    def fastest(self, stages: Sequence[Stage]) -> float:
        """Return the seconds of stages with as many instances as may be held."""
        ladders = [(stage, ladder(stage, self.profile, self.machine)) for stage in stages]
        return sum(self._seconds(stage, steps[-1]) for stage, steps in ladders)

    def _seconds(self, stage: Stage, deal: Deal) -> float:
        seconds = expected_seconds(stage, deal.gang, deal.slots, self.profile, self.machine)
        return self.profile.sync.mean + seconds * mean_slowest(self.profile.worker_cv, deal.gang)


def faster_by(profile: Profile, machine: Machine, factor: float) -> Pace:
    """Return the pace when iterations take ``factor`` times as long as the profile says."""
    return Pace(slower(profile, factor), machine)


def ways_out(rest: Model, time_left: float, share: float) -> Iterator[str]:
    """Yield what can be done when the rest of a job cannot be promised any more: finish late, grow, or trim.

    ``rest`` holds the remaining stages with the instances that run; ``time_left`` is in seconds.
    """
    late = offer(rest, share)
    index = late.soonest
    yield (
        f"finish late: {span(float(late.promised[index]), up=True)} from now can be promised, "
        f"for {dollars(late.scores[index].cost)} more"
    )
    yield _grown(rest, time_left, share)
    yield _trimmed(rest, time_left, share)


def _grown(rest: Model, time_left: float, share: float) -> str:
    for factor in GROWTHS:
        machine = replace(rest.machine, limit=min(MOST, rest.machine.limit * factor))
        picked = offer(rest.on(machine), share).pick(time_left)
        if picked is not None:
            most = max(deal.instances for deal in picked.plan)
            return f"grow: --set cloud.limit={most} is in time, for {dollars(picked.cost)} more"
    return "grow: no number of instances is in time"


def _trimmed(rest: Model, time_left: float, share: float) -> str:
    for part in TRIMS:
        stages = tuple(replace(stage, groups=tuple(_shorter(g, part) for g in stage.groups)) for stage in rest.stages)
        fresh = model(stages, rest.profile, rest.machine, rest.samples, 0)
        picked = offer(replace(fresh, held=rest.held), share).pick(time_left)
        if picked is not None:
            iters = counted(max(group.iters for group in stages[-1].groups), "iteration")
            return (
                f"trim: with {part:.0%} of the iterations left ({iters} in the last stage), {dollars(picked.cost)} more"
            )
    return "trim: even a tenth of the iterations left would be late"


def _shorter(group: Group, part: float) -> Group:
    return replace(group, iters=max(1, int(group.iters * part)))
