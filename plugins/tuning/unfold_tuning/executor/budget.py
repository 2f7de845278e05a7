"""The hard cap on the bill of a run: checked while it runs, and before it grows."""

from __future__ import annotations

from dataclasses import dataclass

from unfold_tuning.executor.inputs_and_outcome import ExecutionConfig
from unfold_tuning.executor.messages import describe_budget_stop
from unfold_tuning.trial.ledger import Ledger

MAX_INTERVAL_S = 60.0
"""Longer intervals between two checks of the budget, such as a suspended machine, are not expected again."""


class BudgetExceeded(Exception):  # noqa: N818 - not an error of the user: the cap did its job
    """The next step would cost more than the cap allows."""


@dataclass(slots=True)
class BudgetGuard:
    """Stops a run before its bill exceeds the cap; without a cap it only records which instances are alive.

    Attributes:
        config: The run.
        ledger: Its ledger.
        watched_at: Wall time of the last check.
        max_interval_s: The longest interval between two checks.
    """

    config: ExecutionConfig
    ledger: Ledger
    watched_at: float = 0.0
    max_interval_s: float = 0.0

    def watch(self) -> None:
        """Record that all instances are alive, and stop before the budget is exceeded.

        Raises:
            BudgetExceeded: The next moment would cost more than the cap allows.
        """
        now = self.config.wall()
        if self.watched_at:
            self.max_interval_s = max(self.max_interval_s, min(now - self.watched_at, MAX_INTERVAL_S))
        self.watched_at = now
        self.ledger.record_nodes_alive(now)
        self.require(0)

    def require(self, instances: int) -> None:
        """Require budget for growing to a number of instances.

        The estimate is the bill so far, the minimum charge of new nodes, and what all nodes cost until they are
        released: two of the longest intervals between two checks, and at least a second or a billing increment.

        Raises:
            BudgetExceeded: It would cost more than the cap allows.
        """
        budget_usd, machine = self.config.budget_usd, self.config.machine
        if budget_usd is None:
            return
        running = [lifetime for lifetime in self.ledger.list_lifetimes() if lifetime.until is None]
        usd_per_second = sum(lifetime.price for lifetime in running) / 3600.0
        new = max(0, instances - len(running))
        minimum_usd = float(machine.billing.cost(0.0, machine.usd_per_hour)) * new
        step_usd = usd_per_second * max(1.0, machine.billing.increment, 2 * self.max_interval_s)
        if self.ledger.compute_spent_usd() + step_usd + minimum_usd > budget_usd:
            raise BudgetExceeded(describe_budget_stop(budget_usd))
