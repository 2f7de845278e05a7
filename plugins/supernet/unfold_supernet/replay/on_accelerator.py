"""Subnets of a run on the simulated accelerator: latency and energy by batch size, and the cached subgraph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unfold_supernet._types import IntArray
from unfold_supernet.accelerator import cost_model
from unfold_supernet.accelerator.hardware import Accelerator
from unfold_supernet.accelerator.layers import SubnetLayers
from unfold_supernet.replay.problem import AcceleratorTarget
from unfold_supernet.scheduling.escalation import get_small_subnet, set_pair_latency
from unfold_supernet.scheduling.policies import SubnetProfile
from unfold_supernet.scheduling.simulator import ReplayOutcome
from unfold_supernet.study.study import build_decision
from unfold_supernet.study.sweep import build_setup

BATCHES = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceleratedSubnets:
    """Subnets with the accelerator's costs.

    Attributes:
        profiles: Subnets and pairs with the accelerator's latencies.
        joules: Energy by subnet and batch size.
        switch_s: Seconds to load the largest subnet.
        decision: The cached subgraph, as data.
        largest_bytes: Bytes of the largest subnet.
        machine_name: Name of the accelerator.
    """

    profiles: tuple[SubnetProfile, ...]
    joules: Mapping[tuple[str, int], float]
    switch_s: float
    decision: Mapping[str, Any]
    largest_bytes: int
    machine_name: str

    def estimate_millijoules(self, outcome: ReplayOutcome) -> float:
        """Estimate the mean energy of a served request in mJ, interpolated linearly between batch sizes."""
        total, sizes = 0.0, np.array(BATCHES, np.float64)
        for index, profile in enumerate(self.profiles):
            batches = outcome.batch_size[outcome.subnet == index]
            joules = np.array([self.joules[profile.name, size] for size in BATCHES])
            total += float((np.interp(batches, sizes, joules) / np.maximum(1, batches)).sum())
        return total / max(1, int((outcome.subnet >= 0).sum())) * 1e3


@dataclass(frozen=True, slots=True)
class _BatchCosts:
    """Profile of a subnet, and its energy by batch size."""

    profile: SubnetProfile
    joules: Mapping[int, float]


def accelerate_subnets(target: AcceleratorTarget, profiles: Sequence[SubnetProfile]) -> AcceleratedSubnets:
    """Compute the costs of subnets and pairs on the accelerator, with the family's static subgraph cached."""
    family, machine = target.family, target.machine
    setup = build_setup(family, machine)
    costs = {subnet.name: _compute_costs(subnet, setup.cached.graph, machine) for subnet in family.subnets}
    joules = {(name, size): spent for name, cost in costs.items() for size, spent in cost.joules.items()}
    accelerated = []
    for profile in profiles:
        small, large = costs[get_small_subnet(profile)], costs.get(profile.fallback or "")
        if large is None:
            accelerated.append(small.profile)
            continue
        accelerated.append(set_pair_latency(profile, small.profile, large.profile))
        for size in BATCHES:
            joules[profile.name, size] = small.joules[size] + profile.unsure_fraction * large.joules[size]
    largest_bytes = max(int(subnet.weights.sum()) for subnet in family.subnets) * machine.weight_bytes
    return AcceleratedSubnets(
        profiles=tuple(accelerated),
        joules=joules,
        switch_s=largest_bytes / machine.bandwidth,
        decision=build_decision(family, setup, target.query_policy, target.keep),
        largest_bytes=largest_bytes,
        machine_name=machine.name,
    )


def _compute_costs(subnet: SubnetLayers, cached: IntArray, machine: Accelerator) -> _BatchCosts:
    works = {size: cost_model.build_work(subnet, machine, size) for size in BATCHES}
    seconds = tuple((size, cost_model.estimate_latency(work, cached, machine)) for size, work in works.items())
    joules = {size: cost_model.estimate_energy(work, cached, machine, size) for size, work in works.items()}
    return _BatchCosts(SubnetProfile(subnet.name, subnet.accuracy, seconds), joules)
