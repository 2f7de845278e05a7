"""The verb ``train``: runs a plan and compares what happened with what was predicted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from unfold_tuning.cluster.factory import build_cluster, build_provider, require_reachable
from unfold_tuning.executor.deadline import MAX_INSTANCES
from unfold_tuning.executor.executor import Executor
from unfold_tuning.executor.inputs_and_outcome import ExecutionConfig, RunState
from unfold_tuning.executor.messages import describe_leftovers, describe_spend
from unfold_tuning.executor.ranking import adopt_profiled_trials
from unfold_tuning.job.allocation import Plan
from unfold_tuning.job.build import build_cluster_config, build_problem, has_measured_profile, resolve_trainable
from unfold_tuning.job.problem import Problem, TrainableConfig
from unfold_tuning.job.profile import Machine
from unfold_tuning.planner.decision import decode_decision, encode_decision
from unfold_tuning.planner.planner import build_models, build_posterior
from unfold_tuning.planner.spot_or_on_demand import solve_job
from unfold_tuning.report.exports import export_placement_spec, export_winner
from unfold_tuning.report.infeasible import report_infeasible
from unfold_tuning.report.run import report_progress, report_run
from unfold_tuning.schema.tuning import TuningSpec
from unfold_tuning.simulator.plan_cost import SimulatedPlan, simulate_plan
from unfold_tuning.trial.ledger import open_ledger
from unfold_tuning.trial.trainable import WorkerSetup
from unfold_tuning.verbs.profile import SEARCH_LEDGER_FILE, load_profiled_trials, profile
from unfoldkit.api import Report, Run, user_error
from unfoldkit.safe_io.files import parse_object

DECISION_FILE = "carried-out.json"
WINNER_FILE = "winner.json"
PLACEMENT_FILE = "placement.yaml"
STARTABLE_PROVIDERS = ("aws", "local", "ray", "skypilot")


@dataclass(frozen=True, slots=True)
class Execution:
    """The plan that a run executes, on its machine, with its simulated runs."""

    machine: Machine
    plan: Plan
    predicted: SimulatedPlan


def train(spec: TuningSpec, run: Run) -> Report:
    """Run the trials stage by stage; a run that was killed continues where it was, with its spend."""
    trainable = resolve_trainable(spec, run)
    _require_startable_provider(spec)
    cluster_config = build_cluster_config(spec, run)
    require_reachable(cluster_config)
    if spec.profile is None and not has_measured_profile(spec, run):
        profile(spec, run)
    problem = build_problem(spec, run)
    execution = _select_execution(problem, run)
    if isinstance(execution, Report):
        return execution
    config = _build_config(problem, execution, trainable, run)
    with open_ledger(run.directory.resolve(SEARCH_LEDGER_FILE), execution.machine, problem.fingerprint) as ledger:
        provider = build_provider(cluster_config, execution.machine, ledger, run.log, problem.machines)
        ledger.retry_if_all_failed()
        ledger.close_open_parts()
        if spec.cloud.provider != "local":
            run.name_leftovers(lambda: describe_leftovers(ledger.list_running()))
        provider.recover()
        ledger.close_open_lifetimes()
        if spec.profile is None:
            profile_usd, profiled = load_profiled_trials(spec, run)
            ledger.record_fact("profile-usd", profile_usd)
            adopt_profiled_trials(config, ledger, profiled)
        setup = WorkerSetup(trainable, run.seed)
        cluster = build_cluster(cluster_config, setup, execution.machine.accelerators, provider)

        def publish(state: RunState) -> None:
            run.publish(report_progress(problem.name, config, ledger, state, execution.predicted))

        try:
            outcome = Executor(config, ledger, cluster, publish).run()
        except BaseException as error:
            error.add_note(describe_spend(ledger.compute_spent_usd(), problem.budget_usd))
            raise
        placement_spec = export_placement_spec(problem, config, ledger)
        run.directory.write(PLACEMENT_FILE, placement_spec, made_from=problem.fingerprint)
        if outcome.winner is not None:
            winner = export_winner(config, outcome.winner)
            run.directory.write(WINNER_FILE, winner, made_from=problem.fingerprint)
        return report_run(problem.name, config, ledger, outcome, execution.predicted)


def _require_startable_provider(spec: TuningSpec) -> None:
    provider = spec.cloud.provider
    if provider not in STARTABLE_PROVIDERS:
        hint = "unfold plan works; write provider: local to train on this machine"
        raise user_error(f"unfold cannot start instances of {provider}", key="cloud.provider", hint=hint)


def _build_config(problem: Problem, execution: Execution, trainable: TrainableConfig, run: Run) -> ExecutionConfig:
    return ExecutionConfig(
        stages=problem.stages,
        plan=execution.plan,
        machine=execution.machine,
        profile=problem.profile,
        trainable=trainable,
        folder=run.directory.path / "trials",
        seed=run.seed,
        checkpoint_iters=execution.machine.checkpoint_iters,
        deadline_s=problem.deadline_s,
        budget_usd=problem.budget_usd,
        confidence=problem.confidence,
        paces=build_posterior(problem),
        progress=run.progress,
        log=run.log,
    )


def _select_execution(problem: Problem, run: Run) -> Execution | Report:
    """Select the plan of an earlier attempt, of ``--plan``, or a new one; or report that there is none."""
    has_begun = run.directory.has(DECISION_FILE, made_from=problem.fingerprint)
    decision: Mapping[str, Any] = run.saved_decision or {}
    if has_begun:
        with run.directory.decoding(DECISION_FILE, "a plan") as data:
            decision = parse_object(data)
    if decision:
        # a run that continues under a smaller limit is planned again for it
        machine, plan = decode_decision(decision, problem, MAX_INSTANCES if has_begun else None)
        model = build_models(replace(problem, machines=(machine,)), build_posterior(problem))[0]
        return Execution(machine, plan, simulate_plan(model, plan))
    solution = solve_job(problem, run.progress)
    if solution.selected is None or solution.is_over_budget:
        return replace(report_infeasible(problem, solution), verb="train")
    machine, predicted = solution.selected.machine, solution.selected.plan
    encoded = json.dumps(encode_decision(problem, machine, predicted), indent=1)
    run.directory.write(DECISION_FILE, encoded.encode(), made_from=problem.fingerprint)
    return Execution(machine, predicted.plan, predicted)
