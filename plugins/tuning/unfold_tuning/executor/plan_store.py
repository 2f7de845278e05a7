"""The plan of a run as facts of its ledger: a resumed run continues with the allocations that it began with."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from unfold_tuning.executor.execution import ExecutionConfig
from unfold_tuning.job.allocation import Allocation, Plan
from unfold_tuning.trial.ledger import Ledger


@dataclass(frozen=True, slots=True)
class PlanStore:
    """Plans from each stage on, and the allocation of each stage that has begun."""

    config: ExecutionConfig
    ledger: Ledger

    def load_plan(self, index: int) -> Plan | None:
        """Load the plan from a stage on, made for the same deadline and limit."""
        stored = self.ledger.read_fact(self._build_plan_key(index))
        return tuple(Allocation(*row) for row in stored) if stored else None

    def store_plan(self, index: int, plan: Plan) -> None:
        """Store the plan from a stage on."""
        self.ledger.record_fact(self._build_plan_key(index), [_encode(allocation) for allocation in plan])

    def begin_stage(self, index: int, planned: Allocation) -> Allocation:
        """Store the allocation that a stage begins with, and return the one that it has, if it began before."""
        self.ledger.record_fact(f"deal-{index}", _encode(planned))
        return self.load_allocation(index)

    def load_allocation(self, index: int) -> Allocation:
        """Load the allocation of a stage that has begun, as it is since the last loss of a node."""
        rescalings = self._count_rescalings(index)
        key = f"deal-{index} after {rescalings}" if rescalings else f"deal-{index}"
        return Allocation(*self.ledger.read_fact(key))

    def rescale_stage(self, index: int, allocation: Allocation) -> None:
        """Store the allocation that a running stage continues with."""
        self.ledger.record_fact(f"deal-{index} after {self._count_rescalings(index) + 1}", _encode(allocation))

    def _count_rescalings(self, index: int) -> int:
        """Count how often a stage continued with another number of instances."""
        keys = ((count, f"deal-{index} after {count + 1}") for count in itertools.count())
        return next(count for count, key in keys if self.ledger.read_fact(key) is None)

    def _build_plan_key(self, index: int) -> str:
        return f"plan-{index} by {self.config.deadline_s} on {self.config.machine.max_instances}"


def _encode(allocation: Allocation) -> list[int]:
    return [allocation.instances, allocation.workers, allocation.slots]
