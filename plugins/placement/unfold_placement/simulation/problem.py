"""The placement problem: nodes, tasks and policies, resolved from a spec."""

from __future__ import annotations

from dataclasses import dataclass

from unfold_placement.core.policy import Policy
from unfold_placement.core.types import Node, NodeChange, Task
from unfold_placement.policies.registry import PolicyRule, build_policies


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Tasks to place on nodes under policies.

    Attributes:
        name: Name of the spec.
        nodes: The nodes, in matching order.
        tasks: The tasks, in order of the spec or trace.
        rules: The configured policies.
        allow_code: User classes named by the spec may be imported.
        is_recorded: The workload is a trace or generated. Tasks that can never run are then left out; in a written
            workload they are errors.
        explained_task: Task of the wait that the report explains; empty selects the longest wait.
        explained_at_s: Time (s) at which its wait is explained; None is the middle of the wait.
        notes: What reading the input left out or replaced, for the report.
        node_changes: When nodes go down, are cordoned or come back.
    """

    name: str
    nodes: tuple[Node, ...]
    tasks: tuple[Task, ...]
    rules: tuple[PolicyRule, ...] = ()
    allow_code: bool = False
    is_recorded: bool = False
    explained_task: str = ""
    explained_at_s: float | None = None
    notes: tuple[str, ...] = ()
    node_changes: tuple[NodeChange, ...] = ()

    @property
    def policy_names(self) -> str:
        """The names of the policies, as keys of the spec."""
        return " + ".join(rule.name.replace("_", "-") for rule in self.rules) or "no policy"

    def new_policies(self) -> list[Policy]:
        """Build new policies, without state of an earlier run."""
        return build_policies(self.rules, allow_code=self.allow_code)
