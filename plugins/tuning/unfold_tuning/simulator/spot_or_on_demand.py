"""Spot instances that end on time: spot or wait while there is slack, on demand when it runs out.

A loss takes all instances of a zone. Whether one can be had is replayed from the zone's own log, begun at moments in
its present state, or without a log drawn from a constant hazard. Wu et al., Can't Be Late (NSDI 2024), treat the same
problem.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from unfold_tuning._types import FloatArray, IntArray
from unfold_tuning.job.availability import AvailabilityLog, BoolArray
from unfold_tuning.job.profile import Machine, Profile
from unfold_tuning.simulator.execution_model import ExecutionModel
from unfold_tuning.simulator.plan_cost import SimulatedPlan, compute_quantile

STEP_S = 60.0
NET_CHANGES = 2.0
"""Changes of place for which slack is kept: one to move on demand, one for a loss at the last moment."""
NET_CONFIDENCE = 0.99
"""Probability with which the rest of the plan must still fit when it moves on demand: at the mean the net tears."""
MAX_PATH_STEPS = 20_000
LONGER = 2.0
"""An outage that is longer than all of a log is taken to last so many times the longest one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ThriftyRuns:
    """A plan under the policy, in every sampled run: seconds, dollars, and the fraction of its time on demand."""

    seconds: FloatArray
    cost_usd: FloatArray
    on_demand_fraction: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanProgress:
    """An on-demand plan as a function of its progress in seconds.

    Attributes:
        ends: End of each stage: [stages, samples]; the first instances' wait and start-up is not part of it.
        remaining_s: Time that the rest of the plan takes with the confidence of the net, from the beginning of
            each stage, and 0 at the end: [stages + 1].
        instances: Instances of each stage: [stages].
        change_s: Seconds of a change of place: wait, start-up and start of the trials.
        paid_change_s: The part of it that is billed.
        rollback_s: Seconds of work that a loss repeats: half a checkpoint interval, by stage: [stages].
    """

    ends: FloatArray
    remaining_s: FloatArray
    instances: IntArray
    change_s: float
    paid_change_s: float
    rollback_s: FloatArray


def measure_progress(model: ExecutionModel, simulated: SimulatedPlan) -> PlanProgress:
    """Measure a plan's progress from its simulated runs on demand."""
    plan, profile = simulated.plan, model.profile
    # the first instances arrive by a change of place like any other
    first_s = model.sample_provision_seconds(0) + model.sample_startup_seconds(0, plan[0].instances)
    ends = simulated.ends - first_s
    begins = np.vstack([np.zeros(model.samples), ends[:-1]])
    remaining = [compute_quantile(ends[-1] - begin, NET_CONFIDENCE) for begin in begins]
    lengths = (ends - begins).mean(axis=1)
    iters = np.array([max(stage.list_iterations()) for stage in model.stages])
    waves = np.array(
        [allocation.count_waves(stage.trials) for stage, allocation in zip(model.stages, plan, strict=True)]
    )
    interval = lengths / waves / np.maximum(iters / model.machine.checkpoint_iters, 1.0)
    return PlanProgress(
        ends=ends,
        remaining_s=np.array([*remaining, 0.0]),
        instances=np.array([allocation.instances for allocation in plan]),
        change_s=estimate_change_s(profile),
        paid_change_s=profile.startup.mean + profile.start.mean,
        rollback_s=interval / 2,
    )


def select_runs(progress: PlanProgress, rows: slice) -> PlanProgress:
    """Return some of the runs; what the rest of the plan takes is still that of all of them."""
    return replace(progress, ends=progress.ends[:, rows])


def estimate_change_s(profile: Profile) -> float:
    """Estimate the seconds of a change of place: wait, start-up and start of the trials."""
    return profile.provision.mean + profile.startup.mean + profile.start.mean


def sample_availability(log: AvailabilityLog, steps: int, samples: int, rng: np.random.Generator) -> BoolArray:
    """Replay a log from random moments in its present state: [zones, samples, steps].

    All zones are replayed from one moment, so that they fail together as often as they did. At the end of the log a
    replay jumps to a moment in the same state.
    """
    states = log.to_array()
    ticks = states.shape[1]
    codes = (states * (1 << np.arange(states.shape[0]))[:, None]).sum(axis=0)
    position = rng.choice(np.flatnonzero(codes == codes[-1]), samples)
    ticks_per_step = STEP_S / log.tick_s
    phase = rng.random(samples)
    path = np.empty((states.shape[0], samples, steps), dtype=bool)
    for step in range(steps):
        path[:, :, step] = states[:, position]
        phase += ticks_per_step
        moved = np.floor(phase).astype(int)
        phase -= moved
        position = position + moved
        over = position >= ticks
        if over.any():
            for index in np.flatnonzero(over):
                position[index] = rng.choice(np.flatnonzero(codes == codes[-1]))
    return path


def add_unseen_outages(available: BoolArray, log: AvailabilityLog, rng: np.random.Generator) -> BoolArray:
    """Add outages to replays of a log that are longer than all of it, as it is too short to show every one.

    Of ``n + 1`` similar outages the last one is the longest with probability ``1 / (n + 1)``: that share is longer
    than the ``n`` of the log.

    Args:
        available: Replays: [zones, samples, steps].
        log: Their log.
        rng: Draws the outages.
    """
    available = available.copy()
    lengths = measure_outages(log.to_array()[:, None])[2]
    longest = int(np.ceil(LONGER * lengths.max(initial=0) * log.tick_s / STEP_S))
    rows, begins, _ = measure_outages(available)
    is_longer = rng.random(len(rows)) < 1 / (len(lengths) + 1)
    for row, begin in zip(rows[is_longer], begins[is_longer], strict=True):
        available[:, row, begin : begin + longest] = False
    return available


def measure_outages(available: BoolArray) -> tuple[IntArray, IntArray, IntArray]:
    """Measure when no zone has anything: the run, first step and length of each outage in [zones, runs, steps]."""
    is_up = np.pad(np.asarray(available.any(axis=0)), ((0, 0), (1, 1)), constant_values=True)
    edges = np.diff(is_up.astype(np.int8), axis=1)
    rows, begins = np.nonzero(edges == -1)
    return rows, begins, np.nonzero(edges == 1)[1] - begins


def sample_poisson_losses(
    interruptions_per_hour: float, steps: int, samples: int, rng: np.random.Generator
) -> BoolArray:
    """Draw losses at a constant hazard, each of one step, in a market that always has capacity otherwise."""
    return np.asarray(rng.random((1, samples, steps)) >= interruptions_per_hour * STEP_S / 3600.0)


def simulate_thrifty(progress: PlanProgress, available: BoolArray, deadline_s: float, machine: Machine) -> ThriftyRuns:
    """Simulate the policy step by step.

    Args:
        progress: The on-demand plan; its samples are the runs.
        available: Availability: [zones, samples, steps]; its last step lasts until the end.
        deadline_s: The deadline.
        machine: Prices of its instances on both markets, of their data and of the head node.
    """
    spot_usd_per_hour = machine.spot.usd_per_hour if machine.spot else machine.usd_per_hour
    samples = progress.ends.shape[1]
    total_s = progress.ends[-1]
    done_s, clock = np.zeros(samples), np.zeros(samples)
    spot_s, demand_s = np.zeros(samples), np.zeros(samples)  # billed instance-seconds
    demand_time_s = np.zeros(samples)
    held, started = np.zeros(samples, dtype=int), np.zeros(samples, dtype=int)
    zone = np.full(samples, -1)  # -1: nothing held, -2: on demand
    setup_s = np.zeros(samples)
    active = np.ones(samples, dtype=bool)
    rows = np.arange(samples)
    for step in range(MAX_PATH_STEPS):
        now = available[:, :, min(step, available.shape[2] - 1)]
        stage = np.minimum((done_s[None, :] >= progress.ends).sum(axis=0), len(progress.instances) - 1)
        lost = active & (zone >= 0) & ~now[np.maximum(zone, 0), rows]
        begin = np.where(stage > 0, progress.ends[np.maximum(stage - 1, 0), rows], 0.0)
        done_s = np.where(lost, np.maximum(begin, done_s - progress.rollback_s[stage]), done_s)
        zone = np.where(lost, -1, zone)
        slack_s = deadline_s - step * STEP_S - estimate_remaining_s(progress, done_s, stage, begin)
        is_gone = slack_s <= NET_CHANGES * progress.change_s + STEP_S
        idle = active & (zone == -1)
        to_demand = idle & is_gone
        to_spot = idle & ~is_gone & now.any(axis=0)
        zone = np.where(to_demand, -2, np.where(to_spot, now.argmax(axis=0), zone))
        setup_s = np.where(to_demand | to_spot, progress.change_s, setup_s)
        running = active & (zone != -1)
        wanted = progress.instances[stage]
        # what is held again after a loss is new, and so is what a stage adds
        started += np.where(running, np.maximum(wanted - np.where(to_demand | to_spot, 0, held), 0), 0)
        held = np.where(running, wanted, 0)
        waiting_s = np.minimum(setup_s, STEP_S) * running
        unpaid_s = np.clip(setup_s - progress.paid_change_s, 0.0, waiting_s)
        work_s = np.minimum(np.where(running, STEP_S - waiting_s, 0.0), total_s - done_s)
        billed = wanted * np.where(running, waiting_s - unpaid_s + work_s, 0.0)
        spot_s += np.where(zone >= 0, billed, 0.0)
        demand_s += np.where(zone == -2, billed, 0.0)
        demand_time_s += np.where(zone == -2, work_s, 0.0)
        setup_s = setup_s - waiting_s
        done_s = done_s + work_s
        clock = np.where(active, step * STEP_S + np.where(running, waiting_s + work_s, STEP_S), clock)
        active = active & (done_s < total_s - 1e-6)
        if not active.any():
            break
    instances_usd = (spot_s * spot_usd_per_hour + demand_s * machine.usd_per_hour) / 3600.0
    return ThriftyRuns(
        seconds=np.where(active, np.inf, clock),
        cost_usd=instances_usd + started * machine.ingress_usd + clock * machine.head_usd_per_second,
        on_demand_fraction=demand_time_s / np.maximum(total_s, 1e-9),
    )


def estimate_remaining_s(progress: PlanProgress, done_s: FloatArray, stage: IntArray, begin: FloatArray) -> FloatArray:
    """Estimate the time for the rest of the plan with the net's confidence: linear within a stage."""
    rows = np.arange(len(done_s))
    length = np.maximum(progress.ends[stage, rows] - begin, 1e-9)
    left = 1 - np.clip((done_s - begin) / length, 0.0, 1.0)
    later = progress.remaining_s[stage + 1]
    return np.asarray(later + (progress.remaining_s[stage] - later) * left)
