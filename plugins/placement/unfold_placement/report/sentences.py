"""The sentences that users of placements read: headlines, lines, and errors of a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from unfold_placement.core.explain import Reason, abbreviate_names
from unfold_placement.simulation.deadlock_check import Counterexample
from unfoldkit.api import format_count, format_percent

GANTT_TITLE = "Which tasks run on which node, and when"
JOBS_TITLE = "When each job waits and runs"
WAITS, RUNS = "waits", "runs"
QUEUE_TITLE = "Tasks that wait and run, over time"
WAITING = "(no node yet)"
NEVER_STARTS = "never starts"
STARVES = "still waits"
NODE_LOST = "lost"
HOLDS, VIOLATED, BY_DESIGN = "holds", "counterexample", "by design"
NOT_CLAIMED, NO_GANGS, NO_RULE = "not claimed", "no gangs", "no rule to check"
MAX_REASONS = 6
"""Reasons that the report lists before it counts the others."""
ASK_FOR_PLAN = "Does every task run, and is every rule of the policy kept?"
ASK_FOR_VERIFICATION = "Do the policies keep their promises, in whatever order jobs arrive and end?"
ASK_FOR_CHANGE = "Does every workload still start, and which start earlier or later?"
ASK_FOR_STARTS = "Does every workload start, and when?"


def stuck_headline(count: int, first_task: str) -> str:
    """Return the headline of a replay in which tasks wait forever."""
    return f"{format_count(count, 'task')} {'waits' if count == 1 else 'wait'} forever, the first is {first_task}"


def violation_headline(count: int, first_violation: str) -> str:
    """Return the headline of a replay that violates its policies."""
    return f"{_count_violations(count)}, the first at {first_violation}"


def unplaceable_headline(count: int, first_task: str, placed: int, makespan_s: float) -> str:
    """Return the headline of a replay from which tasks were left out."""
    duration = format_seconds(makespan_s)
    return (
        f"{format_count(count, 'task')} can never run, the first is {first_task}; "
        f"{'the other one is' if placed == 1 else f'the other {placed:,} are'} done in {duration}"
    )


def success_headline(
    placed: int, makespan_s: float, baseline_violations: int, baseline_makespan_s: float, rejected: int = 0
) -> str:
    """Return the headline of a replay without violations, beside the same workload without policies."""
    baseline = f"{_count_violations(baseline_violations)} and {format_seconds(baseline_makespan_s)}"
    rejections = f", {rejected:,} rejected" if rejected else ""
    done = f"{format_count(placed, 'task')} done in {format_seconds(makespan_s)}{rejections}"
    return f"{done}, every rule of the policy kept; without the policy {baseline}"


def bottleneck_line(bottleneck: str, utilisation: float) -> str:
    """Return the line about the kind with the highest utilisation."""
    return f"{bottleneck}: {format_percent(utilisation)} in use from the first arrival to the last start"


def baseline_line(first_violation: str) -> str:
    """Return the line about the replay without policies; an empty text means no violation."""
    return first_violation or "the same rules hold without the policy"


def rejection_line(count: int, first_task: str, reason: str) -> str:
    """Return the line about rejected tasks."""
    return f"{format_count(count, 'task')}, the first is {first_task}: {reason}"


def explanation_line(task: str, at_s: float, dominant: str) -> str:
    """Return the line with the dominant reason of an explained wait; its table lists every requirement."""
    return f"at {at_s:,.1f} s {wait_phrase(task, dominant)} (explain.task selects another)"


def wait_phrase(task: str, wait: str) -> str:
    """Return a task with the reason for which it waits, such as ``a-0 waits for room``."""
    return f"{task} is {wait}" if wait.startswith("set aside") else f"{task} {wait}"


def explanation_title(task: str, at_s: float) -> str:
    """Return the title of the table of an explained wait."""
    return f"why {task} waits at {at_s:g} s"


def unplaceable_lines(reasons: Mapping[str, str]) -> list[str]:
    """Return a line for each reason why tasks can never run, the most common first, with some of the names."""
    names_by_reason: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names_by_reason.setdefault(reason, []).append(name)
    commonest = sorted(names_by_reason.items(), key=lambda pair: -len(pair[1]))
    lines = [f"{reason}: {abbreviate_names(names, len(reasons) + 1)}" for reason, names in commonest[:MAX_REASONS]]
    hidden = len(commonest) - MAX_REASONS
    return [*lines, f"and {format_count(hidden, 'other reason')}"] if hidden > 0 else lines


def counterexample_message(counterexample: Counterexample) -> str:
    """Return the error about jobs that deadlock."""
    jobs, count = " and ".join(counterexample.jobs), len(counterexample.stuck)
    waiting = f"{format_count(count, 'task')} {'waits' if count == 1 else 'wait'} forever"
    return f"unsatisfiable: with {jobs} alone on the empty cluster, {waiting} and {counterexample.finished} ran"


def counterexample_hint(counterexample: Counterexample) -> str:
    """Return the hint about jobs that deadlock: why a stuck task waits, what it needs, and where it could have it."""
    requirements = [
        f"{reason.requirement} ({reason.set_by}): {reason.available_on or 'nowhere'}"
        for reason in counterexample.reasons
    ]
    missing = missing_requirement(counterexample.reasons)
    wait = wait_phrase(counterexample.explained, counterexample.wait)
    blocked = f"; {counterexample.blocked}, which runs alone, waits forever behind it" if counterexample.blocked else ""
    return f"{wait}; it lacks {missing}, and needs {', '.join(requirements)}{blocked}"


def missing_requirement(reasons: tuple[Reason, ...]) -> str:
    """Return the first requirement that no node meets."""
    missing = next((reason for reason in reasons if not reason.available_on), None)
    return missing.requirement if missing is not None else "all requirements on one node"


def format_seconds(value: float) -> str:
    """Return a duration in whole seconds, or with two digits below ten seconds."""
    return f"{value:,.0f} s" if value >= 10 else f"{value:.2g} s"


def starvation_headline(task: str) -> str:
    """Return the headline of a replay in which the wait of a task grows with the trace."""
    return f"{task} starves: it starts only when no more tasks arrive, and waits longer in a longer trace"


def starvation_line(task: str, shorter: tuple[float, float], whole: tuple[float, float]) -> str:
    """Return the line about a growing wait: pairs of wait and length of the trace in seconds."""
    waits = f"{format_seconds(shorter[0])} in a trace of {format_seconds(shorter[1])}"
    return f"{task} waits {waits}, and {format_seconds(whole[0])} in one of {format_seconds(whole[1])}"


def class_starvation_line(task: str) -> str:
    """Return the line about a task that waits for a stream of higher classes."""
    return f"{task} waits until no more tasks of higher classes arrive, as strict priority implies"


def preemption_line(count: int, lost_hours: Mapping[str, float]) -> str:
    """Return the line about preemptions and the work that they discarded, by kind."""
    lost = " and ".join(f"{hours:.3g} {kind}-hours" for kind, hours in lost_hours.items() if kind in {"cpu", "gpu"})
    return f"{count:,} {'preemption' if count == 1 else 'preemptions'} discarded {lost or 'no work'}"


def node_loss_line(count: int, stopped: int, lost_hours: Mapping[str, float]) -> str:
    """Return the line about nodes that went down, and the work that this discarded, by kind."""
    nodes = format_count(count, "node")
    if not stopped:
        return f"{nodes} went down and stopped no task"
    lost = " and ".join(f"{hours:.3g} {kind}-hours" for kind, hours in lost_hours.items() if kind in {"cpu", "gpu"})
    return f"{nodes} went down and stopped {format_count(stopped, 'task')}, which lost {lost or 'no work'}"


def unaudited_line(policies: Sequence[str]) -> str:
    """Return the line about policies with rules that no audit checks."""
    return f"violations do not cover {', '.join(policies)}"


def default_line(file: str, column: str, default: str, counts: tuple[int, int]) -> str:
    """Return the line about rows without a value: how many of how many used which default."""
    return f"{file}: {counts[0]:,} of {counts[1]:,} rows have no {column}; they use {default}"


def unstarted_line(file: str, counts: tuple[int, int]) -> str:
    """Return the line about rows without a start, which run from their arrival although they may never have run."""
    start = f"{file}: {counts[0]:,} of {counts[1]:,} rows have no start; they run from their arrival"
    return f"{start} (missing: {{start: skip}} leaves them out)"


def whole_trace_line(file: str, counts: tuple[int, int]) -> str:
    """Return the line about rows with neither arrival nor end, which run as long as the whole file."""
    rows = f"{file}: {counts[0]:,} of {counts[1]:,} rows have neither arrival nor end; they run as long as the file"
    return f"{rows} (missing: {{arrival: skip}} leaves them out)"


def mixed_zones_line(file: str) -> str:
    """Return the line about a file in which only some dates have a time zone."""
    return f"{file}: some times have a time zone and others have none; those without one are read as UTC"


def array_line(file: str, tasks: int, arrays: int, limited: int) -> str:
    """Return the line about rows that are arrays of Slurm.

    Args:
        file: Name of the file.
        tasks: The tasks of all arrays.
        arrays: Number of rows that are arrays.
        limited: Arrays with a limit of tasks at a time, such as ``%2``.
    """
    limits = f"; {format_count(limited, 'limit')} of tasks at a time (%) not read" if limited else ""
    return f"{file}: {format_count(tasks, 'task')} of {format_count(arrays, 'job array')}, each read as a row{limits}"


def unread_amounts_line(file: str, columns: Mapping[str, str]) -> str:
    """Return the line about kinds without amounts in a table, with the columns by kind that look like amounts."""
    named = ", ".join(f"{kind}: {column}" for kind, column in columns.items())
    unread = f"{file}: no task demands {' or '.join(columns)}; {', '.join(columns.values())} may be amounts"
    return f"{unread} (columns: {{{named}}} maps them)"


def zero_run_line(file: str, counts: tuple[int, int], column: str = "run") -> str:
    """Return the line about rows with a run time of zero, as of jobs that were cancelled while they waited.

    Args:
        file: Name of the file.
        counts: Such rows, and all rows.
        column: Column that states the end of a run: ``run`` or ``end``.
    """
    rows = f"{file}: {counts[0]:,} of {counts[1]:,} rows run for 0 s"
    return f"{rows} (unknown: {{{column}: [0]}} with missing: {{{column}: skip}} leaves them out)"


def unlisted_line(file: str, column: str, counts: tuple[int, int]) -> str:
    """Return the line about rows that name jobs which no row has."""
    rows = f"{file}: {counts[0]:,} of {counts[1]:,} rows"
    return f"{rows} refer in {column} to jobs without a row; these references are ignored"


def resource_claims_line(file: str, count: int) -> str:
    """Return the line about pods with resource claims, which no list of pods resolves."""
    return f"{file}: {format_count(count, 'pod')} with resource claims; the claimed devices are not counted"


def skipped_line(file: str, column: str, counts: tuple[int, int], line: int) -> str:
    """Return the line about rows that were left out for lack of a value."""
    return f"{file}: left out {counts[0]:,} of {counts[1]:,} rows without {column}; the first is line {line}"


def agreement_headline(count: int, same: int, later: int) -> str:
    """Return the headline of a shadow: of how many tasks the policies agree with kube-scheduler."""
    if not count:
        return "no task arrived while the shadow ran"
    tasks = format_count(count, "task")
    return f"{same:,} of {tasks} got the node that kube-scheduler chose; {later:,} would have waited"


def _count_violations(count: int) -> str:
    return "1 violation" if count == 1 else f"{count:,} violations"


def counterexample_headline(property_name: str, victim: str, length: int) -> str:
    """Return the headline of a verification with a counterexample."""
    return f"{property_name}: {length} actions lead to a violation for {victim}, and the replay confirms it"


def counterexample_title(property_name: str, victim: str, *, is_by_design: bool = False) -> str:
    """Return the title of the timeline of a counterexample, or of what the policy does by design."""
    return f"{'By design' if is_by_design else 'Counterexample'}, replayed: {property_name}, job {victim}"


def verified_headline(nodes: int, jobs: int, states: int, by_design: Sequence[str] = ()) -> str:
    """Return the headline of a complete verification without a counterexample.

    Args:
        nodes: Nodes of the largest cluster.
        jobs: Jobs in flight.
        states: States that were reached.
        by_design: Properties that the policy breaks by design.
    """
    extent = f"up to {format_count(nodes, 'node')} and {jobs} jobs in flight"
    text = f"no violation with {extent}, whichever job ends first ({states:,} states)"
    return f"{text}; by design: {', '.join(by_design)}" if by_design else text


def incomplete_headline(states: int) -> str:
    """Return the headline of a verification that found nothing and did not reach every state."""
    return f"nothing found in {states:,} states, but the search is incomplete and claims nothing"


def never_starting_line(job: str) -> str:
    """Return the line about a job that can never start under its policies."""
    start = f"{job} cannot start even alone on the empty cluster, so its waiting is not judged"
    return f"{start}; unfold plan explains why"


def bound_line(nodes: int, jobs: int) -> str:
    """Return the line about the extent of a verification."""
    return f"up to {format_count(nodes, 'node')} and {jobs} jobs at a time; larger cases are not covered"


def by_design_line(property_name: str) -> str:
    """Return the line about a consequence of a strict order or of classes."""
    if property_name == "head of line":
        return "a strict order leaves capacity idle behind a task that does not fit; backfill: true uses it"
    return f"a stream of a higher class causes {property_name} in lower ones, as strict priority implies"


def time_dependent_line(policy: str) -> str:
    """Return the line about a policy with a state that never recurs."""
    return f"{policy} depends on real time: the search covers it without time, so the result proves nothing"


def name_dependent_line(policy: str) -> str:
    """Return the line about a policy that decides by the names of jobs."""
    return f"{policy} decides otherwise if jobs have other names: the search covers few names, and proves nothing"


def unconfirmed_line(count: int) -> str:
    """Return the line about findings that the simulator did not show."""
    return f"{count} {'finding' if count == 1 else 'findings'} of the search did not appear in the replay"


def replay_start_line(*, is_history: bool) -> str:
    """Return the line about the beginning of a replay of Kueue's queues."""
    if is_history:
        return "nothing runs or waits in the file, so the workloads that ended are replayed from the first arrival"
    return "the replay begins with the latest time in the file; running workloads keep their quota until they end"


def run_time_line(count: int, source: str) -> str:
    """Return the line about the run time of workloads that have not ended."""
    return f"the run time of {_count_workloads(count)} is {source}"


def overdue_line(count: int) -> str:
    """Return the line about running workloads that already ran longer than estimated."""
    end = "it ends" if count == 1 else "they end"
    return f"{_count_workloads(count)} already ran longer than that; {end} when the replay begins"


def left_out_line(count: int, reason: str) -> str:
    """Return the line about workloads that are left out."""
    return f"left out {_count_workloads(count)}: {reason}"


def missing_flavor_line(queue: str, flavor: str) -> str:
    """Return the line about a ClusterQueue with a flavor that does not exist."""
    return f"{queue} admits nothing: the file has no ResourceFlavor {flavor}"


def no_flavors_line() -> str:
    """Return the line about a file without any ResourceFlavor."""
    return "the file has no ResourceFlavor; every flavor is assumed to have no labels or taints"


def stopped_queue_line(queue: str, reason: str) -> str:
    """Return the line about a ClusterQueue that admits nothing."""
    return f"{queue} admits nothing ({reason})"


def fair_sharing_line(queue: str) -> str:
    """Return the line about a ClusterQueue with a weight for fair sharing."""
    return f"{queue} has a fairSharing weight; the replay assumes that fair sharing is disabled"


def admission_check_line(queue: str) -> str:
    """Return the line about a ClusterQueue with admission checks."""
    return f"{queue} has admission checks; the replay assumes that they are ready at once"


def unknown_namespace_line(queue: str, namespace: str) -> str:
    """Return the line about a selector of namespaces with unknown labels."""
    return f"the namespaceSelector of {queue} is assumed to accept {namespace}: the file has no Namespace {namespace}"


def starts_headline(count: int, never: int, last_start_s: float) -> str:
    """Return the headline of a replay of Kueue's queues without a change."""
    if never:
        return f"{_count_workloads(never)} of {count:,} never {'starts' if never == 1 else 'start'}"
    verb = "starts" if count == 1 else "start"
    when = f"after {format_seconds(last_start_s)}" if last_start_s >= 0 else "before the replay begins"
    return f"{_count_workloads(count)} {verb}, the last {when}"


def change_headline(earlier: int, later: int, same: int, newly_never: int) -> str:
    """Return the headline of a change of quotas."""
    verb = "starts" if earlier == 1 else "start"
    text = f"{_count_workloads(earlier)} {verb} earlier, {later:,} later, {same:,} at the same time"
    return f"{text}; {newly_never:,} no longer {'starts' if newly_never == 1 else 'start'}" if newly_never else text


def quota_change_line(name: str, flavor: str, resource: str, before: str, after: str) -> str:
    """Return the line about a quota that changes."""
    return f"{name}: {resource} in flavor {flavor} from {before} to {after}"


def start_line(name: str, start: str, shift_s: float | None, preemptions: int) -> str:
    """Return the line about when a workload starts, and by how much earlier or later with the change.

    Args:
        name: The workload.
        start: When it starts, as text.
        shift_s: By how many seconds it starts later; None without a change.
        preemptions: How often it is preempted before.
    """
    text = f"{name} starts at {start}"
    if shift_s is not None:
        moved = f"{format_seconds(abs(shift_s))} {'earlier' if shift_s < 0 else 'later'}"
        text += f", {moved} than without the change" if abs(shift_s) >= 1 else ", as without the change"
    if preemptions:
        text += f", after {preemptions:,} {'preemption' if preemptions == 1 else 'preemptions'}"
    return text


def never_starts_line(name: str, reason: str) -> str:
    """Return the line about a workload that never starts, or never ends without being preempted."""
    return f"{name} never starts: {reason or 'others always come first'}"


def quota_above_nodes_line(resource: str, quota: str, capacity: str) -> str:
    """Return the line about quotas that promise more than the nodes offer."""
    return f"the quotas of {resource} ({quota}) exceed what the nodes offer ({capacity}): admitted pods may still wait"


def ignored_field_line(field: str, policy: str) -> str:
    """Say that a field of tasks has no effect without its policy."""
    return f"{field} of tasks has no effect without the policy {policy}"


def admission_only_line() -> str:
    """Return the line about what a replay of quotas does not cover."""
    return "a start is the admission by quota; nodes, images and a preempted workload's checkpoints are not replayed"


def manager_settings_line(version: str) -> str:
    """Return the line about settings that Kueue's objects do not show."""
    return f"rules of Kueue {version} with default feature gates; settings of its manager are not in the objects"


def _count_workloads(count: int) -> str:
    return "1 workload" if count == 1 else f"{count:,} workloads"
