"""The verb ``plan``: replay the workload under its policies, and beside it the same workload without any."""

from __future__ import annotations

from unfold_placement.core.policy import policy_error
from unfold_placement.core.watchdog import contain_policies
from unfold_placement.kueue.comparison import QueueProblem, compare_starts
from unfold_placement.report.plan import format_placements, plan_report
from unfold_placement.report.queue_change import format_admissions, queue_report
from unfold_placement.report.sentences import counterexample_hint, counterexample_message, unplaceable_lines
from unfold_placement.schema.placement import PlacementSpec
from unfold_placement.simulation.replay import Monitor, Screening, screen_tasks, solve_problem
from unfold_placement.workload.build import build_problem, build_queue_problem
from unfoldkit.api import Report, Run, user_error

PLACEMENTS_FILE = "placement.csv"
ADMISSIONS_FILE = "admission.csv"


def plan(spec: PlacementSpec, run: Run) -> Report:
    """Place the workload under its policies and report the result beside a replay without policies.

    A workload of Kueue's objects is replayed under Kueue's rules instead, with the changed quotas and without.

    Raises:
        UnfoldError: Jobs block each other, or a written task can never start; the error shows the counterexample.
            Recorded or generated tasks that can never start are left out and reported.
    """
    queues = build_queue_problem(spec, run)
    if queues is not None:
        return _plan_queues(queues, run)
    problem = build_problem(spec, run)
    with contain_policies(run.log.warning):
        screening = screen_tasks(problem)
        _check_feasible(screening)
        solution = solve_problem(screening, Monitor(run.clock, run.progress))
    run.directory.write(PLACEMENTS_FILE, format_placements(solution.policy.result, screening.excluded).encode())
    return plan_report(screening, solution)


def _plan_queues(problem: QueueProblem, run: Run) -> Report:
    """Replay Kueue's queues with and without a change of quotas."""
    count = len(problem.after.workloads)
    changes = compare_starts(problem, lambda starts: run.progress("replay", min(starts, count), count))
    run.directory.write(ADMISSIONS_FILE, format_admissions(changes).encode())
    return queue_report(problem, changes)


def _check_feasible(screening: Screening) -> None:
    if not screening.problem.tasks:
        raise user_error("no task can ever run", key="workload", hint="; ".join(unplaceable_lines(screening.reasons)))
    if (counterexample := screening.counterexample) is not None:
        message, hint = counterexample_message(counterexample), counterexample_hint(counterexample)
        if counterexample.culprit is not None:
            hint = f"{hint}; a policy is built many times, so its state belongs in the object"
            raise policy_error(counterexample.culprit, "react", message, hint=hint)
        raise user_error(message, key="policy", hint=hint)
