"""Verify a composition of policies: a menu of small clusters and jobs, every order of arrivals and ends, to a bound."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from unfold_placement.core.policy import POLICY_FAILURES, Policy, describe_error, is_shipped, policy_error
from unfold_placement.core.types import DOWN, GANG, MILLI, QUEUE, Node, Task
from unfold_placement.policies.registry import CUSTOM, PolicyRule, has_policy
from unfold_placement.simulation.deadlock_check import job_signature
from unfold_placement.simulation.policy_side_effects import check_inputs_unchanged, check_log, copy_inputs
from unfold_placement.simulation.problem import Problem
from unfold_placement.simulation.simulator import collect_result, prepare_simulation, run_simulation
from unfold_placement.verification.counterexample import Counterexample, confirm
from unfold_placement.verification.scenario import KIND_END, Kind, Scenario
from unfold_placement.verification.search import HEAD_OF_LINE, Finding, SearchResult, search
from unfold_placement.verification.streams import find_in_stream
from unfoldkit.api import UnfoldError

MAX_NODES, MAX_KINDS = 3, 4
"""Largest cluster and number of kinds that are taken from a spec as they are."""
GPUS_PER_NODE = 2
TIME_DEPENDENT = frozenset({"history", "locality"})
"""Policies with a state that never recurs: their decisions depend on real time."""
PATIENT = {"gang": "patience"}
"""Options that count as passed: they only delay what a policy does in the long run."""
HIGH_PRIORITY = 5
LONG_RUN_S = 36_000.0
DOUBTFUL_SHARE = 10
"""After an incomplete search, further ones stop at this fraction of the bound's states."""


IDLE_WAKES_OF_CHECK = 1000
"""Timers that may fire in vain in a replay which checks that policies change nothing behind their view."""


@dataclass(frozen=True, slots=True)
class Bound:
    """The extent of a verification: jobs in flight, sizes of the cluster, and states of each search.

    On a node for a single task one job more is in flight: a task can then wait between two others that wait.
    """

    jobs_in_flight: int = 3
    node_counts: tuple[int, ...] = (1, 2)
    max_states: int = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchRecord:
    """One search: its scenario in words and its extent."""

    nodes: int
    kinds: str
    victim: str
    jobs_in_flight: int
    states: int
    transitions: int
    is_complete: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What a verification found.

    Attributes:
        counterexamples: Confirmed violations, the shortest of each property first.
        by_design: Confirmed consequences of a strict order or of classes, which no guard removes.
        unconfirmed: Findings that the simulator did not show.
        searches: The searches.
        time_dependent: Policies which decide by the time, or set timers: no absence is claimed for them.
        name_dependent: Policies which decide by the names of jobs; a search covers few of them, and claims nothing.
    """

    counterexamples: tuple[Counterexample, ...]
    by_design: tuple[Counterexample, ...]
    unconfirmed: int
    searches: tuple[SearchRecord, ...]
    time_dependent: tuple[str, ...]
    name_dependent: tuple[str, ...] = ()

    @property
    def is_complete(self) -> bool:
        """Whether absence is claimed: every search reached all states, and no policy depends on time or names."""
        is_doubtful = bool(self.time_dependent or self.name_dependent)
        return not is_doubtful and all(record.is_complete for record in self.searches)

    @property
    def extent(self) -> tuple[int, int]:
        """Nodes of the largest cluster, and jobs in flight on it."""
        return max((record.nodes, record.jobs_in_flight) for record in self.searches)


def check_copies(policies: Sequence[Policy]) -> None:
    """Check that policies can be copied: the search continues every state with copies of them.

    Raises:
        UnfoldError: A policy keeps what cannot be copied, such as an open file, a lock or a generator.
    """
    for policy in policies:
        try:
            copy.deepcopy(policy)
        except POLICY_FAILURES as error:
            message = f"the search cannot copy it: {describe_error(error)}"
            hint = "open files and locks when they are needed, or define __deepcopy__"
            raise policy_error(policy, "__init__", message, hint=hint) from error


def check_replays(problem: Problem, bound: Bound) -> UnfoldError | None:
    """Check that a user's policies change nothing behind their view: a search, which ends jobs itself, misses that.

    Returns:
        What the first policy that failed raised. The search finds it too, and shows what leads to it, unless time must
        pass; None if none failed.

    Raises:
        UnfoldError: One of them changed a task, a node or the arrays of the cluster.
    """
    failure = None
    for scenario in list_scenarios(problem, bound) if has_policy(problem.rules, CUSTOM) else ():
        tasks = tuple(task for kind in scenario.kinds for task in kind.slot_tasks(0))
        original = replace(problem, nodes=scenario.nodes, tasks=tasks, node_changes=())
        copied = copy_inputs(original)
        try:
            controller = prepare_simulation(copied.nodes, copied.tasks, problem.new_policies())
            run_simulation(controller, max_idle_wakes=IDLE_WAKES_OF_CHECK)
        except UnfoldError as error:
            failure = failure or error
            continue
        check_inputs_unchanged(controller.table, original)
        check_log(collect_result(controller), original)
    return failure


def verify_policies(problem: Problem, bound: Bound, progress: Callable[[str, int, int], None]) -> Verification:
    """Search the menu of a problem for violations of its policies."""
    patient = replace(problem, rules=tuple(_without_patience(rule) for rule in problem.rules))
    scenarios = list_scenarios(patient, bound)
    found: dict[str, Counterexample] = {}
    by_design: dict[str, Counterexample] = {}
    records, unconfirmed, max_states, depends_on_time, depends_on_names = [], 0, bound.max_states, False, False
    foreign = tuple(type(policy).__name__ for policy in problem.new_policies() if not is_shipped(type(policy)))
    for number, scenario in enumerate(scenarios):
        progress("verify", number, len(scenarios))
        result = search(scenario, patient.new_policies(), max_states, patient.rules)
        records.append(_record(scenario, result))
        depends_on_time |= result.depends_on_time
        if foreign and result.is_complete and not depends_on_names:
            depends_on_names = _depends_on_names(result, scenario, patient, max_states)
        suspects: tuple[Finding, ...] = ()
        if not result.is_complete:
            # absence is no longer claimed, and what there is to find takes few states
            max_states = bound.max_states // DOUBTFUL_SHARE
            suspects = _search_coarsely(scenario, patient, max_states)
        for finding in sorted((*result.findings, *suspects), key=lambda item: item.length):
            known = by_design if _is_by_design(finding.property_name, scenario) else found
            if finding.property_name in known and known[finding.property_name].finding.length <= finding.length:
                continue
            counterexample = confirm(finding, scenario, patient.new_policies, patient.rules)
            if counterexample is None:
                unconfirmed += finding not in suspects
            else:
                known[finding.property_name] = counterexample
        shown = find_in_stream(scenario, patient.new_policies) if result.depends_on_time else None
        if shown is not None:
            name = shown.finding.property_name
            (by_design if _is_by_design(name, scenario) else found).setdefault(name, shown)
    kinds = (kind for scenario in scenarios for kind in scenario.kinds)
    has_deadlines = any(math.isfinite(task.deadline) for kind in kinds for task in kind.tasks)
    timed = TIME_DEPENDENT | ({"edf"} if has_deadlines else set())
    time_dependent = [rule.name for rule in problem.rules if rule.name in timed]
    return Verification(
        counterexamples=tuple(sorted(found.values(), key=lambda item: item.finding.length)),
        by_design=tuple(sorted(by_design.values(), key=lambda item: item.finding.length)),
        unconfirmed=unconfirmed,
        searches=tuple(records),
        time_dependent=(*time_dependent, *(foreign if depends_on_time else ())),
        name_dependent=foreign if depends_on_names else (),
    )


def _depends_on_names(result: SearchResult, scenario: Scenario, problem: Problem, max_states: int) -> bool:
    """Return whether a search ends otherwise if jobs take their names in the reverse order.

    States are equal apart from the names of jobs. A policy that sorts by names, or iterates over a set of them, may
    continue such states in different ways, of which a search sees one.
    """
    reverse = search(replace(scenario, is_reversed=True), problem.new_policies(), max_states, problem.rules)
    outcomes = [
        (outcome.states, outcome.transitions, {finding.property_name for finding in outcome.findings})
        for outcome in (result, reverse)
    ]
    return outcomes[0] != outcomes[1]


def _search_coarsely(scenario: Scenario, problem: Problem, max_states: int) -> tuple[Finding, ...]:
    """Return suspects of policies with numbers that grow for ever, so that their exact states never recur."""
    return search(scenario, problem.new_policies(), max_states, problem.rules, is_coarse=True).findings


def list_scenarios(problem: Problem, bound: Bound) -> list[Scenario]:
    """Return the scenarios of a problem: its own jobs on its own nodes where these are few, else the standard menu."""
    policies = problem.new_policies()
    has_gangs = any(map(forms_gangs, policies))
    is_foreign = not all(is_shipped(type(policy)) for policy in policies)
    own = _own_kinds(problem, is_foreign=is_foreign)
    if own:
        return list(_own_scenarios(problem, own, bound.jobs_in_flight, has_gangs=has_gangs, is_foreign=is_foreign))
    scenarios = []
    for count in bound.node_counts:
        nodes = tuple(Node(f"node-{index}", {_kind(problem): GPUS_PER_NODE * MILLI}) for index in range(count))
        menu = _menu(problem, count, has_gangs=has_gangs)
        if is_foreign:
            menu += _recurring_menu(problem, count, has_gangs=has_gangs)
        for victim, others in menu:
            kinds = (*others, victim)
            scenarios.append(Scenario(nodes, kinds, victim.name, bound.jobs_in_flight, has_gangs=has_gangs))
    queues = _queue_scenarios(problem, bound.jobs_in_flight + 1, has_gangs=has_gangs, is_foreign=is_foreign)
    return [*scenarios, *queues]


def _own_scenarios(
    problem: Problem, own: tuple[Kind, ...], jobs_in_flight: int, *, has_gangs: bool, is_foreign: bool
) -> Iterator[Scenario]:
    """Yield a victim of each kind on each cluster; jobs that are no gangs also task by task, which end one by one."""
    lost = {change.node for change in problem.node_changes if change.change == DOWN}
    tasks = () if has_gangs else _split_jobs(own, is_foreign=is_foreign)
    for kinds in (own, tasks) if 0 < len(tasks) <= MAX_KINDS else (own,):
        # the victim comes once: others of its kind come before and after it
        name = f"{kinds[0].name.removesuffix(KIND_END)}-victim{KIND_END}"
        single = (replace(kinds[0], name=name),) if len(kinds) == 1 else ()
        for nodes in _list_clusters(problem, is_foreign=is_foreign):
            unsteady = tuple(node.name for node in nodes if node.name in lost)
            for kind in single or kinds:
                yield Scenario(
                    nodes, (*kinds, *single), kind.name, jobs_in_flight, has_gangs=has_gangs, unsteady=unsteady
                )


def _split_jobs(kinds: Sequence[Kind], *, is_foreign: bool) -> tuple[Kind, ...]:
    """Return a kind of a single task for each task of some kinds that differs; empty if all kinds have one task."""
    single: dict[tuple[object, ...], Kind] = {}
    for kind in kinds if any(len(kind.tasks) > 1 for kind in kinds) else ():
        for task in kind.tasks:
            name = kind.name if len(kind.tasks) == 1 else f"{kind.name.removesuffix(KIND_END)}-{len(single)}{KIND_END}"
            single.setdefault(_identify_job([task], is_foreign=is_foreign), Kind(name, (task,)))
    return tuple(single.values())


def forms_gangs(policy: Policy) -> bool:
    """Return whether a policy starts jobs as a whole: it says so, or admits the tasks of a job by one resource."""
    if getattr(policy, "gathers", "") or is_shipped(type(policy)):
        return bool(getattr(policy, "gathers", ""))
    tasks = [Task(name, {"gpu": MILLI}, 60.0, job=name[0], size=2) for name in ("a-0", "a-1", "b-0")]
    try:
        first, mate, other = ({ask.name for ask in policy.request(task)} for task in tasks)
    except POLICY_FAILURES:
        return False  # the search finds it
    return policy.phase in {QUEUE, GANG} and first == mate and not first & other


def _queue_scenarios(problem: Problem, jobs_in_flight: int, *, has_gangs: bool, is_foreign: bool) -> Iterator[Scenario]:
    """Yield a node for a single task, so that all others wait, with victims of users that sort first and last.

    A policy from outside this package may order jobs by their run times, or by what their users ran before.
    """
    first, _, names = _users(problem)
    kind = _kind(problem)
    fillers = [Kind("small", (_task(kind, 1, first),))]
    victims = [Kind("single", (_task(kind, 1, user),)) for user in names]
    if is_foreign:
        fillers.append(Kind("same", (_task(kind, 1, names[-1]),)))
        victims.append(Kind("long", (replace(_task(kind, 1, names[-1]), run=LONG_RUN_S),)))
    for victim in victims:
        nodes = (Node("node-0", {kind: MILLI}),)
        yield Scenario(nodes, (*fillers, victim), victim.name, jobs_in_flight, has_gangs=has_gangs)


def _own_kinds(problem: Problem, *, is_foreign: bool) -> tuple[Kind, ...]:
    """Return the kinds of the written jobs on a small cluster; empty where there are too many.

    Shipped policies regard run times only beside deadlines.
    """
    if problem.is_recorded or len(problem.nodes) > MAX_NODES:
        return ()
    jobs: dict[str, list[Task]] = {}
    for task in problem.tasks:
        jobs.setdefault(task.job, []).append(task)
    kinds: dict[tuple[object, ...], Kind] = {}
    for job, tasks in jobs.items():
        if any(task.after or task.follows or task.avoids for task in tasks):
            return ()
        kinds.setdefault(
            _identify_job(tasks, is_foreign=is_foreign), Kind(job.replace("~", "-") + KIND_END, tuple(tasks))
        )
    return tuple(kinds.values()) if len(kinds) <= MAX_KINDS else ()


def _list_clusters(problem: Problem, *, is_foreign: bool) -> Iterator[tuple[Node, ...]]:
    """Yield the first node of a spec, its first two, and so on: what starves beside a full node may not beside two.

    A part of a cluster says nothing about the whole if its nodes differ, as some tasks need others, if a policy from
    outside this package may name nodes, or under a quota, which promises more than the part has.
    """
    unnamed = [replace(node, name="") for node in problem.nodes]
    are_alike = all(node == unnamed[0] for node in unnamed)
    is_whole = len(unnamed) < 2 or is_foreign or not are_alike or has_policy(problem.rules, "quota")
    for count in range(len(problem.nodes) if is_whole else 1, len(problem.nodes) + 1):
        yield problem.nodes[:count]


def _identify_job(tasks: Sequence[Task], *, is_foreign: bool) -> tuple[object, ...]:
    slacks_s = [task.deadline - task.arrival for task in tasks]
    has_runs = is_foreign or any(map(math.isfinite, slacks_s))
    return *job_signature(tasks), tasks[0].user, *slacks_s, *(task.run for task in tasks if has_runs)


def _menu(problem: Problem, node_count: int, *, has_gangs: bool) -> list[tuple[Kind, tuple[Kind, ...]]]:
    """Return victims, of users that sort first and last, with the fillers beside them."""
    first, second, names = _users(problem)
    kind = _kind(problem)
    small = Kind("small", (_task(kind, 1, first),))
    other = Kind("other", (_task(kind, 1, second),))
    urgent = Kind("urgent", (_task(kind, 1, second, HIGH_PRIORITY),))
    broad = Kind("broad", (_task(kind, GPUS_PER_NODE, second, HIGH_PRIORITY),))
    menu: list[tuple[Kind, tuple[Kind, ...]]] = []
    for user in names:
        victims = [
            Kind("large", (_task(kind, GPUS_PER_NODE, user),)),
            Kind("impossible", (_task(kind, GPUS_PER_NODE + 1, user),)),
        ]
        if has_gangs:
            victims.append(Kind("gang", (_task(kind, 1, user),) * (GPUS_PER_NODE * node_count)))
        menu += [(victim, (small, other)) for victim in victims]
        if any(rule.name == "priority" for rule in problem.rules):
            single = Kind("single", (_task(kind, 1, user),))
            menu += [(victims[-1], (small, urgent)), (single, (small, broad))]
    return menu


def _recurring_menu(problem: Problem, node_count: int, *, has_gangs: bool) -> Iterator[tuple[Kind, tuple[Kind, ...]]]:
    """Yield victims beside fillers as large as they are, which end again and again, and beside a higher class.

    A victim comes once: what a policy loses at every end of a large job, at a stop or by class shows only with these.
    """
    first, second, names = _users(problem)
    kind, user = _kind(problem), names[-1]
    small, large = Kind("small", (_task(kind, 1, first),)), Kind("large", (_task(kind, GPUS_PER_NODE, user),))
    wide = Kind("wide", (_task(kind, GPUS_PER_NODE, second),))
    urgent = Kind("urgent", (_task(kind, GPUS_PER_NODE, second, HIGH_PRIORITY),))
    yield large, (small, wide)
    yield Kind("single", (_task(kind, 1, user),)), (small, urgent)
    if has_gangs:
        size = GPUS_PER_NODE * node_count
        crew = Kind("crew", (_task(kind, 1, second),) * size)
        yield Kind("gang", (_task(kind, 1, user),) * size), (small, crew)


def _users(problem: Problem) -> tuple[str, str, tuple[str, ...]]:
    """Return two users of the fillers, and the victim's: teams with a quota where there are any."""
    quotas: dict[str, float] = next((rule.options["quotas"] for rule in problem.rules if rule.name == "quota"), {})
    teams = sorted(quotas)
    if not teams:
        return "a", "b", ("0", "z")
    return teams[0], teams[len(teams) // 2], tuple(dict.fromkeys((teams[0], teams[-1])))


def _kind(problem: Problem) -> str:
    quota = next((rule for rule in problem.rules if rule.name == "quota"), None)
    return str(quota.options["resource"]) if quota is not None else "gpu"


def _task(kind: str, amount: int, user: str, priority: int = 0) -> Task:
    return Task("", {kind: amount * MILLI}, 60.0, user=user, priority=priority)


def _without_patience(rule: PolicyRule) -> PolicyRule:
    key = PATIENT.get(rule.name)
    return replace(rule, options={**rule.options, key: 0.0}) if key else rule


def _is_by_design(property_name: str, scenario: Scenario) -> bool:
    victim = scenario.kind(scenario.victim)
    lowest = min(task.priority for task in victim.tasks)
    has_higher = any(task.priority > lowest for kind in scenario.kinds for task in kind.tasks)
    return property_name == HEAD_OF_LINE or (has_higher and property_name in {"starvation", "preemption loop"})


def _record(scenario: Scenario, result: SearchResult) -> SearchRecord:
    user = scenario.kind(scenario.victim).tasks[0].user
    return SearchRecord(
        nodes=len(scenario.nodes),
        kinds=", ".join(kind.name.rstrip(KIND_END) for kind in scenario.kinds if kind.name != scenario.victim),
        victim=scenario.victim.rstrip(KIND_END) + (f" of {user}" if user else ""),
        jobs_in_flight=scenario.jobs_in_flight,
        states=result.states,
        transitions=result.transitions,
        is_complete=result.is_complete,
    )
