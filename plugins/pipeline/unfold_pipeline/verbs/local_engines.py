"""Local engines of a spec: the pool of processes, the rule that scales it, and what a replay on it measured."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import numpy as np

from unfold_pipeline.engine.autoscaling.replay import calibrate_envelope_rule
from unfold_pipeline.engine.autoscaling.rules import (
    TICK_S,
    ScalingRule,
    build_envelope_rule,
    build_token_envelope,
    keep_replicas,
)
from unfold_pipeline.engine.autoscaling.token_log import TokenLog
from unfold_pipeline.engine.build import find_engine
from unfold_pipeline.engine.endpoint.balancer import EngineBalancer
from unfold_pipeline.engine.planner.problem import EngineProblem
from unfold_pipeline.engine.planner.search import EngineConfig
from unfold_pipeline.problem.latency_profile import store_activation
from unfold_pipeline.runtime.engines.engine_pool import EnginePool, build_decision
from unfold_pipeline.runtime.engines.llama_server import LlamaCommand, locate_weights
from unfold_pipeline.schema.engine import EngineSpec
from unfold_pipeline.schema.pipeline import PipelineSpec
from unfold_pipeline.verbs.plan_engine import limit_replicas
from unfoldkit.api import Run, UnfoldError, user_error
from unfoldkit.engines.local import available_cores

START_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalEngines:
    """The processes of a stage and what scales them.

    Attributes:
        stage: name of the stage.
        pool: the processes.
        replicas: engines of the plan, which start first.
        log: tokens that arrived lately.
        rule: how many engines are wanted.
        is_scaled: whether their number may change.
        run: where the measured start time is kept.
    """

    stage: str
    pool: EnginePool
    replicas: int
    log: TokenLog
    rule: ScalingRule
    is_scaled: bool
    run: Run

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start the engines of the plan, scale them, and end them all.

        Raises:
            UnfoldError: an engine does not start.
        """
        await self.pool.start(self.replicas)
        self._store_start()
        loop = asyncio.create_task(self.pool.run(build_decision(self.rule, self.pool, self.log), TICK_S))
        try:
            yield
        finally:
            loop.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await loop
            self._store_start()
            await self.pool.stop()

    def _store_start(self) -> None:
        try:
            store_activation({self.stage: self.pool.start_s}, self.run)
        except UnfoldError as error:
            self.run.log.warning("the start time is not stored: %s", error)


def build_pool(engine: EngineSpec, stage: str, budget: int, slots: int, max_engines: int, run: Run) -> EnginePool:
    """Return a pool of the processes of a spec; nothing is started yet.

    Args:
        engine: with ``local``.
        stage: its name.
        budget: tokens of a step.
        slots: requests that run at the same time.
        max_engines: processes at a time.
        run: resolves the path of the weights.

    Raises:
        UnfoldError: llama.cpp or the weights are missing.
    """
    local, key = engine.local, f"stages.{stage}.engine.local"
    assert local is not None  # noqa: S101 - callers have checked
    path = None if local.weights is None else run.path(local.weights, key=f"{key}.weights")
    weights = locate_weights(path, key)
    if budget < slots:
        message = f"a step of {budget} tokens holds fewer than the {slots} requests that may run"
        raise user_error(message, key=f"stages.{stage}.engine.max_num_batched_tokens", hint=f"at least {slots}")
    command = LlamaCommand(weights=weights, threads=local.threads, context=local.context, slots=slots, budget=budget)
    balancer = EngineBalancer(tuple(f"local {index + 1}" for index in range(max_engines)), engine.routing)
    return EnginePool(command.build_arguments(), balancer, START_TIMEOUT_S, key)


def build_local_engines(spec: PipelineSpec, problem: EngineProblem, config: EngineConfig, run: Run) -> LocalEngines:
    """Return the processes of a plan and the rule that scales them: the token envelope of its traffic.

    The rule is the cheapest that meets the targets on the traffic of the plan; where none does for less, or the spec
    fixes the engines, their number stays. It starts no more processes than the cores compute for, the plan aside.

    Raises:
        UnfoldError: llama.cpp or the weights are missing.
    """
    stage, engine = find_engine(spec)
    local = engine.local
    assert local is not None  # noqa: S101 - callers have checked
    envelope = build_token_envelope(problem.requests, config.replicas, problem.settings.start_s)
    max_engines = config.replicas
    calibrated = None
    if spec.tuner.policy != "fixed":
        max_engines = max(max_engines, min(limit_replicas(problem, config), available_cores() // local.threads))
        calibrated = calibrate_envelope_rule(problem, config, envelope, max_replicas=max_engines)
    if config.replicas * local.threads > available_cores():
        message = "%d engines of %d threads on %d cores: steps take longer than profiled"
        run.log.warning(message, config.replicas, local.threads, available_cores())
    log = TokenLog(float(np.max(envelope.windows_s)))
    rule = keep_replicas(config.replicas)
    if calibrated is not None:
        rule = build_envelope_rule(envelope, log.count, hold_s=calibrated[1], margin=calibrated[0])
    return LocalEngines(
        stage=stage,
        pool=build_pool(engine, stage, config.budget, config.max_seqs, max_engines, run),
        replicas=config.replicas,
        log=log,
        rule=rule,
        is_scaled=calibrated is not None,
        run=run,
    )
