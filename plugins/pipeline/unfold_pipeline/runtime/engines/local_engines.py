"""Local engines: the pool of processes of a plan, and the rule that scales it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import numpy as np

from unfold_pipeline.engine.autoscaling.autoscalers import TICK_S, ScalingRule, keep_replicas, limit_replicas
from unfold_pipeline.engine.autoscaling.replay import calibrate_envelope_rule
from unfold_pipeline.engine.autoscaling.token_envelope import TokenLog, build_envelope_rule, build_token_envelope
from unfold_pipeline.engine.build import LocalSettings
from unfold_pipeline.engine.endpoint.balancer import EngineBalancer
from unfold_pipeline.engine.planner.problem import EngineProblem
from unfold_pipeline.engine.planner.search import EngineConfig
from unfold_pipeline.problem.latency_profile import store_activation
from unfold_pipeline.runtime.engines.engine_pool import EnginePool, build_decision
from unfold_pipeline.runtime.engines.llama_server import LlamaCommand, locate_weights
from unfoldkit.api import Run, UnfoldError, user_error
from unfoldkit.engines.local import available_cores

START_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalEngines:
    """The processes of a stage and what scales them.

    Attributes:
        stage: Name of the stage.
        pool: The processes.
        replicas: Engines of the plan, which start first.
        log: Tokens that arrived lately.
        rule: How many engines are wanted.
        is_scaled: Whether their number may change.
        run: Where the measured start time is kept.
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
            UnfoldError: An engine does not start.
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


def build_pool(settings: LocalSettings, budget: int, slots: int, max_engines: int) -> EnginePool:
    """Return a pool of processes; nothing is started yet.

    Args:
        settings: Of the processes.
        budget: Tokens of a step.
        slots: Requests that run at the same time.
        max_engines: Processes at a time.

    Raises:
        UnfoldError: llama.cpp or the weights are missing.
    """
    weights = locate_weights(settings.weights, f"{settings.key}.local")
    if budget < slots:
        message = f"a step of {budget} tokens holds fewer than the {slots} requests that may run"
        raise user_error(message, key=f"{settings.key}.max_num_batched_tokens", hint=f"at least {slots}")
    command = LlamaCommand(
        weights=weights, threads=settings.threads, context=settings.context, slots=slots, budget=budget
    )
    balancer = EngineBalancer(tuple(f"local {index + 1}" for index in range(max_engines)), settings.routing)
    return EnginePool(command.build_arguments(), balancer, START_TIMEOUT_S, f"{settings.key}.local")


def build_local_engines(
    settings: LocalSettings, problem: EngineProblem, config: EngineConfig, run: Run
) -> LocalEngines:
    """Return the processes of a plan and the rule that scales them: the token envelope of its traffic.

    The rule is the cheapest that meets the targets on the traffic of the plan; where none does for less, or the spec
    fixes the engines, their number stays. It starts no more processes than the cores compute for, the plan aside.

    Raises:
        UnfoldError: llama.cpp or the weights are missing.
    """
    envelope = build_token_envelope(problem.requests, config.replicas, problem.settings.start_s)
    max_engines = config.replicas
    calibrated = None
    if settings.is_scaled:
        max_engines = max(max_engines, min(limit_replicas(problem, config), available_cores() // settings.threads))
        calibrated = calibrate_envelope_rule(problem, config, envelope, max_replicas=max_engines)
    if config.replicas * settings.threads > available_cores():
        message = "%d engines of %d threads on %d cores: steps take longer than profiled"
        run.log.warning(message, config.replicas, settings.threads, available_cores())
    log = TokenLog(float(np.max(envelope.windows_s)))
    rule = keep_replicas(config.replicas)
    if calibrated is not None:
        rule = build_envelope_rule(envelope, log.count, hold_s=calibrated[1], margin=calibrated[0])
    return LocalEngines(
        stage=problem.stage,
        pool=build_pool(settings, config.budget, config.max_seqs, max_engines),
        replicas=config.replicas,
        log=log,
        rule=rule,
        is_scaled=calibrated is not None,
        run=run,
    )
